"""Tensors that stand in for a model's own during a forward pass."""

from __future__ import annotations

from torch import Tensor, nn


class Swaps:
    """Parameters and buffers that other tensors stand in for, until they are restored.

    The modules keep their own tensors' names and order, and an optimizer keeps its references to them.
    """

    def __init__(self) -> None:
        # By module, not by its dict of parameters: a compiler may keep a copy of that.
        self._saved: list[tuple[nn.Module, str, Tensor | None]] = []

    def put(self, module: nn.Module, leaf: str, tensor: Tensor) -> None:
        """Have this tensor stand in for a parameter or buffer of the module."""
        self._saved.append((module, leaf, _holder(module, leaf)[leaf]))
        _holder(module, leaf)[leaf] = tensor

    def restore(self) -> None:
        """Restore the modules' own tensors."""
        while self._saved:
            module, leaf, tensor = self._saved.pop()
            _holder(module, leaf)[leaf] = tensor

    def __bool__(self) -> bool:
        return bool(self._saved)


def _holder(module: nn.Module, leaf: str) -> dict[str, Tensor | None]:
    return module._parameters if leaf in module._parameters else module._buffers  # type: ignore[return-value]
