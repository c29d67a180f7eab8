"""Convolutions of which each filter keeps its own positions of the kernel, and ways to compute them fast."""

from secateurs.stripes.module import StripeConv2d
from secateurs.stripes.tune import choices, choose, tune

__all__ = ["StripeConv2d", "choices", "choose", "tune"]
