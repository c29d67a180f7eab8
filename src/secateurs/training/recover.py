"""Getting the accuracy back after a cut."""

from __future__ import annotations

from typing import Any

from torch import nn

from secateurs.training.engine import Engine
from secateurs.training.recipe import Recipe


def recover(
    model: nn.Module, data: Any, recipe: Recipe, *, seed: int = 0, resume: bool = False, **options: Any
) -> list[dict[str, Any]]:
    """Fine-tunes the model in place; returns the history, one dict per epoch. `options` are `Engine`'s.

    Whatever is to pull on the outputs beside the loss is a hook: `before_batch` sees the inputs, `loss` the outputs.
    """
    options.setdefault("title", "recover")
    return Engine(model, data, recipe, seed=seed, **options).fit(resume=resume)
