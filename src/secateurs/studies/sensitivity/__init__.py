"""Sensitivity of a network's channel groups: how it performs with each of them cut alone."""

from secateurs.studies.sensitivity.measure import IMAGES, SHARES, sensitivity
from secateurs.studies.sensitivity.result import Sensitivity

__all__ = ["IMAGES", "SHARES", "Sensitivity", "sensitivity"]
