"""Cutting a network by a plan, and the proof that the result is the masked network minus what was cut."""

from secateurs.surgery.reset import reinitialise
from secateurs.surgery.slice import apply, cut_
from secateurs.surgery.verify import verify

__all__ = ["apply", "cut_", "reinitialise", "verify"]
