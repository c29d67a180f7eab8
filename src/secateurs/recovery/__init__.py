"""Recovering accuracy after a cut: calibration, fine-tuning, distillation, mimicking."""

from secateurs.recovery.calibrate import IMAGES, calibrate_
from secateurs.recovery.recipes import MODES, Distil, Mimic, Recover
from secateurs.recovery.recover import check, phases, recover

__all__ = ["IMAGES", "MODES", "Distil", "Mimic", "Recover", "calibrate_", "check", "phases", "recover"]
