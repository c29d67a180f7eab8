"""Make a network wider, the inverse of cutting. Channels are copied, and their consumers' weights are split
among the copies, so that the wider network computes the same function (Net2Net, Chen et al., ICLR 2016)."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from secateurs.errors import PlanError, Setting, VerificationError
from secateurs.files import faults, shown
from secateurs.graph import Cost, count
from secateurs.graph.channels import ChannelGroup, named_tensors
from secateurs.graph.copies import copied
from secateurs.plans.plan import Attribute, Kept, PrunableGraph, Size, Sizes, repeats_a_width, trace
from secateurs.surgery.compare import disagreement
from secateurs.surgery.culprits import blamed
from secateurs.surgery.slice import remade, take
from secateurs.surgery.verify import TOLERANCE, check_deterministic, explained, outputs

Array = np.ndarray
Shape = tuple[int, ...]
_MOST = 2**34  # parameters: 64 GiB in float32, in addition to the original network


@dataclass(frozen=True)
class Growth:
    """How a network is widened: the source of each index of the wider axes, and how consumers split their weights."""

    before: Mapping[str, int]  # widths of the groups that grow
    widths: Mapping[str, int]  # the widths afterward
    index: Mapping[str, Mapping[int, Kept]]  # parameter → axis → old indices, copies next to their originals
    shares: Mapping[
        tuple[str, int], Array
    ]  # (parameter, axis) that consume channels → (levels, new length), see `_share`
    shapes: Mapping[str, Shape]  # of those parameters afterward
    attributes: Mapping[tuple[str, str], Any]  # (module, attribute) → value afterward
    exact: bool  # no normalization computes its statistics over widened channels

    def record(self) -> dict[str, Any]:
        """Return the input of `resized`, which is JSON-serializable."""
        return {
            "before": dict(self.before),
            "widths": dict(self.widths),
            "shapes": {p: list(s) for p, s in self.shapes.items()},
            "attributes": [[m, a, list(v) if isinstance(v, tuple) else v] for (m, a), v in self.attributes.items()],
        }


def wider(
    graph: PrunableGraph,
    widths: float | Mapping[str, int],
    *,
    scope: Literal["internal", "all"] = "internal",
    allow_inexact: bool = False,
) -> dict[str, int]:
    """Return the target widths of the groups that grow. If `widths` is a factor, each group in scope grows by it, rounded.

    Raises PlanError for a factor that widens no group, a width below the group's own, and a named group that cannot be widened.
    """
    if isinstance(widths, Mapping):
        found = {}
        for name, width in widths.items():
            group = graph[name]
            if (why := _whole(group, allow_inexact)) is not None:
                raise PlanError(f"Group {name} cannot be widened: {why}.")
            if isinstance(width, bool) or not isinstance(width, int | np.integer) or width < group.size:
                raise PlanError(
                    f"Group {name} has {group.size} channels and cannot be widened to "
                    f"{width!r}: pass an integer above {group.size}."
                )
            if width > group.size:
                found[group.name] = int(width)
        return found
    if isinstance(widths, bool) or not isinstance(widths, int | float) or not 1 < widths < math.inf:
        raise PlanError(
            f"widths={widths!r} is not a valid factor: a network is widened by a factor above 1, such as 1.5."
        )
    groups = [g for g in graph.groups if _whole(g, allow_inexact) is None and (scope == "all" or g.internal)]
    found = {g.name: int(g.size * widths + 0.5) for g in groups}
    found = {g.name: found[g.name] for g in groups if found[g.name] > g.size}
    if not found:
        raise PlanError(
            f"No channel group of scope {scope!r} can be widened by {widths:g}: only prunable groups can be widened, "
            "and `secateurs inspect` lists them.",
            hint=("A larger factor", *((" or ", Setting("scope", "all")) if scope == "internal" else ()), " may help."),
        )
    return found


def growth(graph: PrunableGraph, widths: Mapping[str, int], *, seed: int = 0) -> Growth:
    """Return how the network is widened to these widths, which `wider` returns. seed: for the choice of the copied channels and
    the shares."""
    # parameter → axis → (3, n): for each position the widened group (or -1), the channel, its number of copies
    slots: dict[str, dict[int, Array]] = {}
    reads: set[tuple[str, int]] = set()
    copies: dict[str, Array] = {}
    tables: list[tuple[Array, Array]] = []  # for each group: the first copy of each channel, the shares (levels, width)
    for name, width in widths.items():
        group = graph[name]
        draw = np.random.default_rng([seed, zlib.crc32(name.encode())])
        times = 1 + _spread(width - group.size, group.size, draw)
        copies[name] = times
        tables.append((np.cumsum(times) - times, _shares(times, draw)))
        for slot in group.slots:
            n = graph.shapes[slot.param][slot.axis]
            at = slots.setdefault(slot.param, {}).setdefault(slot.axis, np.array([[-1], [-1], [1]]).repeat(n, axis=1))
            at[0, slot.index] = len(tables) - 1
            at[1, slot.index] = np.arange(group.size)[:, None]
            at[2, slot.index] = times[:, None]
            if slot.consumes:
                reads.add((slot.param, slot.axis))
    index: dict[str, dict[int, Kept]] = {}
    shares: dict[tuple[str, int], Array] = {}
    tuples: dict[bytes, Kept] = {}
    for param, axes in slots.items():
        for axis, at in axes.items():
            old, copy = _layout(at)
            index.setdefault(param, {})[axis] = tuples.setdefault(old.tobytes(), tuple(old.tolist()))
            if (param, axis) in reads:
                shares[param, axis] = _shares_of(at[:, old], copy, tables)
    shapes = {
        p: tuple(len(axes[a]) if a in axes else n for a, n in enumerate(graph.shapes[p])) for p, axes in index.items()
    }
    attributes = graph.rewrites(copies)
    exact = all(graph[name].exact for name in widths)
    before = {name: graph[name].size for name in widths}
    return Growth(before, dict(widths), index, shares, shapes, attributes, exact)


def grow(model: nn.Module, how: Growth) -> nn.Module:
    """Return a new, wider module; the given one is not modified."""
    own = named_tensors(model)
    arrays: dict[int, Array] = {}
    new = {}
    for name, axes in how.index.items():
        w = take(own[name], axes, arrays)
        for axis in axes:
            if (name, axis) in how.shares:
                w = _share(w, axis, how.shares[name, axis])
        new[name] = w
    return remade(model, new, how.attributes)


def widened(
    model: nn.Module,
    example_inputs: Any,
    widths: float | Mapping[str, int],
    *,
    scope: Literal["internal", "all"] = "internal",
    allow_inexact: bool = False,
    seed: int = 0,
    example_targets: Any = None,
) -> tuple[nn.Module, Growth, PrunableGraph]:
    """Widen and verify a network: see `secateurs.widen`. Returns the wider network, its `Growth` and its graph.
    example_targets: as for `trace`."""
    graph = trace(model, example_inputs, allow_inexact=allow_inexact, example_targets=example_targets)
    found = wider(graph, widths, scope=scope, allow_inexact=allow_inexact)
    if (params := _cost(graph, found).params) > _MOST:
        raise PlanError(
            f"At these widths the network would have {params:,} parameters, more than "
            f"the limit of {_MOST:,}: choose smaller widths."
        )
    how = growth(graph, found, seed=seed)
    wide = grow(model, how)
    return wide, how, check_widened(model, wide, how, graph, example_inputs, example_targets)


def check_widened(
    model: nn.Module,
    wide: nn.Module,
    how: Growth,
    graph: PrunableGraph,
    example_inputs: Any,
    example_targets: Any = None,
) -> PrunableGraph:
    """Compare the outputs of the two networks in eval mode (if the growth is exact), and return the graph of the wide network.
    If float32 is inconclusive, the comparison is repeated in float64.

    Raises VerificationError if the outputs differ, or if the wide network does not run, has a different cost than the graph
    predicts, or has other widths than requested. If outputs differ or the network does not run, the message names the groups
    that cause it.
    """
    _, wrong = _judged(model, wide, how.exact, example_inputs)
    if wrong:
        check_deterministic(model, example_inputs)

        def fails(names: list[str]) -> bool:
            part = growth(graph, {n: how.widths[n] for n in names})
            return bool(_judged(model, grow(model, part), how.exact, example_inputs)[1])

        which = blamed(list(how.widths), fails)
        come = (
            f"The cause is the widening of {which}"
            if which
            else f"The failure needs several of its {len(how.widths)} groups together"
        )
        raise VerificationError(
            f"{wrong} {come}: a constant in the code may only fit the old width. Widen only the other groups, {{group: width}}."
        )
    cost, expected = count(wide, example_inputs), _cost(graph, how.widths)
    if cost != expected:
        raise VerificationError(f"The widened network costs {cost}, expected {expected} at these widths.")
    traced = trace(wide, example_inputs, allow_inexact=not how.exact, example_targets=example_targets)
    again = {g.name: g.size for g in traced.groups}
    other = [f"{n} ({again.get(n)}, not {w})" for n, w in how.widths.items() if again.get(n) != w]
    if other:
        raise VerificationError(
            f"A trace of the widened network has other widths than requested: {', '.join(other[:3])}."
        )
    return traced


def _judged(model: nn.Module, wide: nn.Module, exact: bool, example_inputs: Any) -> tuple[float, str]:
    """Return the difference and a message about it, which is empty if the networks agree or the growth is not exact."""
    try:
        error = _difference(model, wide, example_inputs, torch.float32)
    except _WideError as failure:
        return float("inf"), str(failure)
    if not exact or error <= TOLERANCE:
        return error, ""
    with contextlib.suppress(VerificationError):  # a network that creates float32 tensors may not run in float64
        error = _difference(model, wide, example_inputs, torch.float64)
    if error <= TOLERANCE:
        return error, ""
    return error, (
        f"The widened network differs from the given one by {error:.1e} of the output's range (at most {TOLERANCE:.0e} "
        f"is allowed)."
    )


class _WideError(VerificationError):
    """The widened network does not run."""


class Widening(BaseModel):
    """The JSON form of a growth, the input of `resized`. See `Growth` for the fields."""

    before: dict[str, Size] = {}
    widths: dict[str, Size] = {}
    shapes: dict[str, Sizes]
    attributes: list[Attribute]


def resized(model: nn.Module, record: Mapping[str, Any] | Widening) -> nn.Module:
    """Return a network of the recorded shapes (see `Growth.record`) to load weights into. It needs no trace, and the values of
    the resized tensors are arbitrary. Raises PlanError for a record that is damaged or for another network."""
    try:
        record = record if isinstance(record, Widening) else Widening.model_validate(record)
    except ValidationError as error:
        raise PlanError(f"The record of a widened network is not valid: {faults(error)}.") from None
    own, modules = named_tensors(model), dict(model.named_modules())
    attributes = {(m, a): tuple(v) if isinstance(v, list) else v for m, a, v in record.attributes}
    if sum(map(math.prod, record.shapes.values())) > _MOST:
        raise PlanError(
            f"The record widens a network beyond the limit of {_MOST:,} parameters: there is not enough memory."
        )
    new = {}
    for name, shape in record.shapes.items():
        old = tuple(own[name].shape) if name in own else None
        if old is None or len(old) != len(shape) or any(n < o for n, o in zip(shape, old, strict=True)):
            raise PlanError(
                f"{shown(name)} was widened to {tuple(shape)}; this network has {old or 'no such parameter'}."
            )
        try:
            new[name] = own[name].detach().new_zeros(shape)
        except (RuntimeError, MemoryError) as error:
            raise PlanError(
                f"{shown(name)} was widened to {tuple(shape)}: there is not enough memory for it ({error})"
            ) from None
    for module, attribute in attributes:
        if not repeats_a_width(modules.get(module), attribute):
            raise PlanError(
                f"The record of a widened network sets {shown(f'{module}.{attribute}')}: it is damaged or for another "
                "network."
            )
    return remade(model, new, attributes)


def _cost(graph: PrunableGraph, widths: Mapping[str, int]) -> Cost:
    """Return `graph.cost` for widths above the network's own."""
    vector = graph.sizes.copy()
    for name, width in widths.items():
        vector[graph.index(name)] = width
    return graph.cost(vector)


