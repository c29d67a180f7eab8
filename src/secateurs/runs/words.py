"""Settings on record as the words of a command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from secateurs.grammar import word
from secateurs.runs.sources import DataSpec
from secateurs.tasks import resolve
from secateurs.zoo import FAMILIES

WEIGHTS = "WEIGHTS.safetensors"
Settings = Mapping[str, Any]
Words = Iterator[list[str]]


def line(parts: Sequence[Sequence[str]], weights: Any) -> str | None:
    """The command of these words, each list of them on a line of its own, and which weights it is about; None for weights that
    are not a digest."""
    digest = str(weights or "0" * 64)
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        return None
    note = f"# {WEIGHTS}: SHA-256 {digest}\n" if any(WEIGHTS in words for words in parts) else ""
    return note + " \\\n    ".join(" ".join(map(shlex.quote, words)) for words in parts)


def given(settings: Settings, *names: str) -> Words:
    """Options of the same name as these settings, where they have a value."""
    for name in names:
        value = settings.get(name)
        if value is not None and value is not False:
            yield [f"--{name.replace('_', '-')}", *([] if value is True else [number(value)])]


def number(value: Any) -> str:
    """In as few digits as say it."""
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def begun(command: str, settings: Settings) -> Words:
    """A command with the network, its weights, the task and the data. Raises ValueError for a network or data that no command
    can name."""
    _check_model(settings)
    yield ["secateurs", command, settings["model"]]
    yield from given(settings, "num_classes")
    yield from _weights(settings)
    yield from _task(settings.get("task"))
    _check_data(settings)
    yield from given(settings, "data", "normalize", "batch_size", "image_size", "channels", "skip_unreadable")


def _weights(settings: Settings) -> Words:
    """A file of weights, but for an artifact, which has its own."""
    if settings.get("weights") and settings["model"].partition(":")[0] in FAMILIES:
        yield ["--weights", WEIGHTS]


def _check_model(settings: Settings) -> None:
    """Raise ValueError for a network that is neither a spec nor a folder."""
    name = settings["model"]
    if settings.get("module") or not (":" in name or "/" in name or Path(name).is_dir()):
        raise ValueError("the network is an object of the user's")


def _check_data(settings: Settings) -> None:
    """Raise ValueError for data that is not a spec."""
    known = DataSpec(settings["data"]).settings()
    if settings["data"] is None or not known.keys() <= settings.keys():
        raise ValueError("the data is an object of the user's")


def _task(record: Any) -> Words:
    """A task, and its settings that are not the default ones."""
    if record is None:
        return
    usual = resolve(record["name"]).model_dump(mode="json")
    yield ["--task", record["name"]]
    yield from (["--task-set", f"{k}={word(v)}"] for k, v in record.items() if k != "name" and usual.get(k, v) != v)


def limits(record: Settings) -> Words:
    """What `Limits.record` gave."""
    for name in ("exclude", "only"):
        yield from ([f"--{name}", str(pattern)] for pattern in record.get(name) or ())
    for name, option in (("ratios", "ratio"), ("min_channels", "min-channels"), ("max_cut", "max-cut")):
        yield from ([f"--{option}", f"{pattern}={number(n)}"] for pattern, n in (record.get(name) or {}).items())
