"""Studies of methods, criteria and layers."""

from secateurs.studies.comparison import Comparison, compare, read_comparison
from secateurs.studies.removal import Curve, criteria, one_by_one

__all__ = ["Comparison", "Curve", "compare", "criteria", "one_by_one", "read_comparison"]
