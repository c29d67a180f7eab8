"""What is known of criteria and layers: channels removed one by one."""

from secateurs.studies.removal import Curve, criteria, one_by_one

__all__ = ["Curve", "criteria", "one_by_one"]
