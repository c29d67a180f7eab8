"""Convolutions in which each filter keeps its own kernel positions, and fast kernels for them."""

from secateurs.stripes.module import StripeConv, StripeConv1d, StripeConv2d, StripeConv3d
from secateurs.stripes.tune import choices, choose, tune

__all__ = ["StripeConv", "StripeConv1d", "StripeConv2d", "StripeConv3d", "choices", "choose", "tune"]
