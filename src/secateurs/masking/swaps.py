"""Tensors that stand in for a model's own during a forward pass."""

from __future__ import annotations

from torch import Tensor, nn


class Swaps:
    """Parameters and buffers that other tensors stand in for, until they are restored.

    The modules keep their own tensors' names and order, and an optimizer keeps its references to them.
    """

    def __init__(self) -> None:
        self._saved: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []

    def put(self, module: nn.Module, leaf: str, tensor: Tensor) -> None:
        """Have this tensor stand in for a parameter or buffer of the module."""
        own: dict[str, Tensor | None] = module._parameters if leaf in module._parameters else module._buffers  # type: ignore[assignment]
        self._saved.append((own, leaf, own[leaf]))
        own[leaf] = tensor

    def restore(self) -> None:
        """Restore them all."""
        while self._saved:
            own, leaf, tensor = self._saved.pop()
            own[leaf] = tensor

    def __bool__(self) -> bool:
        return bool(self._saved)
