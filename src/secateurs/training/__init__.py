"""One training engine: recovery, and every method that prunes while training."""

from secateurs.training.batches import Batch
from secateurs.training.checkpoint import CheckpointStore
from secateurs.training.engine import Engine
from secateurs.training.hooks import Hook
from secateurs.training.metrics import CrossEntropy, Metrics, evaluate
from secateurs.training.parts import Part
from secateurs.training.recipe import Recipe, Recover
from secateurs.training.recover import recover

__all__ = [
    "Batch",
    "CheckpointStore",
    "CrossEntropy",
    "Engine",
    "Hook",
    "Metrics",
    "Part",
    "Recipe",
    "Recover",
    "evaluate",
    "recover",
]
