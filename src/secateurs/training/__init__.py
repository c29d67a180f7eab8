"""The training engine, used by everything that trains."""

from secateurs.training.batches import Batch, check_labels, without_labels
from secateurs.training.checkpoint import CheckpointStore
from secateurs.training.engine import Engine
from secateurs.training.hooks import Hook
from secateurs.training.metrics import CrossEntropy, Metrics, check_data, evaluate
from secateurs.training.parts import Part
from secateurs.training.recipe import Phase, Recipe

__all__ = [
    "Batch",
    "CheckpointStore",
    "CrossEntropy",
    "Engine",
    "Hook",
    "Metrics",
    "Part",
    "Phase",
    "Recipe",
    "check_data",
    "check_labels",
    "evaluate",
    "without_labels",
]
