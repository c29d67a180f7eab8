"""The conformance suite of pruning methods, for custom methods: `check_method("mine")`."""

from secateurs.testing.checks import CHECKS, check_method

__all__ = ["CHECKS", "check_method"]
