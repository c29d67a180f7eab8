"""The training engine, used by everything that trains."""

from secateurs.training.batches import Batch, check_labels, without_labels
from secateurs.training.checkpoint import CheckpointStore
from secateurs.training.engine import Engine
from secateurs.training.hooks import Hook
from secateurs.training.losses import CrossEntropy
from secateurs.training.metrics import Metrics, check_data, check_runs, evaluate, higher_is_better
from secateurs.training.objective import Objective
from secateurs.training.options import check_options
from secateurs.training.parts import Part
from secateurs.training.recipe import Phase, Recipe

__all__ = [
    "Batch",
    "CheckpointStore",
    "CrossEntropy",
    "Engine",
    "Hook",
    "Metrics",
    "Objective",
    "Part",
    "Phase",
    "Recipe",
    "check_data",
    "check_labels",
    "check_options",
    "check_runs",
    "evaluate",
    "higher_is_better",
    "without_labels",
]
