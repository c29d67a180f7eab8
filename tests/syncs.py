"""Counts where the host waits for an accelerator, on a machine that has none."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import secateurs
from tests.fakedevice import DEVICE, FakeDevice

SOURCE = Path(secateurs.__file__).parent
aten = torch.ops.aten
_READS = {
    Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__,
    Tensor.__contains__,
}  # fmt: skip
_WAITING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten._unique2}


class Syncs(FakeDevice):
    """A fake device that counts, by line of our source, what would make the host wait for a GPU: values that are read,
    shapes that depend on values, and copies to it from memory that is not pinned, unless they are `non_blocking`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        tags = self._function.tags
        self._modes = _Calls(tags, self.found), _Ops(tags, self.found)

    def __enter__(self) -> Syncs:
        super().__enter__()
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
        super().__exit__(*error)


class _Calls(TorchFunctionMode):
    """What Python asks of tensors."""

    def __init__(self, tags: Any, found: Counter[str]) -> None:
        super().__init__()
        self.tags, self.found = tags, found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        x = args[0] if args and isinstance(args[0], Tensor) else None
        there = x is not None and x in self.tags
        out = func(*args, **kwargs)
        if func in _READS and there:
            _note(self.found)
        elif func is Tensor.to and x is not None and isinstance(out, Tensor):
            moved = there != (out in self.tags)
            if moved and (there or not kwargs.get("non_blocking")):
                _note(self.found)
        elif x is None or func in (Tensor.new_tensor,):
            given = args[1 if x is not None else 0] if len(args) > (x is not None) else None
            made = func in (torch.tensor, torch.as_tensor, Tensor.new_tensor)
            if made and isinstance(out, Tensor) and out in self.tags and not isinstance(given, Tensor):
                _note(self.found)
        return out


class _Ops(TorchDispatchMode):
    """What operators read on their own."""

    def __init__(self, tags: Any, found: Counter[str]) -> None:
        super().__init__()
        self.tags, self.found = tags, found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is not None and first in self.tags:
            masks = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_) and any(
                isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
            )
            if masks or func.overloadpacket in _WAITING:
                _note(self.found)
        return func(*args, **(kwargs or {}))


def _note(found: Counter[str]) -> None:
    """The innermost line of our own."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(SOURCE):
            found[f"{path.relative_to(SOURCE)}:{frame.lineno} {frame.line}"] += 1
            return
    found["elsewhere"] += 1


__all__ = ["DEVICE", "Syncs"]
