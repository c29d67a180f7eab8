"""Studies of criteria, layers and networks."""

from secateurs.studies.removal import Curve, criteria, one_by_one

__all__ = ["Curve", "criteria", "one_by_one"]
