"""Figures that modules keep of their own: numbers beside their tensors that repeat a width, such as `self.channels = 64`.

Which channels such a number counts is nowhere written down. If the forward reads it, the call that it is passed to shows it:
`x.view(n, self.channels, -1)`, `x.split((self.c, self.c), 1)`, `x[:, : self.out_chs]`. If the forward does not (code that
fuses a block's branches does, later), it counts what is that wide in the module: its inputs for `in_chs`, its outputs for
`out_chs`, the groups of its convolutions for `groups`. It is rewritten if all of these change to the same width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import numpy as np
from torch import Tensor, nn

from secateurs.graph import attributes

Array = np.ndarray
INTO = frozenset({"in", "inp", "inplanes", "input", "cin"})
OUT = frozenset({"out", "oup", "outplanes", "output", "cout"})
GROUPS = frozenset({"group", "groups"})
_WIDTHS = frozenset({
    "c", "ch", "chan", "channel", "channels", "chans", "chs", "cin", "cout", "dim", "dims", "feat", "feats", "feature",
    "features", "filters", "hidden", "inp", "inplanes", "nc", "nf", "oup", "outplanes", "planes", "shape", "width",
})  # fmt: skip
# Calls that take a width as an argument. In any other, a number is a value that is computed with.
_SIZES = frozenset({
    "__getitem__", "__setitem__", "batch_norm", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "expand", "group_norm", "layer_norm", "narrow", "new_empty", "new_ones", "new_zeros", "repeat",
    "reshape", "rms_norm", "split", "split_with_sizes", "tensor_split", "unflatten", "view",
})  # fmt: skip


def named_like_a_width(attribute: str) -> bool:
    """Whether an attribute's name says that it holds a number of channels, or of groups."""
    return attribute.isidentifier() and not attribute.startswith("__") and bool(words(attribute) & (_WIDTHS | GROUPS))


@cache
def words(attribute: str) -> frozenset[str]:
    """The words of an attribute's name: `in`, `chs` of `in_chs` and of `inChs1`."""
    return frozenset(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", attribute).lower()))


@dataclass(eq=False)
class Figure:
    """A number of a module's own. value: an int, or a tuple of one."""

    module: str
    attribute: str
    value: int | tuple[int]
    passed: list[Array] = field(default_factory=list)  # the channels that it counts in a call of the forward
    computed: bool = False  # the forward computes with it

    @property
    def size(self) -> int:
        return self.value if isinstance(self.value, int) else self.value[0]

    def at(self, size: int) -> int | tuple[int]:
        """The value for another size."""
        return size if isinstance(self.value, int) else (size,)

    def watched(self) -> Any:
        """The value, as a number that reports what it is used for."""
        return self.at(Watched(self))


class Watched(int):
    """An int that knows which figure it is, and notices when code computes with it."""

    figure: Figure

    def __new__(cls, figure: Figure) -> Watched:
        made = super().__new__(cls, figure.size)
        made.figure = figure
        return made

    def __reduce__(self) -> Any:  # a copy of a module has a plain number
        return int, (int(self),)


def _noticing(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def operation(self: Watched, *others: Any) -> Any:
        self.figure.computed = True
        return plain(self, *others)

    return operation


for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "divmod", "pow"):
    for _side in ("", "r"):
        setattr(Watched, f"__{_side}{_name}__", _noticing(f"__{_side}{_name}__"))
for _name in ("__neg__", "__float__", "__lshift__", "__rshift__"):
    setattr(Watched, _name, _noticing(_name))


def of(modules: Mapping[str, nn.Module]) -> list[Figure]:
    """The figures of these modules that may be widths."""
    return [
        Figure(path, name, value)
        for path, module in modules.items()
        if not type(module).__module__.startswith("torch.nn.")
        for name, value in module.__dict__.items()
        if _is_width(value)
        and named_like_a_width(name)
        and not (name in attributes.NAMES and attributes.leaves(module))
    ]


def steps(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts that a module's forward is made of: its children, and in place of a list or a sequence its elements."""
    for name, child in module._modules.items():
        inner = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            yield from steps(inner, child)
        elif child is not None:
            yield inner, child


def _is_width(value: Any) -> bool:
    if type(value) is tuple and len(value) == 1:
        value = value[0]
    return type(value) is int and value > 1


def passed(function: Any, args: tuple[Any, ...], out: Any, labels: Callable[[Tensor], Mapping[int, Array]]) -> None:
    """Note which channels the figures count that a call was given."""
    sizes = [x for a in args for x in (a if isinstance(a, list | tuple) else (a,)) if isinstance(x, Watched)]
    bounds = list(_bounds(*args[:2])) if len(args) > 1 and isinstance(args[0], Tensor) else []
    if not sizes and not bounds:
        return
    known = getattr(function, "__name__", "") in _SIZES
    made = [x for x in (out if isinstance(out, list | tuple) else (out,)) if isinstance(x, Tensor)]
    for figure in (x.figure for x in sizes):
        figure.computed |= not known
        for x in made if known else ():
            figure.passed += [own for own in labels(x).values() if len(own) == figure.size]
    for figure, axis in bounds:
        if axis in (own := labels(args[0])):
            figure.passed.append(own[axis][: figure.size])


def _bounds(x: Tensor, index: Any) -> Iterator[tuple[Figure, int]]:
    """The figures that an index has as bounds of a slice: `x[:, : self.channels]`. Each with its axis."""
    index = index if isinstance(index, tuple) else (index,)
    after = False
    for i, part in enumerate(index):
        after = after or part is Ellipsis
        for bound in (part.start, part.stop) if isinstance(part, slice) else ():
            if isinstance(bound, Watched):
                yield bound.figure, i - len(index) + x.ndim if after else i


def read_elsewhere(module: nn.Module, attribute: str) -> bool:
    """Whether a method other than the constructor and the forward reads an attribute, for example one that fuses branches."""
    return attribute in _read(type(module))  # type: ignore[arg-type]


@cache
def _read(kind: type) -> frozenset[str]:
    read: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("torch.") or base is object:
            continue
        for name, value in vars(base).items():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if isinstance(function, FunctionType) and name not in ("__init__", "forward", "extra_repr", "__repr__"):
                read |= _names(function.__code__)
    return frozenset(read)


def _names(code: CodeType) -> set[str]:
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names(constant)
    return found
