"""How the settings of several runs differ: one column per setting, from everything on their cards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateurs.artifact import Card
from secateurs.artifact.history import Round
from secateurs.markup import Markup
from secateurs.report.page.panels.record import MAIN, as_text, settings, steps
from secateurs.report.page.run import Run

# Results of a run, and settings shown elsewhere. Everything else on a card is a setting, also in later versions.
FOUND = frozenset({
    "after", "before", "calibrated", "cut", "error", "files", "format", "history", "history_version", "kernels", "latency",
    "seconds", "state", "stripes", "version", "warnings", "widths",
})  # fmt: skip
TOLD = frozenset({"earlier", "method", "rounds", "seed"})
PARTS = {  # their fields have separate columns, except these
    "source": ("spec", "plans"), "data": ("data",), "limits": (), "signature": (), "versions": (),
}  # fmt: skip
LONGEST = 60  # characters of a cell
ABSENT = "-"
Named = tuple[str, Mapping[str, Any]]  # a name and its settings


@dataclass(frozen=True)
class Cell:
    """A cell of the table. key: what the table is sorted by. None comes last in both directions."""

    text: str
    key: float | str | None
    href: str | None = None
    symbol: Markup | None = None


Column = tuple[str, bool, list[Cell]]  # the heading, whether it holds numbers, a cell for each run


def column(head: str, values: Sequence[Any]) -> Column:
    """Make a column from values on cards. Long texts are shortened, and numbered if two of them then look the same."""
    number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values if v is not None)
    whole = [ABSENT if v in (None, [], {}, "") else as_text(v) for v in values]
    known: dict[str, list[str]] = {}  # shortened → the full texts
    for text in whole:
        if text not in (texts := known.setdefault(_short(text), [])):
            texts.append(text)
    cells = []
    for text, value in zip(whole, values, strict=True):
        several = known[_short(text)]
        shown = f"{_short(text)} ({several.index(text) + 1})" if len(several) > 1 else _short(text)
        cells.append(Cell(shown, None if text == ABSENT else value if number else text.lower()))
    return head, number, cells


def differing(columns: Iterable[Column]) -> list[Column]:
    """Return the columns in which runs differ."""
    return [one for one in columns if len({cell.text for cell in one[2]}) > 1]


def asked(runs: Sequence[Run]) -> list[Column]:
    """Return a column for each setting on the cards, except method, seed, network and data."""
    cards = [run.card for run in runs]
    columns = [
        column("budget", _named([[("", card.budget or {})] for card in cards], ("macs", "params", "latency", "ms"))),
        column("recovery", [text or "none" for text in _named([list(steps(card)) for card in cards], MAIN)]),
        column("rounds", [_rounds(card) for card in cards]),
        column("task", _named([[] if c.task is None else [(c.task.name, c.task.model_extra or {})] for c in cards])),
    ]
    names = dict.fromkeys(name for card in cards for name in (*type(card).model_fields, *(card.model_extra or {})))
    for name in (n for n in names if n not in FOUND | TOLD | {"budget", "recover", "task"}):
        values = [_plain(getattr(card, name)) for card in cards]
        if not any(isinstance(value, Mapping) for value in values):
            columns.append(column(_head(name), values))
            continue
        parts = [value if isinstance(value, Mapping) else {} for value in values]
        for key in dict.fromkeys(key for part in parts for key in part if key not in PARTS.get(name, ())):
            head = _head(key) if name in PARTS else f"{_head(name)}: {_head(key)}"
            columns.append(column(head, [part.get(key) for part in parts]))
    return columns


def _named(every: Sequence[Sequence[Named]], main: Sequence[str] = ()) -> list[str]:
    """Describe each run's steps with their settings: the main ones, and those that differ between runs."""
    values: dict[tuple[str, str], set[str]] = {}
    kinds = {
        name: {k for items in every for n, given in items if n == name for k in given} for i in every for name, _ in i
    }
    for name, given in (item for items in every for item in items):
        for key in kinds[name]:
            values.setdefault((name, key), set()).add(as_text(given.get(key)))

    def text(name: str, given: Mapping[str, Any]) -> str:
        shown = {k: v for k, v in given.items() if k in main or len(values[name, k]) > 1}
        return settings(name, shown, " ")

    return [", then ".join(text(*item) for item in items) for items in every]


def _rounds(card: Card) -> Any:
    """Return the number of rounds, or which round it was if the network comes from an intermediate one."""
    found = [entry for entry in card.history if isinstance(entry, Round)]
    if not found:
        return 1
    last = found[-1]
    return last.rounds if last.round == last.rounds else f"{last.round} of {last.rounds}"


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _head(name: str) -> str:
    return name.replace("_", " ")


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1].rstrip()}…"