def _whole(group: ChannelGroup, allow_inexact: bool) -> str | None:
    """Return the reason that a group cannot be widened, or None."""
    if not group.prunable and not (allow_inexact and group.only_inexact):
        return str(group.reason)
    both = next((s.param for s in group.slots if s.produces and s.consumes), None)
    return None if both is None else f"{both} creates its channels and reads them on one axis"


def _spread(more: int, size: int, draw: np.random.Generator) -> Array:
    """Return the number of additional copies of each of `size` channels: as even as possible, the remainder drawn at random."""
    times = np.full(size, more // size)
    times[draw.permutation(size)[: more % size]] += 1
    return times


def _layout(at: Array) -> tuple[Array, Array]:
    """Return the old position and copy number of each new position on one axis. `at`: (3, n), as in `growth`.

    A channel's contiguous positions (four for a pixel shuffle, H·W after flattening) are copied as a whole, directly
    after themselves: that is where the ops between the layers put the copies.
    """
    n = at.shape[1]
    fresh = np.r_[True, (at[:2, 1:] != at[:2, :-1]).any(axis=0) | (at[0, 1:] < 0)]
    start = np.flatnonzero(fresh)
    length = np.diff(np.r_[start, n])
    total = length * at[2, start]
    within = np.arange(total.sum()) - np.repeat(np.cumsum(total) - total, total)
    copy, offset = np.divmod(within, np.repeat(length, total))
    return np.repeat(start, total) + offset, copy


def _shares(times: Array, draw: np.random.Generator) -> Array:
    """Return the path to the share of every copy of every channel, (levels, copies). A weight is split in two until each copy
    has its part: f is the first part of a split, -f the rest, and 1 means no split.

    The parts are unequal; otherwise copies would get equal gradients and stay equal.
    """
    levels = math.ceil(math.log2(times.max()))
    ways = np.ones((levels, times.sum()))
    first = np.cumsum(times) - times
    for start, n in zip(first[times > 1], times[times > 1], strict=True):
        nodes = [(start, start + n)]
        for level in range(levels):
            halves = []
            for lo, hi in nodes:
                if hi - lo > 1:
                    middle, f = (lo + hi + 1) // 2, draw.uniform(0.5, 0.7)
                    ways[level, lo:middle], ways[level, middle:hi] = f, -f
                    halves += [(lo, middle), (middle, hi)]
            nodes = halves
    return ways


def _shares_of(at: Array, copy: Array, tables: list[tuple[Array, Array]]) -> Array:
    """Return the paths of all new positions of one axis, (levels, n). `at`: (3, n), as in `growth`, of the new positions."""
    ways = np.ones((max(len(t[1]) for t in tables), at.shape[1]))
    for g, (first, own) in enumerate(tables):
        here = np.flatnonzero(at[0] == g)
        ways[: len(own), here] = own[:, first[at[1, here]] + copy[here]]
    return ways


def _share(w: Tensor, axis: int, ways: Array) -> Tensor:
    """Split weights among the copies of the channels that they read. The parts sum to the old weight exactly,
    in any precision: the difference of a number and at least half of it is exact."""
    shape = [-1 if a == axis else 1 for a in range(w.ndim)]
    for level in ways:
        f = torch.from_numpy(level).float().to(w.device)  # not every device supports float64
        part = w * f.abs().to(w.dtype).view(shape)
        w = torch.where((f > 0).view(shape), part, w - part)
    return w


def _difference(model: nn.Module, wide: nn.Module, example_inputs: Any, dtype: torch.dtype) -> float:
    try:
        before = outputs(copied(model), example_inputs, dtype)
    except Exception as error:
        raise VerificationError(
            f"The model does not run on these example inputs in {dtype}: {type(error).__name__}: {error}"
        ) from error
    try:
        after = outputs(copied(wide), example_inputs, dtype)
    except Exception as error:
        raise _WideError(f"The widened network does not run: {type(error).__name__}: {error}.") from error
    with explained(model, example_inputs):
        return disagreement(after, before, "given")
