"""Oracle pruning: what is lost without a filter, measured. And the study that compares criteria on one layer with it."""

from secateurs.methods.oracle.method import Oracle

__all__ = ["Oracle"]
