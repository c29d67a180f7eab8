"""The registry of blocks: a class, the dimensions that it works in, and the options that are drawn for it."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fuzzing.parts import Block

B = TypeVar("B", bound=Block)
WIDTHS = (3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Kind:
    """One kind of block. options: `{argument: values to draw from}`."""

    type: type[Block]
    dims: tuple[int, ...]
    options: dict[str, Sequence[Any]]

    @property
    def name(self) -> str:
        return self.type.__name__

    @property
    def given(self) -> list[str]:
        """Arguments that the network gives it: of `c`, `o`, `dim` and `size`, those that it has."""
        found = list(inspect.signature(self.type.__init__).parameters)[1:]
        assert {*found} <= {"c", "o", "dim", "size", *self.options}, f"{self.name} has an argument that nothing gives"
        return [name for name in found if name not in self.options]

    @property
    def around(self) -> list[str]:
        """The options that are other blocks."""
        return [name for name, values in self.options.items() if values == ("block",)]

    def draw(self, at: random.Random, dim: int) -> dict[str, Any]:
        inner = sorted(name for name, kind in KINDS.items() if dim in kind.dims and not kind.around)
        drawn = {
            name: _pair(at.choice(inner), at, dim) if name in self.around else at.choice(values)
            for name, values in self.options.items()
        }
        return {**({"o": at.choice(WIDTHS)} if "o" in self.given else {}), **drawn}


KINDS: dict[str, Kind] = {}


def _pair(name: str, at: random.Random, dim: int) -> tuple[str, dict[str, Any]]:
    return name, KINDS[name].draw(at, dim)


def block(dims: tuple[int, ...] = (2,), **options: Sequence[Any]) -> Callable[[type[B]], type[B]]:
    """Register a kind of block. It takes of `c` (channels that it reads), `o` (a width), `dim` and `size` (of space) those that
    its arguments name, and of each option one of the values."""

    def register(made: type[B]) -> type[B]:
        assert made.__name__ not in KINDS, f"there are two blocks {made.__name__}"
        KINDS[made.__name__] = Kind(made, dims, options)
        return made

    return register
