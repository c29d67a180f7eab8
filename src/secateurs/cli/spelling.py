"""How the command line spells the settings that messages name."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
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
    "methods": "method",
    "minutes": "time-limit",
    "num_cpus": "cpus",
    "num_gpus": "gpus",
    "ratios": "ratio",
    "shares": "share",
}  # … and of another one
FLAGS = {"dynamic_batch": (False, "--fixed-batch"), "dynamic_size": (True, "--any-size")}
SEVERAL = frozenset(
    {"exclude", "only", "ratios", "min_channels", "max_cut", "methods", "then"}
)  # may be given several times
TEXT = frozenset({"align", "latency", "macs", "ms", "params", "preset", "ranking", "target"})  # of a budget or a method
TUNED, MIMIC = frozenset({"finetune", "distil"}), frozenset({"mimic"})
TRAINED = TUNED | MIMIC
# Of an option of recovery: the setting that it gives, and to which phases.
RECOVERY = {
    "share": ("share", TUNED), "temperature": ("temperature", TUNED), "lr": ("lr", TUNED),
    "weight_decay": ("weight_decay", TUNED), "label_smoothing": ("label_smoothing", TUNED), "mimic_lr": ("lr", MIMIC),
    "mimic_function": ("function", MIMIC), "nodes": ("nodes", MIMIC), "lr_schedule": ("schedule", TRAINED),
    "precision": ("precision", TRAINED), "ema": ("ema", TRAINED), "optimizer": ("optimizer", TRAINED),
    "milestones": ("milestones", TRAINED), "gamma": ("gamma", TRAINED),
}  # fmt: skip


_flags: ContextVar[frozenset[str] | None] = ContextVar("flags", default=None)


@contextmanager
def speaking(flags: Iterable[str] | None) -> Iterator[None]:
    """Within it, settings are spelled for a command with these options; None for any."""
    token = _flags.set(None if flags is None else frozenset(flags))
    try:
        yield
    finally:
        _flags.reset(token)


def option(setting: Setting) -> str:
    """`scope='all'` → `--scope all`, `EPruner(beta=0.5)` → `--set beta=0.5`. One for which the command has no option is spelled
    as in the text of a method, a recovery or a budget, `beta=0.5`; one for which no command has any, as in Python."""
    words, flags = _options(setting), _flags.get()
    if words is None:
        return python(setting)
    other = setting.of is None and setting.name not in TEXT  # of another command, such as --resume: no text has it
    if words and (flags is None or other or all(word.partition(" ")[0] in flags for word in words)):
        return " ".join(words)
    return as_text(setting)


def _options(setting: Setting) -> list[str] | None:
    """The options that give the setting, none if it is written in text only; None if it is not of the command line."""
    name, value = setting.name, setting.value
    if isinstance(value, Study):  # its file, which --ratios takes, and not --ratio
        flag = name.replace("_", "-")
        return [f"--{flag} {value.name}", *[f"--{flag}-drop …"] * (value.drop is None)]
    if _is("secateurs.tasks.VisionTask", setting.of):
        return [f"--task-set {as_text(setting)}"]
    if _is("secateurs.deploy.Target", setting.of):
        return [f"--target-set {as_text(setting)}"]
    if "." in name or (_is("secateurs.methods.Method", setting.of) and name != "ranking"):
        return [f"--set {as_text(setting)}"]
    if name in FLAGS and value is FLAGS[name][0]:
        return [FLAGS[name][1]]
    if _is("secateurs.training.Phase", setting.of):
        mode = getattr(setting.of, "mode", None)
        found = [option for option, (own, modes) in RECOVERY.items() if own == name and mode in modes]
        if not found:
            return []
        flag = found[0].replace("_", "-")
    elif name in SAME or name in OTHER or name in SEVERAL:
        flag = OTHER.get(name, name.replace("_", "-"))
    else:
        return None
    if value is ... or value is True:
        return [f"--{flag}"]
    values = value if name in SEVERAL and isinstance(value, tuple) else (value,)
    return [f"--{flag}" if one is ... else f"--{flag} {_value(one)}" for one in values]


def as_text(setting: Setting) -> str:
    """As in the text of a method or a recovery: `beta=0.5`."""
    return f"{setting.name}={'…' if setting.value is ... else _value(setting.value)}"


def _is(kind: str, of: type | None) -> bool:
    """Whether a class is of this kind, which is imported now: not before a message names a setting."""
    module, _, name = kind.rpartition(".")
    return of is not None and issubclass(of, getattr(import_module(module), name))


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
    text = str(value)
    return shlex.quote(text) if " " in text else text
