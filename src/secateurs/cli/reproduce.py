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
        return spelled(read_json(folder / "run.json", State).settings)
    except SecateursError:  # another version's, or damaged
        return None


def shareable(settings: Settings) -> str | None:
    """The same from its settings, for others: without paths of this machine."""
    from secateurs.data.spec import shareable as without_path
    from secateurs.zoo import FAMILIES

    model, data = str(settings.get("model")), settings.get("data")
    if model.partition(":")[0] not in FAMILIES:  # the folder of an artifact
        model = f"PATH/{Path(model).name}"
    try:
        own = {} if data is None else {"data": without_path(str(data))}
    except SecateursError:  # another version's spec
        return None
    return spelled({**settings, "model": model, **own})


def spelled(settings: Settings) -> str | None:
    """The `secateurs prune` command with these settings, as `run.json` has them; None if no command can say them."""
    try:
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
    from secateurs.tasks import resolve

    if task is None:
        return
    usual = resolve(task["name"]).model_dump(mode="json")
    yield ["--task", task["name"]]
    yield from (["--task-set", f"{k}={_json(v)}"] for k, v in task.items() if k != "name" and usual.get(k, v) != v)


def _method(method: Settings) -> Words:
    from secateurs.methods.registry import registered

    yield ["--method", method["name"]]
    made = registered(method["name"])  # a name in a file is not followed
    usual = {} if made is None else made().model_dump(mode="json")
    changed = {k: v for k, v in method.items() if k != "name" and usual.get(k) != v}
    yield from (["--set", f"{k}={_json(v)}"] for k, v in changed.items())


def _budget(budget: Settings) -> Words:
    from secateurs.deploy import Target

    yield from _given(budget, *(name for name in budget if name not in ("align", "target")))
    timed = any(budget.get(name) is not None for name in ("latency", "ms"))
    if (align := budget.get("align")) not in (None, "auto" if timed else 1):
        yield ["--align", str(align)]
    if target := budget.get("target"):
        usual = {f.name: f.default for f in fields(Target)}
        yield ["--target", target["runtime"]]
        yield from (["--target-set", f"{k}={_json(v)}"] for k, v in target.items() if k != "runtime" and v != usual[k])


def _json(value: Any) -> str:
    """A value as `--set` reads it: JSON, or text that is not JSON."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value)


def _limits(limits: Settings) -> Words:
    for name in ("exclude", "only"):
        yield from ([f"--{name}", str(pattern)] for pattern in limits.get(name) or ())
    for name, option in (("ratios", "ratio"), ("min_channels", "min-channels"), ("max_cut", "max-cut")):
        yield from ([f"--{option}", f"{pattern}={_number(n)}"] for pattern, n in (limits.get(name) or {}).items())


SHARED = ("optimizer", "ema")  # by all recipes that train
TRAINED = ("lr", "weight_decay", "label_smoothing", "precision", "share", "temperature")


def _recovery(recorded: Any) -> Words:
    """The options that make these recipes. Raises ValueError if no options do."""
    from secateurs.runs.cut import recorded as as_recorded

    steps = recorded if isinstance(recorded, list) else [recorded] if recorded else []
    found: dict[str, Any] = {"recover": ",".join(map(_step, steps)) or "none"}
    for step in steps:
        usual = RecoverOptions()
        if step["mode"] == "reconstruct":
            continue
        mimics = step["mode"] == "mimic"
        names = (
            {"lr": "mimic_lr", "function": "mimic_function", "precision": "precision"}
            if mimics
            else {n: n for n in TRAINED}
        )
        for name, option in names.items():
            if step.get(name) is not None and not (name == "lr" and step[name] is None):
                found[option] = step[name]
        if mimics and step.get("nodes"):
            found["nodes"] = ",".join(step["nodes"])
        if step.get("schedule") == "step":
            found |= {"milestones": ",".join(f"{n:g}" for n in step["milestones"]), "gamma": step["gamma"]}
        elif step.get("schedule") != usual.lr_schedule:
            found["lr_schedule"] = step["schedule"]
        found |= {"ema": step["ema"]} if step.get("ema") else {}
        if step.get("optimizer") != ("adam" if mimics else "sgd"):
            found["optimizer"] = step["optimizer"]
    found = {k: v for k, v in found.items() if not _redundant(found, k, recorded)}
    if json.loads(json.dumps(as_recorded(RecoverOptions(**found).recipes()))) != json.loads(json.dumps(recorded)):
        raise ValueError("no options make this recovery")
    yield from ([f"--{name.replace('_', '-')}", _number(value)] for name, value in found.items())


def _redundant(options: Settings, name: str, recorded: Any) -> bool:
    """Whether the recipes are the same without an option."""
    from secateurs.runs.cut import recorded as as_recorded

    if name == "recover":
        return False
    try:
        without = RecoverOptions(**{k: v for k, v in options.items() if k != name}).recipes()
    except SecateursError:
        return False
    return bool(json.loads(json.dumps(as_recorded(without))) == json.loads(json.dumps(recorded)))


def _step(step: Settings) -> str:
    """'finetune:10'."""
    amount = step["images"] if step["mode"] == "reconstruct" else step["epochs"]
    return f"{step['mode']}:{_number(amount)}"
