"""Studies: comparisons of methods at equal compute, and removing the channels of one layer one by one."""

from secateurs.studies.comparison import Comparison, compare, read_comparison
from secateurs.studies.removal import Curve, criteria, one_by_one

__all__ = ["Comparison", "Curve", "compare", "criteria", "one_by_one", "read_comparison"]
