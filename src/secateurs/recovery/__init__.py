"""Recovering accuracy after a cut: fine-tuning, distillation, mimicking."""

from secateurs.recovery.recipes import MODES, Distil, Mimic, Recover
from secateurs.recovery.recover import check, phases, recover

__all__ = ["MODES", "Distil", "Mimic", "Recover", "check", "phases", "recover"]
