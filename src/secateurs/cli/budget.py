"""The options of the command line that limit a network's cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, get_args, get_type_hints

from cyclopts import Parameter

from secateurs.cli.options import Count, Many, pairs
from secateurs.errors import ConfigError, nearest

if TYPE_CHECKING:
    from secateurs import Budget
    from secateurs.deploy import Target

Share = float  # a fraction up to 1, or an absolute figure
Align = Count | Literal["auto"]


@Parameter(name="*")
@dataclass(frozen=True)
class BudgetOptions:
    macs: Share | None = None
    """the MACs that may stay: a fraction up to 1 (0.5), or an absolute number (60e6)"""
    params: Share | None = None
    """the parameters that may stay: a fraction or an absolute number"""
    latency: float | None = None
    """the fraction of the original's time that may stay, as measured on the target of --target"""
    ms: float | None = None
    """the milliseconds that one run may take, as measured on the target of --target"""
    target: str | None = None
    """where time is measured: torch-cpu, torch-cuda, onnxruntime or openvino; by default PyTorch on the model's device"""
    target_set: Many = ()
    """a setting of the target, key=value: batch=32, threads=1, precision=bf16, channels_last=true or mode=compile; may be given
    several times"""
    align: Align | None = None
    """keep widths that are multiples of this; auto: those that are fast on the target (the default with --latency or --ms)"""

    def budget(self) -> Budget | None:
        from secateurs import Budget
        from secateurs.budget import exact

        given = {name: getattr(self, name) for name in ("macs", "params", "latency", "ms")}
        target = None if self.target is None and not self.target_set else self._target()
        if all(figure is None for figure in given.values()):
            if self.align is not None:
                raise ConfigError("--align rounds the widths that a budget leads to: give --macs or --params with it.")
            if target is not None:
                raise ConfigError(
                    "--target is where time is measured: give --latency or --ms with it, or --align auto and --macs."
                )
            return None  # some methods have a knob of their own
        counts = {name: None if given[name] is None else exact(given[name]) for name in ("macs", "params")}
        return Budget(**counts, align=self.align, latency=self.latency, ms=self.ms, target=target)

    def _target(self) -> Target:
        if self.target is None:
            raise without_target(self.target_set)
        return target(self.target, self.target_set)


def without_target(settings: Sequence[str]) -> ConfigError:
    """The error for settings of a target that is not named."""
    from secateurs.deploy import Target

    known = get_args(get_type_hints(Target)["runtime"])
    return ConfigError(
        f"--target-set {settings[0]} is a setting of a target, and none is named: add --target {', '.join(known[:-1])} or "
        f"{known[-1]}."
    )


def target(name: str, settings: Sequence[str]) -> Target:
    """The target of this name, with settings as `key=value`. Raises ConfigError for what is not valid."""
    from secateurs.deploy import Target

    known = {f.name for f in fields(Target)} - {"runtime"}
    found = pairs("target-set", settings, "threads=1")
    for key, value in found.items():
        if key not in known:
            raise ConfigError(f"--target-set {key}={value}: a target has no setting {key}. {nearest(key, known)}")
    try:
        return Target(name, **found)  # type: ignore[arg-type]  # checked
    except ConfigError as error:
        raise error.renamed(lambda s: s if s.name == "target" else replace(s, of=Target)) from None
