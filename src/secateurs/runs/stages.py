"""Several cuts in a row: each prunes the result of the one before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from secateurs.artifact import Card, Earlier
from secateurs.budget import Budget, exact, is_number
from secateurs.deploy.target import Target
from secateurs.errors import ConfigError, Setting
from secateurs.keywords import explained
from secateurs.methods import Method, resolve
from secateurs.runs.result import RunResult


@explained(ConfigError)
@dataclass(frozen=True)
class Stage:
    """A method, and the MACs that may stay after it: a fraction of the network that the run was given, or a figure. None
    leaves it to the method's own setting.

    text: how messages call it, by default METHOD:MACS. target: of `align="auto"`, as in a `Budget`.

    Raises ConfigError for an unknown method, and for MACs that are not a positive number.
    """

    method: Method
    macs: float | None = None
    align: int | Literal["auto"] = 1
    text: str = ""
    target: Target | str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", resolve(self.method))
        macs = self.macs
        if macs is not None and not (is_number(macs) and 0 < macs < math.inf):
            raise ConfigError(
                Setting("macs", macs, Stage),
                " is not valid: a stage takes the MACs that stay, a fraction up to 1 or a figure.",
            )

    @property
    def setting(self) -> Setting:
        usual = self.method.name if self.macs is None else f"{self.method.name}:{self.macs:.16g}"
        return Setting("then", self.text or usual)

    def named(self, setting: Setting) -> Setting:
        """A setting of this stage's method, distinct from those of the others."""
        if setting.of is None or not isinstance(self.method, setting.of):
            return setting
        return Setting(f"{self.method.name}.{setting.name}", setting.value)

    def limit(self, original: int) -> int | None:
        """The MACs that may stay, of so many that the network has that the run was given."""
        if self.macs is None:
            return None
        return max(2, int(self.macs * original)) if self.macs <= 1 else int(self.macs)

    def budget(self, original: int) -> Budget | None:
        """The same as a budget for what is left of that network."""
        if self.macs is None:
            return None
        macs = exact(self.macs) if self.macs > 1 else self.limit(original)
        return Budget(macs, align=self.align, target=self.target)


def checked(then: Any) -> Sequence[Stage]:
    """Raise ConfigError for what is not a list of stages."""
    if not isinstance(then, list | tuple) or not all(isinstance(stage, Stage) for stage in then):
        raise ConfigError(Setting("then", then), ' is not a list of stages, such as [Stage("pff", 0.3)].')
    return then


def check_order(first: Method, stages: Sequence[Stage]) -> None:
    """Raise ConfigError for a method that cannot cut the result of the one before it."""
    for method, stage in zip([first, *(stage.method for stage in stages)], stages, strict=False):
        if method.cuts == "stripes":
            raise ConfigError(
                stage.setting,
                f": {method.name} cuts stripes, and what a stripe convolution puts out cannot be cut any further. Cut "
                "stripes last: ",
                Setting("method", stage.method.name),
                " ",
                Setting("then", f"{method.name}:MACS"),
                ".",
            )


def check(stages: Sequence[Stage], original: int, left: int) -> None:
    """Raise ConfigError for a stage that would have nothing to cut.

    original: MACs of the network that the run was given. left: those that stay until then, at most.
    """
    for stage in stages:
        limit = stage.limit(original)
        if limit is not None and limit >= left:
            raise ConfigError(
                stage.setting,
                f": {left:,} of {original:,} MACs are left at that point, so nothing would be cut. The figure is what stays of "
                "the network that the run was given: make it smaller.",
            )
        left = left if limit is None else limit


def folders(out: Path, methods: Sequence[Method]) -> list[Path]:
    """The folder of each stage's artifact; the last is the run's own."""
    return [*(out / f"{i}-{method.name}" for i, method in enumerate(methods[:-1], 1)), out]


def earlier(cut: Card | RunResult) -> list[Earlier]:
    """The cuts that led to a network, the last one included, as the card of the next one has them: which method, and the
    network that it began with."""
    return [*cut.earlier, Earlier(method=cut.method.name, before=cut.before)]
