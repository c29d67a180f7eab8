"""Oracle pruning: measure the loss without each filter."""

from secateurs.methods.oracle.method import Oracle

__all__ = ["Oracle"]
