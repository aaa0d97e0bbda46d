"""Probes: how well a label can be read from routes and activations, compared with what the token alone predicts."""

from moelens.probes.probing import ProbeResult, ProbeRow, probe

__all__ = ["ProbeResult", "ProbeRow", "probe"]
