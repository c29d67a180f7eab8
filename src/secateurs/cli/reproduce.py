"""The command that repeats a run, from its `run.json`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from secateurs.cli.recipes import RecoverOptions
from secateurs.errors import SecateursError

WEIGHTS = "WEIGHTS.safetensors"
Settings = Mapping[str, Any]
Words = Iterator[list[str]]


def command(folder: Path) -> str | None:
    """The `secateurs prune` command of a run; None if the folder has no record of one, or its settings are such as no command
    can say: functions, data or a network of the user's own."""
    from secateurs.files import read_json
    from secateurs.runs.folder import State

    try:
        settings = read_json(folder / "run.json", State).settings
        parts = list(_parts(settings))
    except (SecateursError, LookupError, TypeError, ValueError, AttributeError):  # another version's, or damaged
        return None
    if settings.get("command", "prune") != "prune" or settings.get("functions"):
        return None
    digest = str(settings.get("weights") or "0" * 64)
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        return None
    note = f"# {WEIGHTS}: SHA-256 {settings['weights']}\n" if any(WEIGHTS in words for words in parts) else ""
    return note + " \\\n    ".join(" ".join(map(shlex.quote, words)) for words in parts)


def _parts(settings: Settings) -> Words:
    """The words of the command, line by line."""
    from secateurs.zoo import FAMILIES

    method = settings["method"]
    yield ["secateurs", "prune", settings["model"]]
    yield from _given(settings, "num_classes")
    if settings.get("weights") and settings["model"].partition(":")[0] in FAMILIES:  # else it is an artifact
        yield ["--weights", WEIGHTS]
    yield from _task(settings.get("task"))
    _check_data(settings)
    yield from _given(settings, "data", "normalize", "batch_size", "image_size", "channels", "skip_unreadable")
    yield from _method(method)
    yield from _budget(settings["budget"] or {})
    yield from _given(settings, "scope", "rounds", "schedule")
    yield from _limits(settings.get("limits") or {})
    yield from _given(settings, "allow_inexact")
    if not settings.get("calibrate", False):
        yield ["--no-calibrate"]
    yield from _recovery(settings["recover"])
    yield from _given(settings.get("pretrain") or {}, "pretrain_epochs", "pretrain_lr")
    yield ["--seed", str(settings["seed"])]
    yield ["--out", "RUN"]


def _given(settings: Settings, *names: str) -> Words:
    """Options of the same name as these settings, where they have a value."""
    for name in names:
        value = settings.get(name)
        if value is not None and value is not False:
            yield [f"--{name.replace('_', '-')}", *([] if value is True else [_number(value)])]


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _check_data(settings: Settings) -> None:
    """Raise ValueError for data that is no spec."""
    from secateurs.runs import DataSpec

    known = DataSpec(settings["data"]).settings()
    if not known.keys() <= settings.keys():
        raise ValueError("the data is an object of the user's")


def _task(task: Any) -> Words:
    from secateurs.grammar import word
    from secateurs.tasks import resolve

    if task is None:
        return
    usual = resolve(task["name"]).model_dump(mode="json")
    yield ["--task", task["name"]]
    yield from (["--task-set", f"{k}={word(v)}"] for k, v in task.items() if k != "name" and usual.get(k, v) != v)


def _method(method: Settings) -> Words:
    from secateurs.grammar import word
    from secateurs.methods.registry import registered

    yield ["--method", method["name"]]
    made = registered(method["name"])  # a name in a file is not followed
    usual = {} if made is None else made().model_dump(mode="json")
    changed = {k: v for k, v in method.items() if k != "name" and usual.get(k) != v}
    yield from (["--set", f"{k}={word(v)}"] for k, v in changed.items())


def _budget(budget: Settings) -> Words:
    from secateurs.deploy import Target
    from secateurs.grammar import word

    yield from _given(budget, *(name for name in budget if name not in ("align", "target")))
    timed = any(budget.get(name) is not None for name in ("latency", "ms"))
    if (align := budget.get("align")) not in (None, "auto" if timed else 1):
        yield ["--align", str(align)]
    if target := budget.get("target"):
        usual = {f.name: f.default for f in fields(Target)}
        yield ["--target", target["runtime"]]
        yield from (["--target-set", f"{k}={word(v)}"] for k, v in target.items() if k != "runtime" and v != usual[k])


def _limits(limits: Settings) -> Words:
    for name in ("exclude", "only"):
        yield from ([f"--{name}", str(pattern)] for pattern in limits.get(name) or ())
    for name, option in (("ratios", "ratio"), ("min_channels", "min-channels"), ("max_cut", "max-cut")):
        yield from ([f"--{option}", f"{pattern}={_number(n)}"] for pattern, n in (limits.get(name) or {}).items())


def _recovery(recorded: Any) -> Words:
    """The phases as text. Raises ValueError if no text makes them."""
    from secateurs.recovery.text import NONE, written
    from secateurs.runs.cut import recorded as as_recorded

    phases = recorded if isinstance(recorded, list) else [recorded] if recorded else []
    text = ", ".join(written(phase["mode"], phase) for phase in phases) or NONE
    if json.loads(json.dumps(as_recorded(RecoverOptions(recover=text).recipes()))) != json.loads(json.dumps(recorded)):
        raise ValueError("no text makes this recovery")
    yield ["--recover", text]
