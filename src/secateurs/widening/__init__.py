"""Widening, the inverse of cutting: wider networks that compute the same function."""

from secateurs.widening.grow import widened, wider

__all__ = ["widened", "wider"]
