"""Mask one layer's channels one by one, in the order of each criterion."""

from secateurs.studies.criteria.measure import Compared, compare_criteria, one_by_one
from secateurs.studies.criteria.record import Curve

__all__ = ["Compared", "Curve", "compare_criteria", "one_by_one"]
