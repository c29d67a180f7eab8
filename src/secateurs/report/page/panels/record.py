"""The record of a run: how it was made, with which settings and from what, and how to repeat it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from secateurs.artifact import Card
from secateurs.report.figures import duration
from secateurs.report.page.panel import Panel
from secateurs.report.page.run import Run
from secateurs.report.tables import signature, timed

MAIN = ("epochs", "steps", "images", "lr", "share", "nodes")  # settings of recovery that are always shown


def panel(run: Run) -> Panel:
    files = {name: value for name, value in run.card.files.model_dump(by_alias=True).items() if value}
    every = [("method", settings(run.card.method.name, run.card.method.model_extra or {}))]
    every += [("recovery", settings(mode, given)) for mode, given in steps(run.card)]
    facts = {"facts": list(_facts(run)), "settings": every, "command": run.command, "files": files}
    return Panel("record", "Record", facts)


def steps(card: Card) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the names and settings of the recovery recipes."""
    recover = card.recover
    for step in recover if isinstance(recover, list) else [recover]:
        if isinstance(step, Mapping):
            yield str(step.get("mode", "")), {k: v for k, v in step.items() if k != "mode"}


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    card = run.card
    if card.source is not None and card.source.spec is not None:
        yield "network", card.source.spec
    for line in [] if card.signature is None else signature(card.signature):
        name, _, rest = line.partition(" ")
        yield ("input", rest) if name == "input" else ("", line)
    if card.data is not None and card.data.data is not None:
        normalize = f", normalized as {card.data.normalize}" if card.data.normalize else ""
        yield "data", f"{card.data.data}{normalize}"
    if card.task is not None:
        yield "task", card.task.name
    if card.functions:
        yield "functions", f"{', '.join(card.functions)}: of the user's own"
    yield "method", card.method.name
    if card.budget:
        yield "budget", settings("", {k: v for k, v in card.budget.items() if v is not None})
    if card.latency is not None:
        yield "latency", timed(card.latency)
    if card.scope is not None:
        yield "scope", card.scope
    if card.limits is not None:
        yield "limits", settings("", {k: v for k, v in card.limits.model_dump(mode="json").items() if v})
    main = [settings(mode, {k: v for k, v in given.items() if k in MAIN}, " ") for mode, given in steps(card)]
    if main:
        yield "recovery", ", then ".join(main)
    if card.seed is not None:
        yield "seed", f"{card.seed}"
    if card.seconds is not None:
        yield "run time", duration(card.seconds)
    if card.versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in card.versions.items())


def settings(name: str, given: Mapping[str, Any], after: str = ": ") -> str:
    """Format settings, without those that are not set: 'npn: epochs 2, open 2'."""
    shown = ", ".join(f"{key} {as_text(value)}" for key, value in given.items() if value not in (None, [], {}, ""))
    return after.join(part for part in (name, shown) if part)


def as_text(value: Any) -> str:
    """Format a setting for a reader."""
    if isinstance(value, list | tuple):
        return " ".join(map(as_text, value))
    if isinstance(value, Mapping):
        return " ".join(f"{key}={as_text(item)}" for key, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
