"""Recovering accuracy after a cut: calibration, reconstruction, fine-tuning, distillation, mimicking."""

from secateurs.recovery.calibrate import IMAGES, calibrate_
from secateurs.recovery.recipes import MODES, Distil, Mimic, Recover
from secateurs.recovery.reconstruct import Reconstruct
from secateurs.recovery.recover import check, phases, recover

__all__ = [
    "IMAGES",
    "MODES",
    "Distil",
    "Mimic",
    "Reconstruct",
    "Recover",
    "calibrate_",
    "check",
    "phases",
    "recover",
]
