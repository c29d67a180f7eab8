"""The times of a piece of a network on a coarse grid of widths, and the extra cost of widths off the grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secateurs.deploy.target import Target
from secateurs.latency import runtimes
from secateurs.latency.geometry import Geometry

Array = np.ndarray
Point = tuple[int, int]  # widths, in and out

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # grid points, as shares of the largest width
SIZE = len(SHARES)
DIVISORS = (1, 2, 4, 8, 16, 32)  # widths are classified by the largest of these that divides them
LARGEST = 512 << 20  # maximum bytes of the pieces that are measured together


@dataclass(frozen=True)
class Table:
    """Seconds of a piece.

    wide_in, wide_out: the axes of the grid. seconds: at its points, (in, out). off_in, off_out: for each of `DIVISORS`, the
    factor by which a width that is a multiple of no larger divisor costs more than the grid says.
    """

    wide_in: tuple[int, ...]
    wide_out: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    off_in: tuple[float, ...] = (1.0,) * len(DIVISORS)
    off_out: tuple[float, ...] = (1.0,) * len(DIVISORS)


def unit(most: int) -> int:
    """Return the number that the widths on a grid are multiples of."""
    return next((d for d in reversed(DIVISORS) if most >= 2 * d), 1)


def axis(most: int, varies: bool) -> list[int]:
    """Return the grid's widths for a piece with at most this many channels."""
    if not varies:
        return [most]
    by = unit(most)
    return sorted({most, *(max(by, round(most * share / by) * by) for share in SHARES[:-1])})


def odd(most: int) -> tuple[int, list[int]]:
    """Return widths off the grid, in its middle, as a multiple of the unit and their offsets from it."""
    by = unit(most)
    base = max(by, round(most * 0.55 / by) * by)
    return base, [d for d in DIVISORS if d < by and base + d < most]


def points(geometry: Geometry, most: Point, varies: tuple[bool, bool]) -> list[Point]:
    """Return the widths to measure a piece at. varies: whether each width can change in this network."""
    if not geometry.square:
        base, more = odd(most[1]) if varies[1] else (most[1], [])
        return [(n, n) for n in (*axis(most[1], varies[1]), *(base + d for d in more))]
    ins, outs = axis(most[0], varies[0]), axis(most[1], varies[1])
    found = [(i, o) for i in ins for o in outs]
    (in_base, in_more), (out_base, out_more) = odd(most[0]), odd(most[1])
    fixed = out_base if varies[1] else most[1], in_base if varies[0] else most[0]
    found += [(in_base + d, fixed[0]) for d in in_more] if varies[0] else []
    found += [(fixed[1], out_base + d) for d in out_more] if varies[1] else []
    return list(dict.fromkeys(runtimes.channels(geometry, p) for p in found))


def measured(geometry: Geometry, wanted: Sequence[Point], target: Target, rounds: int = 2) -> dict[Point, float]:
    """Return the seconds at these widths: the minimum over several rounds, which excludes other load on the machine."""
    found: dict[Point, float] = {}
    for _ in range(rounds):
        for chunk in _chunks(geometry, wanted):
            for point, seconds in zip(chunk, runtimes.measure(geometry, chunk, target), strict=True):
                found[point] = min(seconds, found.get(point, np.inf))
    return found


def _chunks(geometry: Geometry, wanted: Sequence[Point]) -> list[list[Point]]:
    found: list[list[Point]] = [[]]
    size = 0
    for point in wanted:
        own = runtimes.nbytes(geometry, point)
        if found[-1] and size + own > LARGEST:
            found.append([])
            size = 0
        found[-1].append(point)
        size += own
    return found


