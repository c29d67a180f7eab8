"""Studies of criteria and layers: removing channels one by one."""

from secateurs.studies.removal import Curve, criteria, one_by_one

__all__ = ["Curve", "criteria", "one_by_one"]
