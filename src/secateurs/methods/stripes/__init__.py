"""Stripes by their weights: which of them a budget allows, and the criterion that needs no data."""

from secateurs.methods.stripes.criterion import L2Stripes

__all__ = ["L2Stripes"]
