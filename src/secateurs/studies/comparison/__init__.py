"""Comparisons of methods at equal compute: methods × budgets × seeds on one network and data."""

from secateurs.studies.comparison.comparing import compare
from secateurs.studies.comparison.folder import read_comparison
from secateurs.studies.comparison.result import Comparison

__all__ = ["Comparison", "compare", "read_comparison"]