def table(geometry: Geometry, samples: dict[Point, float], most: Point, varies: tuple[bool, bool]) -> Table:
    """Return the table of the measurements at `points`."""
    outs = axis(most[1], varies[1])
    if not geometry.square:
        line = [samples[n, n] for n in outs]
        off = _off(odd(most[1]), lambda n: samples.get((n, n)), outs, line) if varies[1] else Table.off_out
        return Table((0,), tuple(outs), (tuple(line),), Table.off_in, off)
    ins = axis(most[0], varies[0])

    def at(i: int, o: int) -> float | None:
        return samples.get(runtimes.channels(geometry, (i, o)))

    grid = np.array([[samples[runtimes.channels(geometry, (i, o))] for o in outs] for i in ins])
    off_in, off_out = Table.off_in, Table.off_out
    (in_base, _), (out_base, _) = odd(most[0]), odd(most[1])
    fixed_in, fixed_out = in_base if varies[0] else most[0], out_base if varies[1] else most[1]
    if varies[0]:
        line_in = [float(np.interp(fixed_out, outs, row)) for row in grid]
        off_in = _off(odd(most[0]), lambda n: at(n, fixed_out), ins, line_in)
    if varies[1]:
        line_out = [float(np.interp(fixed_in, ins, column)) for column in grid.T]
        off_out = _off(odd(most[1]), lambda n: at(fixed_in, n), outs, line_out)
    return Table(tuple(ins), tuple(outs), tuple(map(tuple, grid.tolist())), off_in, off_out)


def _off(middle: tuple[int, list[int]], at: object, axis: Sequence[int], line: Sequence[float]) -> tuple[float, ...]:
    """Return the factors of widths off the grid. A coarser step never costs more than a finer one."""
    base, more = middle
    found = []
    for d in DIVISORS:
        seconds = at(base + d) if d in more else None  # type: ignore[operator]
        found.append(1.0 if seconds is None else max(1.0, seconds / float(np.interp(base + d, axis, line))))
    for i in range(len(found) - 2, -1, -1):
        found[i] = max(found[i], found[i + 1])
    return tuple(found)


class Tables:
    """Several tables that are read together. Widths between the points of a grid are interpolated."""

    def __init__(self, tables: Sequence[Table]) -> None:
        n = len(tables)
        self._axes = np.zeros((2, n, SIZE))
        self._seconds = np.zeros((n, SIZE, SIZE))
        self._off = np.array([[t.off_in for t in tables], [t.off_out for t in tables]], dtype=np.float64)
        for i, t in enumerate(tables):
            for which, axis in enumerate((t.wide_in, t.wide_out)):
                beyond = [axis[-1] + 1e9 * (k + 1) for k in range(SIZE - len(axis))]
                self._axes[which, i] = [*axis, *beyond]
            grid = np.array(t.seconds)
            self._seconds[i] = np.pad(grid, [(0, SIZE - grid.shape[0]), (0, SIZE - grid.shape[1])], mode="edge")

    def __call__(self, at: Array, wide_in: Array, wide_out: Array) -> Array:
        """Return the seconds of these tables at these widths, which may be fractional: (pieces,) each."""
        (i, u), (o, v) = self._place(0, at, wide_in), self._place(1, at, wide_out)
        s = self._seconds
        low = s[at, i, o] * (1 - v) + s[at, i, o + 1] * v
        high = s[at, i + 1, o] * (1 - v) + s[at, i + 1, o + 1] * v
        found = np.maximum(low * (1 - u) + high * u, 0.1 * s[at, 0, 0])
        off = np.maximum(self._factor(0, at, wide_in), self._factor(1, at, wide_out))
        return np.asarray(found * off)

    def _place(self, which: int, at: Array, x: Array) -> tuple[Array, Array]:
        """Return the cell of the grid and the place in it. Widths below the first point extend the slope of the first cell."""
        axes = self._axes[which][at]
        cell = np.clip((axes <= x[:, None]).sum(1) - 1, 0, SIZE - 2)
        rows = np.arange(len(at))
        first, last = axes[rows, cell], axes[rows, cell + 1]
        return cell, np.minimum((x - first) / (last - first), 1.0)

    def _factor(self, which: int, at: Array, x: Array) -> Array:
        whole = np.rint(x)
        exact = np.abs(x - whole) < 1e-6
        place = np.zeros(len(x), dtype=np.int64)
        for k, d in enumerate(DIVISORS):
            place = np.where(whole % d == 0, k, place)
        largest = self._axes[which][at]
        full = (largest == whole[:, None]).any(1)  # a width on the grid was measured itself
        return np.where(exact & ~full, self._off[which][at, place], 1.0)
