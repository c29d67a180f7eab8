"""The networks and data that runs start from. Only runs that share them can be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from secateurs.report.page.run import Run

CLOSE = 1e-3  # relative: another device measures the same network a little differently


class Original(NamedTuple):
    """What runs start from. network: its spec. Originals with the same spec and data but different figures are numbered.
    data: its name on the card, or '-'."""

    network: str
    data: str

    def __str__(self) -> str:
        return self.network if self.data == "-" else f"{self.network} on {self.data}"


def originals(runs: Sequence[Run]) -> list[Original]:
    """Return what each run starts from. Runs that can be compared get the same original."""
    known: dict[Original, list[list[Run]]] = {}  # the runs with each name, grouped by their figures
    places = []
    for run in runs:
        groups = known.setdefault(_named(run), [])
        at = next((i for i, group in enumerate(groups) if all(_same(run, other) for other in group)), len(groups))
        if at == len(groups):
            groups.append([])
        groups[at].append(run)
        places.append((_named(run), at))
    return [
        Original(f"{name.network}, original {at + 1}" if len(known[name]) > 1 else name.network, name.data)
        for name, at in places
    ]


def caution(runs: Sequence[Run]) -> str:
    """Say in a sentence why these runs cannot be compared with each other. Empty if they can."""
    names = {_named(run) for run in runs}
    unlike = ["their networks"] * (len({name.network for name in names}) > 1)
    data = {name.data for name in names}
    unlike += ["their data"] * (len(data - {"-"}) > 1)
    unlike += ["the figures of their originals"] * (len(names) < len(set(originals(runs))))
    if not unlike:
        unknown = "-" in data and len(data) > 1
        return (
            "Not all of these runs can be compared: some do not say what data they were measured on." if unknown else ""
        )
    *first, last = unlike
    return f"Not all of these runs can be compared: {', '.join(first)}{' and ' * bool(first)}{last} differ."


def _named(run: Run) -> Original:
    source, data = run.card.source, run.card.data
    network = None if source is None else source.spec
    return Original(network or "custom network", str((None if data is None else data.data) or "-"))


def _same(a: Run, b: Run) -> bool:
    """Whether two originals with one name can be the same network, measured on the same examples."""
    x, y = a.networks[0][1], b.networks[0][1]
    pairs = [(x.top1, y.top1), (x.top5, y.top5), *((value, y.metrics.get(name)) for name, value in x.metrics.items())]
    known = [(p, q) for p, q in pairs if p is not None and q is not None]
    if x.loss is not None and y.loss is not None and (not known or (a.card.comparable and b.card.comparable)):
        known.append((x.loss, y.loss))
    return (x.macs, x.params) == (y.macs, y.params) and all(math.isclose(p, q, rel_tol=CLOSE) for p, q in known)
