"""Recovering accuracy after a cut: reconstruction, fine-tuning, distillation, mimicking."""

from secateurs.recovery.recipes import MODES, Distil, Mimic, Recover
from secateurs.recovery.reconstruct import Reconstruct
from secateurs.recovery.recover import check, phases, recover

__all__ = ["MODES", "Distil", "Mimic", "Reconstruct", "Recover", "check", "phases", "recover"]
