"""Rules by op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch._ops import OpOverload, OpOverloadPacket

R = TypeVar("R", bound=Callable[..., Any])


@dataclass(frozen=True)
class Rule:
    """The effect of an op on labels. A rule that counts multiply-accumulates is also called for operands without labels."""

    function: Callable[..., Any]
    counts_macs: bool = False


_RULES: dict[OpOverload | OpOverloadPacket | str, Rule] = {}


def rule(*ops: OpOverload | OpOverloadPacket | str, counts_macs: bool = False) -> Callable[[R], R]:
    """Register a rule for these ops. An overload packet means all its overloads, and so does a name, `library::op`. An op that
    is given by name need not exist yet."""

    def decorate(function: R) -> R:
        for op in ops:
            if op in _RULES:
                raise ValueError(f"{op} already has a rule: {_RULES[op].function.__qualname__}")
            _RULES[op] = Rule(function, counts_macs)
        return function

    return decorate


def register_rule(
    *ops: OpOverload | OpOverloadPacket, replace: bool = False, counts_macs: bool = False
) -> Callable[[R], R]:
    """Register a rule for a custom op, as a decorator.

    >>> @sc.register_rule(torch.ops.mylib.scale)
    ... def scale(t, x, factor):          # x: (N, C, *)  factor: (C,)
    ...     t.unify(t.axis(x, 1), factor)
    ...     return t.labels(x)

    The rule is called as `rule(t, *args, **kwargs)` after the op has run, with the op's own arguments. See
    `secateurs.graph.Context` for what it can read from `t` and declare. It returns the labels of the output,
    `{axis: labels}`, a list of these for an op with several outputs, or None for an output without channels.

    replace: replace an existing rule of the op.
    counts_macs: the rule calls `t.cost`, and is also called for operands without labels.

    Raises ValueError if an op already has a rule and `replace` is not set.
    """
    if replace:
        for op in ops:
            _RULES.pop(op, None)
    return rule(*ops, counts_macs=counts_macs)


def present(*names: str) -> list[OpOverloadPacket]:
    """Return those of these aten ops that the installed PyTorch has. Some are newer than the oldest supported release."""
    return [getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)]


def find(op: OpOverload) -> Rule | None:
    for key in (op, op.overloadpacket, op._schema.name):
        found = _RULES.get(key)
        if found is not None:
            return found
    return None
