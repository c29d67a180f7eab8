"""What an engine is told besides its recipe: checked before any work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from secateurs.errors import ConfigError, Setting
from secateurs.training.objective import Objective
from secateurs.training.progress import Mode, checked_mode
from secateurs.training.recipe import Recipe
from secateurs.training.runtime import check_trackers


def check_options(
    *,
    hooks: Sequence[Any] = (),
    progress: Mode | bool = "auto",
    save_steps: int | None = None,
    save_seconds: float | None = None,
    track: Any = (),
    folder: str | os.PathLike[str] | None = None,
) -> None:
    """Raise ConfigError for options of `Engine` that it cannot use."""
    checked_mode(progress)
    if not isinstance(hooks, Sequence):
        raise ConfigError("hooks must be a list of training hooks.")
    for hook in hooks:
        if isinstance(hook, type) or not callable(getattr(hook, "before_batch", None)):
            raise ConfigError(f"{hook!r:.60} is not a hook: pass an instance of a subclass of secateurs.training.Hook.")
    for name, value, kind, least, what in (
        ("save_steps", save_steps, Integral, 1, "an integer of at least 1"),
        ("save_seconds", save_seconds, Real, 0, "a number of at least 0"),
    ):
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind) or not float(value) >= least):
            raise ConfigError(Setting(name, value), f" must be {what}.")
    check_trackers(track, None if folder is None else Path(folder))


def check_recipe(recipe: Recipe, objective: Objective) -> None:
    """Raise ConfigError for settings of a recipe that the objective leaves without effect."""
    if recipe.label_smoothing and (objective.loss is not None or objective.step is not None):
        raise ConfigError("label_smoothing applies to the default loss only: implement it in your own loss")
