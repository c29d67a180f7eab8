"""Methods as the command line names them, and one after another (`--then`): what one left is pruned by the next."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateurs.errors import ConfigError

if TYPE_CHECKING:
    from secateurs import Budget, Method
    from secateurs.artifact import Card


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
        text = str(error).removeprefix(f"{type(found).__name__}: ").replace("Its settings", f"{method}'s settings")
        raise ConfigError(text if text.startswith("ranking=") else f"--set {prefix}{text}") from None


@dataclass(frozen=True)
class Stage:
    """A method, and the MACs that may stay after it: a share of the network that the command was given, or a figure."""

    method: Method
    macs: float | None
    align: int
    text: str  # METHOD:MACS
    prefix: str  # of its settings, on the command line

    def limit(self, original: int) -> int | None:
        """The MACs that may stay, of so many that the network has that the command was given."""
        if self.macs is None:
            return None
        return max(2, int(self.macs * original)) if self.macs <= 1 else int(self.macs)

    def budget(self, original: int) -> Budget | None:
        """The same as what is left of that network has to meet it."""
        from secateurs import Budget

        limit = self.limit(original)
        return None if limit is None else Budget(limit, align=self.align)


def read(then: Sequence[str], settings: Sequence[str], first: Method, align: int) -> list[Stage]:
    """The stages that `--then METHOD:MACS` names, with those of the settings that say `METHOD.key=value`.

    first: the method before them. Raises ConfigError for what makes no sense.
    """
    stages: list[Stage] = []
    method = first
    for text in then:
        name, _, figure = text.partition(":")
        name = name.strip()
        left = _figure(text, figure)
        if method.cuts == "stripes":
            raise ConfigError(
                f"--then {text}: {method.name} cuts stripes, and what a stripe convolution puts out cannot be cut any "
                f"further. Cut stripes last: --method {name} --then {method.name}:MACS."
            )
        its = [item.partition(".")[2] for item in settings if item.startswith(f"{name}.")]
        method = configured(name, its, prefix=f"{name}.")
        stages.append(Stage(method, left, align, text, f"{name}."))
    return stages


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
            f"--then {text}: write METHOD:MACS, pff:0.3 say, the MACs that may stay: a fraction up to 1, or a figure."
        )
    return value


def check(stages: Sequence[Stage], original: int, left: int) -> None:
    """Raise ConfigError unless each of them will have something to cut.

    original: MACs of the network that the command was given. left: those that stay until then, at most.
    """
    for stage in stages:
        limit = stage.limit(original)
        if limit is not None and limit >= left:
            raise ConfigError(
                f"--then {stage.text}: {left:,} of {original:,} MACs are left by then, so nothing would be cut. The figure "
                "is what stays of the network that the command was given: make it smaller."
            )
        left = left if limit is None else limit


def folders(out: Path, methods: Sequence[Method]) -> list[Path]:
    """Where each stage's artifact goes: the last one's is what the command was asked for."""
    return [*(out / f"{i}-{method.name}" for i, method in enumerate(methods[:-1], 1)), out]


def earlier(card: Card) -> list[dict[str, Any]]:
    """The cuts that led to an artifact, its own the last, as the card of the next one has them: which method, and the
    network that it began with."""
    cuts = [*((cut.method, cut.before) for cut in card.earlier), (card.method.name, card.before)]
    return [{"method": method, "before": asdict(before)} for method, before in cuts]
