"""Oracle pruning: what is lost without a filter, measured."""

from secateurs.methods.oracle.method import Oracle

__all__ = ["Oracle"]
