"""Whose code it is: the user's, or that of Python, PyTorch and training frameworks."""

from __future__ import annotations

import sys
from functools import cache

# Trainers hold the model, its data and their own threads. They are not a part of it.
_FOREIGN = frozenset({
    *sys.stdlib_module_names, "torch", "numpy", "secateurs", "lightning", "lightning_fabric", "pytorch_lightning",
    "accelerate", "ray", "pydantic", "pydantic_core", "typing_extensions",
})  # fmt: skip


@cache
def foreign(module: str | None) -> bool:
    """Whether code of this module cannot keep a state of the user's model."""
    return module is None or module.partition(".")[0] in _FOREIGN
