"""Models: any Mixture-of-Experts model of transformers, with named hook points, checked when it is loaded."""
