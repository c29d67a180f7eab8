"""Oracle pruning: what is lost without a filter, measured. And the study that compares criteria on one layer with it."""

from secateurs.methods.oracle.method import Oracle
from secateurs.methods.oracle.study import Curve, criteria, one_by_one

__all__ = ["Curve", "Oracle", "criteria", "one_by_one"]
