"""The command that repeats a run, from its `run.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from secateurs.artifact import on_hub
from secateurs.data.spec import shareable as without_path
from secateurs.errors import SecateursError
from secateurs.files import read_json
from secateurs.grammar import word
from secateurs.methods.registry import MODULE, methods, registered
from secateurs.recovery.text import as_text, read
from secateurs.runs import words
from secateurs.runs.folder import State
from secateurs.runs.names import RUN
from secateurs.zoo import FAMILIES


def command(folder: Path) -> str | None:
    """The `secateurs prune` command of a run; None if the folder has no record of one, or its settings are such as no command
    can say: functions, data or a network of the user's own."""
    try:
        return spelled(read_json(folder / RUN, State).settings)
    except SecateursError:  # another version's, or damaged
        return None


def shareable(settings: words.Settings) -> str | None:
    """The same from its settings, for others: without paths of this machine."""
    model, data = str(settings.get("model")), settings.get("data")
    if model.partition(":")[0] not in FAMILIES and not on_hub(model):  # the folder of an artifact
        model = f"PATH/{Path(model).name}"
    elif "/" in model and not on_hub(model):  # timm:local-dir:/home/me/network
        model = f"{model[: model.index('/')]}PATH/{Path(model).name}"
    try:
        own = {} if data is None else {"data": without_path(str(data))}
    except SecateursError:  # another version's spec
        return None
    return spelled({**settings, "model": model, **own})


def spelled(settings: words.Settings) -> str | None:
    """The `secateurs prune` command with these settings, as `run.json` has them; None if no command can say them."""
    if settings.get("command", "prune") != "prune" or settings.get("functions"):
        return None
    try:
        return words.line(list(_parts(settings)), settings.get("weights"))
    except (SecateursError, LookupError, TypeError, ValueError, AttributeError):  # another version's, or damaged
        return None


def _parts(settings: words.Settings) -> words.Words:
    """The words of the command, line by line."""
    yield from words.begun("prune", settings)
    yield from _method(settings["method"])
    yield from _budget(settings["budget"] or {})
    yield from words.given(settings, "scope", "rounds", "schedule")
    yield from words.limits(settings.get("limits") or {})
    yield from words.given(settings, "allow_inexact")
    if not settings["calibrate"]:
        yield ["--no-calibrate"]
    yield from _recovery(settings["recover"])
    yield from words.given(settings.get("pretrain") or {}, "pretrain_epochs", "pretrain_lr")
    yield ["--seed", str(settings["seed"])]
    yield ["--out", "RUN"]


def _method(method: words.Settings) -> words.Words:
    name = method["name"]
    if name not in methods() and not name.startswith(MODULE):
        raise ValueError("the method is a class that only Python has")
    yield ["--method", name]
    made = registered(name)  # a name in a file is not followed
    usual = {} if made is None else made().model_dump(mode="json")
    changed = {k: v for k, v in method.items() if k != "name" and usual.get(k) != v}
    yield from (["--set", f"{k}={word(v)}"] for k, v in changed.items())


def _budget(budget: words.Settings) -> words.Words:
    yield from words.given(budget, *(name for name in budget if name not in ("align", "target")))
    timed = any(budget.get(name) is not None for name in ("latency", "ms"))
    if (align := budget.get("align")) not in (None, "auto" if timed else 1):
        yield ["--align", str(align)]
    if target := budget.get("target"):
        yield ["--target", target["runtime"]]
        yield from (["--target-set", f"{k}={word(v)}"] for k, v in target.items() if k != "runtime")


def _recovery(recorded: Any) -> words.Words:
    """The phases as text. Raises ValueError if no text makes them."""
    phases = recorded if isinstance(recorded, list) else [recorded] if recorded else []
    text = as_text(phases)
    again = [kind(**settings).record() for kind, settings in read(text)]
    if json.loads(json.dumps(again)) != json.loads(json.dumps(phases)):
        raise ValueError("no text makes this recovery")
    yield ["--recover", text]
