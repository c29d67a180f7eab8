"""Methods as the command line names them, and those that prune what is left then (`--then`)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from secateurs.errors import ConfigError, Setting

if TYPE_CHECKING:
    from secateurs.methods import Method
    from secateurs.runs import Stage


def configured(method: str, settings: Sequence[str], ranking: str | None = None, prefix: str = "") -> Method:
    """The method with its settings; values are read as JSON where they are JSON, so that 0.7, true, null mean that.

    prefix: what stood before each of them.
    """
    from secateurs.methods import resolve

    values: dict[str, Any] = {} if ranking is None else {"ranking": ranking}
    for item in settings:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {prefix}{item}: write key=value, such as --set beta=0.7.")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if key in values and key == "ranking" and ranking is not None:
            if value == ranking:
                continue
            raise ConfigError(f"--ranking {ranking} and --set {item} contradict each other: give one of them.")
        if key in values:
            raise ConfigError(f"--set {prefix}{key} is given twice: give one of them.")
        values[key] = value
    found = resolve(method)
    try:
        return resolve(found, **values)
    except ConfigError as error:
        raise error.renamed(_prefixed(prefix)) from None


def _prefixed(prefix: str) -> Callable[[Setting], Setting]:
    return lambda setting: Setting(f"{prefix}{setting.name}", setting.value, setting.of)


def stages(then: Sequence[str], settings: Sequence[str], align: int) -> list[Stage]:
    """The stages that `--then METHOD:MACS` names, with those of the settings that say `METHOD.key=value`. Raises
    ConfigError for invalid settings."""
    from secateurs.runs import Stage

    found = []
    for text in then:
        name, _, figure = text.partition(":")
        name = name.strip()
        macs = _figure(text, figure)
        its = [item.partition(".")[2] for item in settings if item.startswith(f"{name}.")]
        found.append(Stage(configured(name, its, prefix=f"{name}."), macs, align, text))
    return found


def own(settings: Sequence[str], then: Sequence[str]) -> list[str]:
    """The settings of the first method: those that name no other one."""
    others = tuple(f"{text.partition(':')[0].strip()}." for text in then)
    return [item for item in settings if not (others and item.startswith(others))]


def _figure(text: str, figure: str) -> float | None:
    if not figure and ":" not in text:
        return None  # a method with a knob of its own
    try:
        value = float(figure)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(
            f"--then {text}: write METHOD:MACS, such as pff:0.3, the MACs that may stay: a fraction up to 1, or a figure."
        )
    return value
