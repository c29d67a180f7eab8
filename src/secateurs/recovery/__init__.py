"""Recovering accuracy after a cut: calibration, reconstruction, fine-tuning, distillation, mimicking."""

from secateurs.recovery.calibrate import IMAGES, after_cut_, calibrate_
from secateurs.recovery.recipes import MODES, Distil, Mimic, Recover
from secateurs.recovery.reconstruct import Reconstruct
from secateurs.recovery.recover import check, epochs, phases, recover
from secateurs.recovery.text import KINDS
from secateurs.recovery.trial import check_data

__all__ = [
    "IMAGES",
    "KINDS",
    "MODES",
    "Distil",
    "Mimic",
    "Reconstruct",
    "Recover",
    "after_cut_",
    "calibrate_",
    "check",
    "check_data",
    "epochs",
    "phases",
    "recover",
]
