"""One training engine: recovery, and every method that prunes while training."""

from secateurs.training.batches import Batch
from secateurs.training.checkpoint import CheckpointStore
from secateurs.training.engine import Engine
from secateurs.training.hooks import Hook
from secateurs.training.metrics import CrossEntropy, Metrics, check_data, evaluate
from secateurs.training.parts import Part
from secateurs.training.recipe import MODES, Distil, Mimic, Recipe, Recover
from secateurs.training.recover import check, phases, recover

__all__ = [
    "MODES",
    "Batch",
    "CheckpointStore",
    "CrossEntropy",
    "Distil",
    "Engine",
    "Hook",
    "Metrics",
    "Mimic",
    "Part",
    "Recipe",
    "Recover",
    "check",
    "check_data",
    "evaluate",
    "phases",
    "recover",
]
