"""Convolutions in which each filter keeps its own kernel positions, and fast kernels for them."""

from secateurs.stripes.module import StripeConv2d
from secateurs.stripes.tune import choices, choose, tune

__all__ = ["StripeConv2d", "choices", "choose", "tune"]
