"""Find whose code a module is (the user's, or that of Python, PyTorch and training frameworks), and which names code uses."""

from __future__ import annotations

import sys
from functools import cache, lru_cache
from types import CodeType

# Trainers hold the model, its data and their own threads. They are not a part of it.
_FOREIGN = frozenset({
    *sys.stdlib_module_names, "torch", "numpy", "secateurs", "lightning", "lightning_fabric", "pytorch_lightning",
    "accelerate", "ray", "pydantic", "pydantic_core", "typing_extensions",
})  # fmt: skip


@cache
def foreign(module: str | None) -> bool:
    """Whether code of this module cannot hold state of the user's model."""
    return module is None or module.partition(".")[0] in _FOREIGN


@lru_cache(maxsize=4096)
def names_in(code: CodeType) -> tuple[str, ...]:
    """Return the attributes and global variables that a function and its inner functions may look up."""
    inner = (name for constant in code.co_consts if isinstance(constant, CodeType) for name in names_in(constant))
    return tuple(dict.fromkeys((*code.co_names, *inner)))
