"""Build the latency model of a network on this machine: measure its pieces, or read earlier measurements, and fit it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from secateurs.deploy.clock import Spread
from secateurs.deploy.inputs import batch_of
from secateurs.deploy.target import Target, threaded
from secateurs.errors import ConfigError
from secateurs.graph import ChannelGroup
from secateurs.graph.modes import unwatched
from secateurs.latency import fits, table
from secateurs.latency.model import Fit, LatencyModel
from secateurs.latency.pieces import Form, Piece, batched, pieces
from secateurs.latency.stopwatch import Stopwatch, stopwatch
from secateurs.latency.store import Store
from secateurs.latency.table import Point, Table
from secateurs.plans import PrunableGraph
from secateurs.seeds import mix

Array = np.ndarray
Report = Callable[[str], None]

FITTED, HELD = 8, 20  # maximum numbers of cuts: to fit the model to, and to measure its error on
FEWEST = 4, 3  # minimum numbers of these cuts
PATIENCE = 30.0  # seconds for these measurements


def modeled(
    model: nn.Module,
    graph: PrunableGraph,
    inputs: Any,
    target: Target,
    *,
    groups: Sequence[ChannelGroup],
    report: Report = lambda line: None,
    seed: int = 0,
    fit: Fit | None = None,
) -> LatencyModel:
    """Build the latency model of a network on a target, fitted to random cuts of these groups that are measured end to end.

    The measurements of pieces and the fit are kept on disk. A fit that is in doubt is only used for a while.
    fit: the fit of a resumed run, which is used as it is.
    """
    target.check()
    made = tabulated(graph, inputs, target, report)
    store = Store(target)
    key = fits.key(made, groups)
    known = fit or fits.read(store, key)
    if known is not None:
        _warn(known, target, report)
        return made.with_fit(known)
    with stopwatch(model, inputs, target) as watch:
        made = made.with_fit(_fitted(made, graph, watch, groups, seed))
    fits.write(store, key, made.fit)
    report(
        f"latency model of {target}: {made.fit}; {made.fit.overhead:.0%} of {made.fit.seconds * 1000:.3g} ms do not depend on "
        f"widths; multiples of {made.liked} are fastest"
    )
    _warn(made.fit, target, report)
    return made


def _warn(fit: Fit, target: Target, report: Report) -> None:
    """Report that a fit is in doubt, and what follows from it."""
    if fit.doubt:
        report(
            f"the latency model of {target} is in doubt: {fit.doubt}. The cut itself is measured all the same. This model is "
            "used for ten minutes, then it is made again"
        )


def tabulated(graph: PrunableGraph, inputs: Any, target: Target, report: Report) -> LatencyModel:
    """Return the model from the pieces alone, without a fit."""
    found = batched(pieces(graph), batch_of(inputs), target.batch)
    if not found:
        raise ConfigError("The network has no layer whose time could be measured: limit its MACs or parameters.")
    store, tables = Store(target), dict[str, Table]()
    spans = _spans(found)
    with threaded(target):
        due = {g: table.points(g, most, varies) for g, (most, varies) in spans.items()}
        known = {g: store.read(g) for g in due}
        missing = {g: [p for p in ps if p not in known[g]] for g, ps in due.items()}
        if todo := [g for g in due if missing[g]]:
            began = time.perf_counter()
            report(f"measuring {sum(len(missing[g]) for g in todo)} widths of {len(todo)} kinds of layers on {target}")
            for g in todo:
                with unwatched():
                    new = table.measured(g, missing[g], target)
                store.write(g, new)
                known[g] = {**known[g], **new}
            kept = f"could not be kept in {store.folder}: {store.fault}" if store.fault else f"kept in {store.folder}"
            report(f"measured in {time.perf_counter() - began:.0f} s; {kept}")
    for g, (most, varies) in spans.items():
        tables[g.key] = table.table(g, known[g], most, varies)
    return LatencyModel(graph, found, tables, target)


def _spans(found: Sequence[Piece]) -> dict[Any, tuple[Point, tuple[bool, bool]]]:
    """Return the largest widths of each kind of piece, and which of the two vary."""
    spans: dict[Any, tuple[Point, tuple[bool, bool]]] = {}

    def varies(form: Form, most: int) -> bool:
        return bool(form.multiplicities) or form.full != most

    by_kind: dict[Any, list[Piece]] = {}
    for piece in found:
        by_kind.setdefault(piece.geometry, []).append(piece)
    for g, own in by_kind.items():
        most = tuple(
            max(1, round(max(f.full for f in forms))) for forms in ([p.wide_in for p in own], [p.wide_out for p in own])
        )
        move = any(varies(p.wide_in, most[0]) for p in own), any(varies(p.wide_out, most[1]) for p in own)
        spans[g] = (most[0], most[1]), move
    return spans


# -- the fit ----------------------------------------------------------------------------------------------------------


def _fitted(
    model: LatencyModel, graph: PrunableGraph, watch: Stopwatch, groups: Sequence[ChannelGroup], seed: int
) -> Fit:
    """Measure random cuts, the narrowest first. The error is that of a fit to some of them on the others."""
    seen: list[Array] = []
    ratios: list[float] = []
    seconds: list[float] = []
    noise: list[float] = []
    began = time.perf_counter()
    for number, widths in enumerate(cuts(model, graph, groups, seed)):
        late = time.perf_counter() - began > PATIENCE and number >= sum(FEWEST)
        if number == FITTED + HELD or late:
            break
        kept = {g.name: range(int(widths[graph.index(g.name)])) for g in groups}
        measured = watch.measure(graph.plan(kept, allow_inexact=True))
        seen.append(model.features(widths))
        ratios.append(measured.ratio)
        seconds.append(measured.before)
        noise.append(measured.noise)
    few = min(FITTED, max(FEWEST[0], len(ratios) // 3))
    fit = Fit.to(np.array(seen[:few]), ratios[:few], Spread.of(seconds).median if len(seconds) > 1 else seconds[0])
    weights = np.array([fit.pieces, fit.params, fit.macs])
    errors = [abs(float(x @ weights) + fit.overhead - r) / r for x, r in zip(seen[few:], ratios[few:], strict=True)]
    whole = Fit.to(np.array(seen), ratios, fit.seconds)  # fitted to all cuts, once the error is known
    return replace(whole, errors=tuple(round(e, 4) for e in errors), noise=round(float(np.median(noise)), 4))


def cuts(model: LatencyModel, graph: PrunableGraph, groups: Sequence[ChannelGroup], seed: int) -> Iterator[Array]:
    """Yield the widths of random cuts: the narrowest first, then cuts of all sizes in which groups differ by up to a half.
    Widths are multiples of the steps that are fast on the target."""
    generator = np.random.default_rng(mix(seed, "latency"))
    at = np.array([graph.index(g.name) for g in groups], dtype=np.int64)
    least = np.array([g.least for g in groups])
    sizes, steps = graph.sizes[at], model.steps[at]

    def of(shares: Array) -> Array:
        widths = graph.sizes.copy()
        stepped = np.maximum(np.rint(sizes * shares / steps), 1).astype(np.int64) * steps
        widths[at] = np.clip(stepped, np.minimum(least, sizes), sizes)
        return widths

    yield of(np.full(len(at), 0.1))
    share = 0.25
    while True:
        yield of(np.clip(share * generator.uniform(0.7, 1.4, len(at)), 0.1, 1.0))
        share = 0.25 + (share - 0.25 + 0.7 * 0.618) % 0.7  # spread evenly
