"""Studies of methods, criteria and layers."""

from secateurs.studies.comparison import Comparison, compare, read_comparison
from secateurs.studies.criteria import Curve, one_by_one

__all__ = ["Comparison", "Curve", "compare", "one_by_one", "read_comparison"]
