"""Cut a network by a plan, and verify that the result computes the same as the masked network."""

from secateurs.surgery.reset import reinitialize
from secateurs.surgery.slice import apply, cut_
from secateurs.surgery.verify import verify

__all__ = ["apply", "cut_", "reinitialize", "verify"]
