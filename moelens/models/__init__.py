"""The model: any Mixture-of-Experts of transformers, with named hook points, checked when it is loaded."""
