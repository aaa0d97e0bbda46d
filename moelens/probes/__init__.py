"""What can be read from routes and activations, and how much of it the token alone tells."""

from moelens.probes.reading import ProbeResult, ProbeRow, probe

__all__ = ["ProbeResult", "ProbeRow", "probe"]
