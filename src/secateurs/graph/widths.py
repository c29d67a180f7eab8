"""Sizes that remember which channels they count: `x.shape[1]`, and whatever the user's code computes from it.

A `Width` is an int, and works wherever an int does. It also holds the expression that computed it. So it is known whether
a size in a `view` or a `split` follows the width of certain channels or is a constant, and the expression can be evaluated
at other widths.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from secateurs.graph.figures import Figure

Array = np.ndarray
# The labels that are counted; or a parameter, the axis whose labels are counted, and its size; or a number that a module keeps.
Leaf = Array | tuple[str, int, int] | Figure


@dataclass(frozen=True, eq=False)
class Expression:
    """A number as a function of widths: a leaf, or an operation on expressions and plain numbers."""

    op: Callable[..., Any] | None
    args: tuple[Any, ...]

    @classmethod
    def of(cls, leaf: Leaf) -> Expression:
        return cls(None, (leaf,))

    @property
    def leaf(self) -> Leaf | None:
        return self.args[0] if self.op is None else None

    def leaves(self) -> Iterator[Leaf]:
        if self.op is None:
            yield self.args[0]
            return
        for a in self.args:
            if isinstance(a, Expression):
                yield from a.leaves()

    def value(self, count: Callable[[Any], int]) -> Any:
        """Return the number, with this many labels at each leaf. Raises what the operations raise, for example for 1 // 0."""
        if self.op is None:
            return count(self.args[0])
        return self.op(*[a.value(count) if isinstance(a, Expression) else a for a in self.args])


class Listener(Protocol):
    """Receives what the code does with widths and no expression shows."""

    def compared(self, condition: Expression, outcome: bool) -> None:
        """The code asked for this condition, and may have taken another path for another outcome."""

    def escaped(self, expression: Expression) -> None:
        """The code uses the number as a plain int or float, as in `int(c)` or `math.sqrt(c)`."""


class Log:
    """The run that widths belong to. It listens until it is closed. Widths may outlive it, for example in a cache."""

    def __init__(self, listener: Listener) -> None:
        self._listener: Listener | None = listener

    def close(self) -> None:
        self._listener = None

    def compared(self, condition: Expression, outcome: bool) -> None:
        if self._listener is not None:
            self._listener.compared(condition, outcome)

    def escaped(self, expression: Expression) -> None:
        if self._listener is not None:
            self._listener.escaped(expression)


class Traced:
    """What widths and ratios have in common."""

    expression: Expression
    log: Log

    def __hash__(self) -> int:  # a key of a cache, which may return plain numbers
        self.log.escaped(self.expression)
        return hash(plain(self))

    def __bool__(self) -> bool:
        outcome = bool(plain(self))
        self.log.compared(Expression(operator.truth, (self.expression,)), outcome)
        return outcome

    def __int__(self) -> int:
        self.log.escaped(self.expression)
        return int(plain(self))

    def __float__(self) -> float:
        self.log.escaped(self.expression)
        return float(plain(self))

    def __repr__(self) -> str:  # `getattr(self, f"norm{c}")`
        self.log.escaped(self.expression)
        return repr(plain(self))

    def __format__(self, spec: str) -> str:
        self.log.escaped(self.expression)
        return format(plain(self), spec)

    def __reduce__(self) -> Any:  # copies and pickles are plain numbers
        value = plain(self)
        return type(value), (value,)

    def __deepcopy__(self, memo: Any) -> int | float:
        return plain(self)


class Width(Traced, int):
    """A number of channels, or an int computed from one."""

    def bit_length(self) -> int:
        self.log.escaped(self.expression)
        return int.bit_length(plain(self))


class Ratio(Traced, float):
    """A float computed from a number of channels."""


def plain(x: Any) -> Any:
    """Return a number without its expression; anything else as it is."""
    return int.__int__(x) if isinstance(x, int) else float.__float__(x) if isinstance(x, float) else x


def made(value: Any, expression: Expression, log: Log) -> Any:
    """Return a number with the expression that computed it."""
    if type(value) is int:
        width = int.__new__(Width, value)
        width.expression, width.log = expression, log
        return width
    if type(value) is float:
        log.escaped(expression)  # `math.sqrt` of a float cannot be followed
        ratio = float.__new__(Ratio, value)
        ratio.expression, ratio.log = expression, log
        return ratio
    return value


def width(n: int, leaf: Leaf, log: Log) -> Width:
    """Return the number of labels at a leaf, as a `Width`."""
    return made(n, Expression.of(leaf), log)


def _term(x: Any, log: Log) -> Any:
    """Return an operand: its expression if it belongs to the same run, else the number."""
    return x.expression if isinstance(x, Traced) and x.log is log else plain(x)


def _arithmetic(op: Callable[..., Any], reflected: bool) -> Any:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, int | float):
            if isinstance(other, list | tuple | str):  # [layer] * c
                self.log.escaped(self.expression)
            return NotImplemented
        a, b = (other, self) if reflected else (self, other)
        return made(op(plain(a), plain(b)), Expression(op, (_term(a, self.log), _term(b, self.log))), self.log)

    return method


def _power(reflected: bool) -> Any:
    two = _arithmetic(operator.pow, reflected)

    def method(self: Any, other: Any, modulus: Any = None) -> Any:
        if modulus is None:
            return two(self, other)
        for x in (self, other, modulus):
            if isinstance(x, Traced):
                x.log.escaped(x.expression)
        a, b = (other, self) if reflected else (self, other)
        return pow(plain(a), plain(b), plain(modulus))

    return method


def _unary(op: Callable[..., Any]) -> Any:
    def method(self: Any) -> Any:
        return made(op(plain(self)), Expression(op, (self.expression,)), self.log)

    return method


def _comparison(op: Callable[..., bool]) -> Any:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented
        outcome = op(plain(self), plain(other))
        self.log.compared(Expression(op, (self.expression, _term(other, self.log))), outcome)
        return outcome

    return method


def _round(self: Any, digits: int | None = None) -> Any:
    if digits is None:
        return made(round(plain(self)), Expression(round, (self.expression,)), self.log)
    return made(round(plain(self), digits), Expression(round, (self.expression, digits)), self.log)


_METHODS: dict[str, Any] = {
    **{f"__{n}__": _comparison(getattr(operator, n)) for n in ("lt", "le", "eq", "ne", "gt", "ge")},
    **{f"__{n}__": _unary(getattr(operator, n)) for n in ("neg", "pos", "abs")},
    **{f"__{n}__": _unary(getattr(math, n)) for n in ("floor", "ceil", "trunc")},
    "__round__": _round,
    "__pow__": _power(False),
    "__rpow__": _power(True),
    "__divmod__": lambda self, other: (self // other, self % other),
    "__rdivmod__": lambda self, other: (other // self, other % self),
}
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod"):
    _METHODS[f"__{_name}__"] = _arithmetic(getattr(operator, _name), False)
    _METHODS[f"__r{_name}__"] = _arithmetic(getattr(operator, _name), True)
for _name in ("lshift", "rshift", "and_", "or_", "xor"):
    _bits = _name.rstrip("_")
    setattr(Width, f"__{_bits}__", _arithmetic(getattr(operator, _name), False))
    setattr(Width, f"__r{_bits}__", _arithmetic(getattr(operator, _name), True))
for _name, _method in _METHODS.items():
    for _class in (Width, Ratio):
        setattr(_class, _name, _method)
