"""What every pruning method must do, as checks for methods of your own: `check_method("mine")`."""

from secateurs.testing.checks import CHECKS, check_method

__all__ = ["CHECKS", "check_method"]
