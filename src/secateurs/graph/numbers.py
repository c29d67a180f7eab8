"""Numbers in the user's code that depend on the number of channels: `x / x.shape[1]`, `x * conv.out_channels ** -0.5`.

Labels tell which channels are combined, not what a Python number was computed from. So the numbers that arithmetic
uses are recorded, and the check of a cut network compares them: one that has changed was computed from a width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

aten = torch.ops.aten
Array = np.ndarray
REASON = "the code computes with the number of channels"

_ARITHMETIC = frozenset({
    aten.add, aten.add_, aten.addcdiv, aten.addcmul, aten.div, aten.div_, aten.fill, aten.fill_, aten.floor_divide,
    aten.full, aten.full_like, aten.lerp, aten.lerp_, aten.mul, aten.mul_, aten.new_full, aten.pow,
    aten.pow_, aten.rsub, aten.scalar_tensor, aten.sub, aten.sub_,
})  # fmt: skip
MADE = frozenset({torch.tensor, torch.as_tensor, Tensor.new_tensor})  # calls whose numbers do not appear in any op
PLAIN, NUMBERS, RANDOM = 0, 1, 2
_KINDS: dict[Any, int] = {}


@dataclass(frozen=True)
class Number:
    """The numbers of one op, and the channels of what they are applied to."""

    op: Any
    values: tuple[float, ...]
    labels: tuple[Array, ...]
    where: str


def kind(op: Any) -> int:
    """Whether an op does arithmetic with numbers, draws random numbers, or neither."""
    found = _KINDS.get(op)
    if found is None:
        found = NUMBERS if op.overloadpacket in _ARITHMETIC else PLAIN
        found = RANDOM if torch.Tag.nondeterministic_seeded in op.tags else found
        _KINDS[op] = found
    return found


def values(args: Iterable[Any], kwargs: dict[str, Any]) -> tuple[float, ...]:
    """The Python numbers among an op's arguments."""
    return tuple(a for a in ((*args, *kwargs.values()) if kwargs else args) if type(a) in (int, float))


def written(*args: Any, **_: Any) -> tuple[float, ...]:
    """The numbers that a tensor is made from, in a call such as `torch.tensor(c)` or `x.new_tensor([c, 1.0])`."""
    leaves = [leaf for a in args if not isinstance(a, np.ndarray) for leaf in pytree.tree_leaves(a)]
    return values(leaves, {})


def changed(before: Sequence[Number], after: Sequence[Number], tolerance: float = 0.0) -> list[int]:
    """Positions of the numbers that differ in the second run; if its ops differ, the position of the first such op."""
    found: list[int] = []
    for i, (old, new) in enumerate(zip(before, after, strict=False)):
        if old.op is not new.op or len(old.values) != len(new.values):
            return [*found, i]
        if not all(_same(a, b, tolerance) for a, b in zip(old.values, new.values, strict=True)):
            found.append(i)
    return found if len(before) == len(after) else [*found, min(len(before), len(after))]


def _same(a: float, b: float, tolerance: float) -> bool:
    return math.isclose(a, b, rel_tol=tolerance) or (math.isnan(a) and math.isnan(b))
