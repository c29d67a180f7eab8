"""The options of the command line that say which channels may be cut, and how far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from secateurs.cli.options import Names
from secateurs.errors import ConfigError, fraction

if TYPE_CHECKING:
    from secateurs.methods import Limits


@Parameter(name="*")
@dataclass(frozen=True)
class LimitOptions:
    exclude: Names = ()
    """keep what these layers put out whole: a layer, a module for all layers in it, or a pattern ('layer4.*'); may be
    given several times, as may the following"""
    only: Names = ()
    """cut only what these layers put out"""
    ratio: Names = ()
    """PATTERN=KEEP, the fraction of their channels that these layers keep; the budget is met by the others, and
    without a budget only these layers are cut"""
    min_channels: Names = ()
    """N, or PATTERN=N: the least number of channels that layers keep"""
    max_cut: Names = ()
    """X, or PATTERN=X: the largest fraction of their channels that layers may lose; by default 0.9, where the budget
    allows it; or the sensitivity.json of a study: no layer is cut so far that the network, with only this
    layer cut, loses more than --max-cut-drop"""
    ratios: Path | None = None
    """a JSON file of ratios, {"PATTERN": KEEP}, or the sensitivity.json of a study, which keeps so much of each
    layer that the network, with only this layer cut, loses at most --ratios-drop; --ratio overrides it"""
    ratios_drop: Annotated[float | None, Parameter(validator=Number(gte=0))] = None
    """of --ratios, in units of the study's metric: by default one point of accuracy"""
    max_cut_drop: Annotated[float | None, Parameter(validator=Number(gte=0))] = None
    """of the study that --max-cut names, as --ratios-drop"""

    def limits(self) -> Limits:
        from secateurs.methods import Limits

        return Limits(
            exclude=self.exclude,
            only=self.only or None,
            ratios={**self._ratios(), **_pairs("ratio", self.ratio, float)} or None,
            min_channels=_pairs("min-channels", self.min_channels, int) or None,
            max_cut=self._max_cut() or None,
        )

    def _ratios(self) -> Mapping[str, float]:
        from secateurs.studies.sensitivity.result import read_ratios

        if self.ratios is None:
            if self.ratios_drop is not None:
                raise ConfigError("--ratios-drop is for the study that --ratios names: give --ratios FILE.")
            return {}
        return read_ratios(self.ratios, self.ratios_drop)

    def _max_cut(self) -> Mapping[str, float]:
        from secateurs.studies.sensitivity.result import read_max_cut

        if self.max_cut_drop is not None and not any(map(_is_file, self.max_cut)):
            raise ConfigError("--max-cut-drop is for the study that --max-cut names: give --max-cut FILE.json.")
        found: Mapping[str, float] = {}
        for item in self.max_cut:
            own = read_max_cut(item, self.max_cut_drop) if _is_file(item) else _pairs("max-cut", [item], float)
            found = {**found, **own}
        return found

    def options(self) -> dict[str, Any]:
        """The arguments of `sc.prune` and of a run."""
        return self.limits().options()


def _is_file(item: str) -> bool:
    return item.endswith(".json")


def _pairs(option: str, given: Sequence[str], number: Callable[[str], Any]) -> dict[str, Any]:
    """PATTERN=NUMBER, or NUMBER for all layers; ratios need a pattern."""
    found = {}
    for item in given:
        pattern, equals, text = item.rpartition("=")
        try:
            if (equals and not pattern) or (not equals and option == "ratio"):
                raise ValueError
            found[pattern or "*"] = number(text)
        except ValueError:
            example, whole = ("layer4.*=16", ", or 8") if number is int else ("layer4.*=0.5", ", or 0.5")
            whole = "" if option == "ratio" else f"{whole} for all layers"
            whole += ", or the sensitivity.json of a study" * (option == "max-cut")
            if (share := fraction(text)) is not None:
                raise ConfigError(f"--{option} {item}: write {pattern}{equals}{share}.") from None
            raise ConfigError(f"--{option} {item}: write PATTERN=NUMBER, such as {example}{whole}.") from None
    return found
