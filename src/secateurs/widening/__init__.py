"""Cutting the other way round: wider networks that compute the same."""

from secateurs.widening.grow import widened

__all__ = ["widened"]
