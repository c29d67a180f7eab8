"""A second device for a machine that has none: tensors are told to be on it, and mixing them with others fails.

Inside `FakeDevice()` everything that is put on "xpu" stays in the CPU's memory, but `x.device` says "xpu:0", an op that
meets tensors of both devices raises PyTorch's own error, and NumPy cannot see what is there: what a GPU refuses, this
refuses, without a GPU. Random numbers and arithmetic are the CPU's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("xpu", 0)
CPU = torch.device("cpu")
aten = torch.ops.aten
_COPIES = {aten.copy_.default, aten._to_copy.default, aten.set_.source_Tensor, aten.equal.default}
_INDEXING = {
    aten.index,
    aten.index_put,
    aten.index_put_,
    aten._index_put_impl_,
    aten._unsafe_index,
}  # by CPU tensors, too
_DEVICE, _IS_CPU = torch.Tensor.device.__get__, torch.Tensor.is_cpu.__get__


class _Tags:
    """Which storages are on the fake device."""

    def __init__(self) -> None:
        self.known: dict[int, StorageWeakRef] = {}

    def add(self, x: Tensor) -> None:
        if _plain(x) == CPU:
            ref = StorageWeakRef(x.untyped_storage())
            self.known[ref.cdata] = ref

    def discard(self, x: Tensor) -> None:
        if _plain(x) == CPU:
            self.known.pop(StorageWeakRef(x.untyped_storage()).cdata, None)

    def __contains__(self, x: Tensor) -> bool:
        if _plain(x) != CPU:
            return False
        ref = self.known.get(x.untyped_storage()._cdata)
        return ref is not None and not ref.expired()


class _Dispatch(TorchDispatchMode):
    """Ops: no mixing; what comes out is where the operands are."""

    def __init__(self, tags: _Tags) -> None:
        super().__init__()
        self.tags = tags

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func.overloadpacket in _INDEXING:
            given = [args[0], *([args[2]] if len(args) > 2 else [])]
        there = [x for x in given if x in self.tags]
        here = [x for x in given if _plain(x) == CPU and x not in self.tags and x.ndim]
        if there and here and func not in _COPIES:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! ({func})"
            )
        target = kwargs.get("device")
        if target is not None and torch.device(target).type == DEVICE.type:
            kwargs["device"] = CPU
        out = func(*args, **kwargs)
        if target is not None:
            on_fake = torch.device(target).type == DEVICE.type
        elif func in _COPIES:
            on_fake = bool(args) and args[0] in self.tags
        else:
            on_fake = bool(there)
        if on_fake and func is not aten.equal.default:
            pytree.tree_map_only(Tensor, self.tags.add, out)
        return out


class _Function(TorchFunctionMode):
    """What Python asks: devices, moves, factories, NumPy."""

    def __init__(self, tags: _Tags) -> None:
        super().__init__()
        self.tags = tags

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        x = args[0] if args and isinstance(args[0], Tensor) else None
        if func == _DEVICE:
            return DEVICE if args[0] in self.tags else func(*args)
        if func == _IS_CPU:
            return func(*args) and args[0] not in self.tags
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and args[0] in self.tags:
            raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first.")
        if func is torch.Tensor.cpu:
            return self._moved(x, CPU, {})
        if func is torch.Tensor.to:
            return self._to(x, args[1:], kwargs)
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == DEVICE.type:
            kwargs["device"] = CPU
            out = func(*args, **kwargs)
            pytree.tree_map_only(Tensor, self.tags.add, out)
            return out
        out = func(*args, **kwargs)
        if (
            x is not None
            and x in self.tags
            and func in (torch.Tensor.__deepcopy__, torch.Tensor.data.__get__, torch.Tensor.new_tensor)
        ):
            self.tags.add(out)
        return out

    def _to(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if args and isinstance(args[0], Tensor):  # as another tensor is
            other = args[0]
            device = DEVICE if other in self.tags else _plain(other)
            return self._moved(x, device, {**kwargs, "dtype": other.dtype})
        device, dtype, _, form = torch._C._nn._parse_to(
            *(a for a in args if not isinstance(a, bool)),
            **{k: v for k, v in kwargs.items() if k in ("device", "dtype", "memory_format")},
        )
        rest = {"dtype": dtype, "memory_format": form, "copy": kwargs.get("copy", False)}
        where = (DEVICE if x in self.tags else None) if device is None else device
        if where is None:
            where = _plain(x)
        return self._moved(x, where, {k: v for k, v in rest.items() if v is not None})

    def _moved(self, x: Tensor, device: torch.device, rest: dict[str, Any]) -> Tensor:
        fake = device.type == DEVICE.type
        rest.pop("non_blocking", None)
        if _plain(x) != CPU or not (fake or device.type == "cpu"):
            return x.to(device, **rest)
        stays = fake == (x in self.tags)
        out = x.to(CPU, **rest if stays else {**rest, "copy": True})
        (self.tags.add if fake else self.tags.discard)(out)
        return out


def _plain(x: Tensor) -> torch.device:
    """Where the tensor really is."""
    with torch._C.DisableTorchFunction():
        return x.device


class FakeDevice:
    """`with FakeDevice(): model.to("xpu")`."""

    def __init__(self) -> None:
        tags = _Tags()
        self._function, self._dispatch = _Function(tags), _Dispatch(tags)

    def __enter__(self) -> FakeDevice:
        self._function.__enter__()
        self._dispatch.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._dispatch.__exit__(*error)
        self._function.__exit__(*error)
