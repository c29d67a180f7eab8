"""What each op does to the labels of its operands: one small function per op family.

A rule is called as `rule(t, *args, **kwargs)` after the op ran, with the op's own arguments; `t` is the running trace
(`t.labels(x)`, `t.axis(x, i)`, `t.unify(…)`, `t.freeze(…)`, `t.out` …). It answers the labels of the output: a dict
`{axis: labels}`, where labels has one integer per index of that axis, or a list of such dicts where the op has several
outputs. No answer means that the output carries no channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._ops import OpOverload, OpOverloadPacket

Rule = Callable[..., Any]
R = TypeVar("R", bound=Rule)
_RULES: dict[OpOverload | OpOverloadPacket, Rule] = {}


def rule(*ops: OpOverload | OpOverloadPacket) -> Callable[[R], R]:
    """Register a rule for these ops (an overload packet stands for all its overloads)."""

    def decorate(fn: R) -> R:
        for op in ops:
            if op in _RULES:
                raise ValueError(f"{op} has a rule already: {_RULES[op].__qualname__}")
            _RULES[op] = fn
        return fn

    return decorate


def register_rule(*ops: OpOverload | OpOverloadPacket, replace: bool = False) -> Callable[[R], R]:
    """Teach the tracer an op of your own (or, with `replace=True`, teach it better), as a decorator.

    >>> @sc.register_rule(torch.ops.mylib.scale)
    ... def scale(t, x, factor):          # x: (N, C, *)  factor: (C,)
    ...     t.unify(t.axis(x, 1), factor)
    ...     return t.labels(x)

    Raises ValueError where an op has a rule already and `replace` is not set.
    """
    if replace:
        for op in ops:
            _RULES.pop(op, None)
    return rule(*ops)


def present(*names: str) -> list[OpOverloadPacket]:
    """Those of these aten ops that the installed PyTorch has: some are newer than the oldest one that we support."""
    return [getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)]


def find(op: OpOverload) -> Rule | None:
    found = _RULES.get(op)
    return found if found is not None else _RULES.get(op.overloadpacket)


# Importing the families registers their rules.
from secateurs.graph.rules import contractions, movement, pointwise, reductions  # noqa: E402

__all__ = ["contractions", "find", "movement", "pointwise", "present", "reductions", "register_rule", "rule"]
