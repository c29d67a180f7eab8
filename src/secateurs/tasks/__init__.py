"""Tasks by name: how data is read, a network is built, trained and measured."""

from __future__ import annotations

from typing import Any

from secateurs.errors import ConfigError, nearest
from secateurs.tasks.classification import Classification
from secateurs.tasks.detection import Detection
from secateurs.tasks.segmentation import Segmentation
from secateurs.tasks.task import Reading, VisionTask

__all__ = ["TASKS", "Classification", "Detection", "Reading", "Segmentation", "VisionTask", "resolve", "tasks"]

TASKS: dict[str, type[VisionTask]] = {task.name: task for task in (Classification, Segmentation, Detection)}


def tasks() -> tuple[str, ...]:
    """The names of all tasks."""
    return tuple(TASKS)


def resolve(task: str | VisionTask | None, **settings: Any) -> VisionTask:
    """A task from its name and settings; None is classification. Raises ConfigError for settings that are not valid, and with
    the nearest names if there is none."""
    if isinstance(task, VisionTask):
        return task
    if task is None:
        return Classification(**settings)
    if not isinstance(task, str):
        raise ConfigError(f"task={task!r:.60} is not a task: pass a name, one of {', '.join(tasks())}.")
    if task not in TASKS:
        raise ConfigError(f"There is no task {task!r}. {nearest(task, tasks())}")
    return TASKS[task](**settings)
