"""How the command line spells the settings that messages name."""

from __future__ import annotations

from typing import Any

from secateurs.errors import Setting, python
from secateurs.proposed import Study

# Settings that are options of the same name …
SAME = frozenset({
    "align", "allow_inexact", "batch", "batch_size", "channels", "channels_last", "data", "device", "drop", "ema",
    "epochs", "from_base", "gamma", "image_size", "images", "int8", "label_smoothing", "latency", "lr", "macs", "method",
    "metric", "milestones", "mode", "model", "ms", "nodes", "normalize", "num_classes", "optimizer", "params", "precision",
    "preset",
    "pretrain_epochs", "pretrain_lr", "processes", "ranking", "recover", "recover_epochs", "recover_lr", "resume",
    "rounds", "schedule", "scope", "scratch_epochs", "search", "seconds", "seed", "share", "skip_unreadable", "target",
    "task", "temperature", "then", "threads", "track", "trust_code", "unit", "weight_decay", "weights", "widen", "workers",
})  # fmt: skip
OTHER = {
    "overwrite": "force",
    "folder": "out",
    "minutes": "time-limit",
    "num_cpus": "cpus",
    "num_gpus": "gpus",
    "ratios": "ratio",
    "shares": "share",
}  # … and of another one
FLAGS = {"dynamic_batch": (False, "--fixed-batch"), "dynamic_size": (True, "--any-size")}
LIMITS = frozenset({"exclude", "only", "ratios", "min_channels", "max_cut"})  # that may be given several times
MIMIC = {"lr": "mimic-lr", "function": "mimic-function"}


def option(setting: Setting) -> str:
    """`scope='all'` → `--scope all`, `EPruner(beta=0.5)` → `--set beta=0.5`; settings without an option as in Python."""
    name = setting.name
    if isinstance(setting.value, Study):  # its file, which --ratios takes, and not --ratio
        flag = name.replace("_", "-")
        return f"--{flag} {setting.value.name}" + f" --{flag}-drop …" * (setting.value.drop is None)
    pair = f"{name}={'…' if setting.value is ... else _value(setting.value)}"
    if _is_task(setting.of):
        return f"--task-set {pair}"
    if _is_target(setting.of):
        return f"--target-set {pair}"
    if "." in name or (_is_method(setting.of) and name != "ranking"):
        return f"--set {pair}"
    if name in FLAGS and setting.value is FLAGS[name][0]:
        return FLAGS[name][1]
    if name in MIMIC and _is_mimic(setting.of):
        flag = MIMIC[name]
    elif name == "schedule" and _is_recipe(setting.of):
        flag = "lr-schedule"
    elif name in SAME or name in OTHER or name in LIMITS:
        flag = OTHER.get(name, name.replace("_", "-"))
    else:
        return python(setting)
    if name in LIMITS:
        values = setting.value if isinstance(setting.value, tuple) else (setting.value,)
        return " ".join(f"--{flag}" if value is ... else f"--{flag} {_value(value)}" for value in values)
    return f"--{flag}" if setting.value is ... or setting.value is True else f"--{flag} {_value(setting.value)}"


def _is_method(of: type | None) -> bool:
    if of is None:
        return False
    from secateurs.methods import Method

    return issubclass(of, Method)


def _is_task(of: type | None) -> bool:
    if of is None:
        return False
    from secateurs.tasks import VisionTask

    return issubclass(of, VisionTask)


def _is_target(of: type | None) -> bool:
    if of is None:
        return False
    from secateurs.deploy import Target

    return issubclass(of, Target)


def _is_mimic(of: type | None) -> bool:
    if of is None:
        return False
    from secateurs.recovery import Mimic

    return issubclass(of, Mimic)


def _is_recipe(of: type | None) -> bool:
    if of is None:
        return False
    from secateurs.training import Recipe

    return issubclass(of, Recipe)


def _value(value: Any) -> str:
    """The value as it is typed."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, tuple | list):
        return ",".join(map(_value, value))
    if isinstance(value, dict):
        return ",".join(f"{key}={_value(item)}" for key, item in value.items())
    return str(value)
