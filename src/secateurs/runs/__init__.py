"""Resumable runs, each in its own folder, from the first check to the saved artifact."""

from secateurs.runs.folder import RunFolder
from secateurs.runs.prune import PruneRun
from secateurs.runs.redesign import RedesignRun
from secateurs.runs.result import Redesign, RunResult
from secateurs.runs.sources import DataSpec, NetworkSpec
from secateurs.runs.stages import Stage
from secateurs.runs.training import RedesignTraining

__all__ = [
    "DataSpec",
    "NetworkSpec",
    "PruneRun",
    "Redesign",
    "RedesignRun",
    "RedesignTraining",
    "RunFolder",
    "RunResult",
    "Stage",
]
