"""The command that repeats a comparison, from its record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from secateurs.errors import SecateursError
from secateurs.grammar import written
from secateurs.recovery.text import as_text
from secateurs.runs import words
from secateurs.studies.comparison.contestants import recoveries
from secateurs.studies.comparison.outcomes import Outcome


def command(settings: Mapping[str, Any], cells: Sequence[Outcome]) -> str:
    """Return the `secateurs compare` command; empty if no command can express it: for functions, data or a network of the
    user's own, and for seeds other than the first ones."""
    if settings.get("functions"):
        return ""
    try:
        return words.line(list(_parts(settings, cells)), settings.get("weights")) or ""
    except (SecateursError, LookupError, TypeError, ValueError, AttributeError):  # another version's, or damaged
        return ""


def _parts(settings: Mapping[str, Any], cells: Sequence[Outcome]) -> words.Words:
    """Its words, line by line."""
    yield from words.begun("compare", settings)
    yield from (["--method", one] for one in dict.fromkeys(cell.method for cell in cells))
    yield from (["--budget", _budget(one, cells)] for one in dict.fromkeys(cell.budget for cell in cells))
    seeds = sorted({cell.seed for cell in cells})
    if seeds != list(range(len(seeds))):
        raise ValueError("the command counts its seeds from 0")
    yield ["--seeds", str(len(seeds))]
    yield from words.given(settings, "epochs")
    yield ["--recover", _said(settings["recover"])]
    yield from words.given(settings, "search", *["unit"] * (settings["unit"] != "macs"), "scope")
    yield from words.limits(settings.get("limits") or {})
    yield from words.given(settings, "allow_inexact")
    yield ["--out", "FOLDER"]


def _budget(text: str, cells: Sequence[Outcome]) -> str:
    """`macs=0.5 params=0.4` as `--budget` has it. The settings of a target are those that its times were measured with."""
    figures, target, _ = text.partition(" target=")
    parts = figures.split()
    if target:
        found = next(cell.latency["target"] for cell in cells if cell.budget == text and cell.latency is not None)
        parts += [f"target={found['runtime']}", *written({k: v for k, v in found.items() if k != "runtime"})]
    return ",".join(parts)


def recovery(recorded: Any) -> str | None:
    """Return `reconstruct, finetune lr=0.05`, with the non-default settings. The compute determines their length. None for a
    record of another version, or a damaged one."""
    try:
        return as_text([{k: v for k, v in phase.items() if k != "epochs"} for phase in recorded])
    except (LookupError, TypeError, ValueError, AttributeError):
        return None


def _said(recorded: Sequence[Mapping[str, Any]]) -> str:
    """The same. Raises ValueError for recipes that text does not say, such as names with spaces."""
    text = recovery(recorded) or ""
    again = [phase.record() for phase in recoveries(text)]
    ours, theirs = (
        [{k: v for k, v in phase.items() if k != "epochs"} for phase in phases] for phases in (again, recorded)
    )
    if json.loads(json.dumps(ours)) != json.loads(json.dumps(theirs)):
        raise ValueError("the text is not all of this recovery")
    return text
