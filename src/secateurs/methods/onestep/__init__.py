"""One-step pruning-recovery (Wang et al., 2019): importance vectors, crucial layers."""

from secateurs.methods.onestep.method import OneStep

__all__ = ["OneStep"]
