"""What the user allows: which channel groups may be cut, and how far."""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from torch import Tensor, nn

from secateurs.data.structure import kind_of
from secateurs.errors import ConfigError, Message, Setting, a_or_an
from secateurs.graph import ChannelGraph, ChannelGroup
from secateurs.keywords import explained
from secateurs.methods.matching import Layers, Matcher, Which
from secateurs.proposed import Proposes, check_no_file, largest_cuts, study_of, whose

Fractions = Mapping[Any, float]  # by `Which`
Ratios = Fractions | Proposes
Cuts = float | Fractions | Proposes
ALL = Setting("scope", "all")
Counts = Mapping[Any, int]


@dataclass(frozen=True)
class Bound:
    """How many channels of a group stay: at least, and at most.

    floored: whether the default floor applies as well; it does not where the user says how far the group may be cut.
    held: whether the layers that make the channels stay as they are, their stripes included.
    missed: whether a ratio names the group and does not reach it: the message says why.
    by: the settings that say so. message: what they say, for the listing of `inspect`.
    whole: the channels that the group had before earlier rounds, by which fractions of it count; None: as many as it has.
    """

    least: int
    most: int
    floored: bool = True
    held: bool = False
    missed: bool = False
    by: tuple[Setting, ...] = ()
    message: Message | None = None
    whole: int | None = None


Bounds = Mapping[str, Bound]  # by group; groups left out are bounded as `free` says


def free(group: ChannelGroup) -> Bound:
    """The bound of a group of which the user says nothing: the channels that its code needs stay."""
    return Bound(group.least, group.size)


@explained(ConfigError)
@dataclass(frozen=True, init=False)
class Limits:
    """Which channel groups may be cut, and how far. `on` says what this means for the groups of a network.

    A *pattern* is the name of a layer, or of a module for all layers in it, with wildcards as in file names (`layer3.*`); it
    matches the groups whose channels such a layer produces. A module stands for its name. A type of modules matches the
    groups that a module of this type produces, reads or normalizes, or a layer inside such a module. A function is called
    with each `ChannelGroup`, and matches where it returns True.

    exclude: the groups that stay whole, their stripes included. only: the groups that may be cut.
    ratios: `{pattern: fraction of a group's channels to keep}`, rounded up to a whole channel and to the alignment of the
        budget; or what `sc.sensitivity` returns, which proposes them. The others meet the budget. Without a budget, and without
        a setting of the method that says how much to cut, only the groups with a ratio are cut.
    min_channels: the least number of channels that a group keeps, or `{pattern: number}`.
    max_cut: the largest fraction of a group's channels that may be cut, or `{pattern: fraction}`, or what `sc.sensitivity`
        returns. It replaces the default floor of a tenth, which gives way where a budget needs it; this doesn't.

    Where several patterns match a group, the last one counts.

    Raises ConfigError for values that are not valid.
    """

    exclude: tuple[Which, ...]
    only: tuple[Which, ...] | None
    ratios: tuple[tuple[Which, float], ...]
    min_channels: tuple[tuple[Which, int], ...]
    max_cut: tuple[tuple[Which, float], ...]

    def __init__(
        self,
        exclude: Layers = (),
        only: Layers | None = None,
        ratios: Ratios | None = None,
        min_channels: int | Counts | None = None,
        max_cut: Cuts | None = None,
    ) -> None:
        put = object.__setattr__
        ratios = ratios.ratios() if isinstance(ratios, Proposes) else ratios
        max_cut = largest_cuts(max_cut.ratios()) if isinstance(max_cut, Proposes) else max_cut
        put(self, "exclude", _several("exclude", exclude))
        put(self, "only", None if only is None else _several("only", only))
        put(self, "ratios", _pairs("ratios", ratios, lambda x: _fraction(x) and x > 0, "a fraction above 0, up to 1"))
        put(self, "min_channels", _pairs("min_channels", min_channels, _count, "a whole number of channels, 1 or more"))
        put(self, "max_cut", _pairs("max_cut", max_cut, _fraction, "a fraction from 0 to 1"))
        if self.only == ():
            raise ConfigError(Setting("only", ()), " leaves nothing to cut: name layers, or leave it out.")

    def __bool__(self) -> bool:
        return self != Limits()

    def options(self) -> dict[str, Any]:
        """The arguments that make it."""
        pairs = {name: dict(getattr(self, name)) or None for name in ("ratios", "min_channels", "max_cut")}
        return {"exclude": self.exclude, "only": self.only, **pairs}

    def record(self) -> dict[str, Any] | None:
        """As it is written to a card: JSON-serializable; None if nothing is limited."""
        lists = {"exclude": [_text(w) for w in self.exclude], "only": [_text(w) for w in self.only or ()]}
        pairs = {n: {_text(w): x for w, x in getattr(self, n)} for n in ("ratios", "min_channels", "max_cut")}
        return {name: value for name, value in {**lists, **pairs}.items() if value} or None

    def named(self, model: nn.Module) -> Limits:
        """The same with the names of this model's modules in place of the modules. Raises ConfigError for a module of
        another model."""
        names = {id(module): name for name, module in model.named_modules()}

        def of(setting: str, which: Which) -> Which:
            if not isinstance(which, nn.Module):
                return which
            if not names.get(id(which)):
                raise ConfigError(
                    Setting(setting), f" has {a_or_an(type(which).__name__)} that is not a module of this model."
                )
            return glob.escape(names[id(which)])

        def pairs(setting: str) -> dict[Which, Any] | None:
            return {of(setting, w): x for w, x in getattr(self, setting)} or None

        return Limits(
            exclude=tuple(of("exclude", w) for w in self.exclude),
            only=None if self.only is None else tuple(of("only", w) for w in self.only),
            ratios=pairs("ratios"), min_channels=pairs("min_channels"), max_cut=pairs("max_cut"),
        )  # fmt: skip

    def later(self) -> Limits:
        """For a further cut of the result: groups with a ratio have it already, and keep what they have."""
        return Limits(**{**self.options(), "ratios": {which: 1.0 for which, _ in self.ratios} or None})

    def on(self, graph: ChannelGraph, scope: str = "all") -> dict[str, Bound]:
        """What they mean for the groups of a network; left out are groups that are not limited, or cannot be cut, but for those
        that a ratio names.

        Raises ConfigError, with similar names, for patterns that match nothing; for a ratio that has no effect, since what
        it names cannot be cut; and for limits that contradict each other.
        """
        if not self:
            return {}
        match = Matcher(graph)
        match.check(self._patterns())
        bounds = {g.name: free(g) for g in graph.groups}
        for which in self.exclude:
            setting = Setting("exclude", _shown(which))
            for g in match(which):
                bounds[g.name] = _held(g, "excluded by ", setting)
        if self.only is not None:
            names = {g.name for which in self.only for g in match(which)}
            several = tuple(map(_shown, self.only))
            setting = Setting("only", several if len(several) > 1 else several[0])
            for g in graph.groups:
                if g.name not in names and not bounds[g.name].held:
                    bounds[g.name] = _held(g, "not in ", setting)
        for name, how in (("min_channels", _at_least), ("max_cut", _cut_at_most), ("ratios", _kept)):
            own: dict[str, tuple[ChannelGroup, Setting, Any]] = {}  # of several that match, the last counts
            for which, x in getattr(self, name):
                setting = _setting(name, which, x)
                found = match(which)
                # Of the many groups of a study, the user may hold some.
                asked = found if study_of(which) is None else [g for g in found if not bounds[g.name].held]
                if name == "ratios" and x < 1 and asked and all(_stays(g, bounds, scope) for g in asked):
                    raise _no_effect(which, setting, asked[0], _stays(asked[0], bounds, scope), scope)
                own.update({g.name: (g, setting, x) for g in found})
            for g, setting, x in own.values():  # a least width holds out of scope, too: another scope would not help
                why = _stays(g, bounds, scope if name == "ratios" else "all")
                if why is None:
                    bounds[g.name] = how(g, bounds[g.name], setting, x)
                elif name == "ratios" and x < 1 and not bounds[g.name].held:
                    bounds[g.name] = _missed(g, bounds[g.name], setting, why)
        return {name: bound for name, bound in bounds.items() if bound.by or bound.missed}

    def _patterns(self) -> Iterator[tuple[Which, Setting]]:
        """All patterns, each with the setting that it is from."""
        for name in ("exclude", "only"):
            yield from ((which, Setting(name, _shown(which))) for which in getattr(self, name) or ())
        for name in ("min_channels", "max_cut", "ratios"):
            yield from ((which, _setting(name, which, x)) for which, x in getattr(self, name))


def held(graph: ChannelGraph, bounds: Bounds) -> set[str]:
    """The weights that produce channels of groups that are held: those whose stripes stay, too."""
    return {s.param for name, bound in bounds.items() if bound.held for s in graph[name].slots if s.produces}


def described(bounds: Mapping[str, Bound]) -> list[Message]:
    """A line for each limit, with the groups that it concerns."""
    groups: dict[Message, list[str]] = {}
    for name, bound in bounds.items():
        if bound.message is not None:
            groups.setdefault(bound.message, []).append(name)
    return [
        Message(", ".join(names[:3]), f" and {len(names) - 3} more" * (len(names) > 3), ": ", message)
        for message, names in groups.items()
    ]


def limiting(bounds: Iterable[Bound]) -> tuple[Setting, ...]:
    """The settings that limit these groups, each once."""
    found: list[Setting] = []
    for bound in bounds:
        found += [setting for setting in bound.by if setting not in found]
    return tuple(found)


# -- what a limit says of a group -------------------------------------------------------------------------------------


def _held(group: ChannelGroup, how: str, setting: Setting) -> Bound:
    return Bound(group.size, group.size, False, held=True, by=(setting,), message=Message(how, setting))


def _at_least(group: ChannelGroup, bound: Bound, setting: Setting, least: int) -> Bound:
    return _raised(group, bound, setting, min(group.size, least))


def _cut_at_most(group: ChannelGroup, bound: Bound, setting: Setting, share: float) -> Bound:
    return replace(_raised(group, bound, setting, _whole(group, 1 - share)), floored=False)


def _raised(group: ChannelGroup, bound: Bound, setting: Setting, least: int) -> Bound:
    if least < bound.least:
        return replace(bound, by=(*bound.by, setting))
    says = (f"keeps at least {least} by ", setting) if least < group.size else ("kept whole by ", setting)
    return replace(bound, least=least, by=(*bound.by, setting), message=Message(*says))


def _kept(group: ChannelGroup, bound: Bound, setting: Setting, share: float) -> Bound:
    width = _whole(group, share)
    if width < bound.least:
        raise ConfigError(
            setting, f" keeps {width} of the {group.size} channels of {group.name}, but it ",
            "is " * (bound.least == group.size), bound.message, ": change one of the two.",
        )  # fmt: skip
    says = (f"keeps {width} by ", setting) if width < group.size else ("kept whole by ", setting)
    return Bound(width, width, False, by=(*bound.by, setting), message=Message(*says))


def _missed(group: ChannelGroup, bound: Bound, setting: Setting, why: Message) -> Bound:
    why = why if group.prunable else Message("cannot be cut")  # `inspect` lists the reasons
    return replace(bound, missed=True, message=Message("not reached by ", setting, ": it ", why))


def _no_effect(which: Which, setting: Setting, group: ChannelGroup, why: Message | None, scope: str) -> ConfigError:
    if (study := study_of(which)) is None:
        return ConfigError(setting, " has no effect: ", group.name, " ", why, ".")
    other = group.prunable and scope != "all" and study.scope == "all"
    hint = ("The study was measured with ", ALL, ": add it here, too.") if other else ()
    return ConfigError(setting, " cuts ", group.name, ", but it ", why, ".", hint=hint)


def _stays(group: ChannelGroup, bounds: Bounds, scope: str) -> Message | None:
    """Why a group stays whole whatever its ratio, or None."""
    if group.reason is not None:
        return Message("stays whole: ", group.reason.message)
    if bounds[group.name].held:
        return Message("is ", bounds[group.name].message)
    if scope != "all" and not group.internal:
        return Message("is on a shortcut, and only ", ALL, " cuts those")
    return None


def _whole(group: ChannelGroup, share: float) -> int:
    """A fraction of a group, rounded up to whole channels, as many as it needs: 3 / 30 of 30 channels are 3, whatever the
    rounding of their product."""
    return max(group.least, math.ceil(group.size * share - 1e-9))


# -- the values that a user gives -------------------------------------------------------------------------------------


def _several(name: str, given: Any) -> tuple[Which, ...]:
    if given is None:
        return ()
    one = isinstance(given, str | type | nn.Module | Mapping | Tensor) or not isinstance(given, Iterable)
    found = (given,) if one else tuple(given)
    for which in found:
        _check_which(name, which)
    return found


def _check_which(name: str, which: Any) -> None:
    known = isinstance(which, str | nn.Module) or callable(which)
    if not (issubclass(which, nn.Module) if isinstance(which, type) else known) or which == "":
        what = f"{name}: {kind_of(which)}" if isinstance(which, Tensor) else Setting(name, which)
        raise ConfigError(
            what, " is not valid: name layers ('layer4.*', a module, a type such as nn.Linear), or pass a "
            "function of a ChannelGroup.",
        )  # fmt: skip


def _pairs(name: str, given: Any, valid: Callable[[Any], bool], what: str) -> tuple[tuple[Which, Any], ...]:
    if given is None:
        return ()
    check_no_file(name, given)
    if not isinstance(given, Mapping):
        if name == "ratios":
            raise ConfigError(
                Setting(name, given), " is not valid: write {pattern: fraction to keep}, {'layer3.*': 0.5}."
            )
        given = {"*": given}
    for which, x in given.items():
        _check_which(name, which)
        if isinstance(x, bool) or not valid(x):
            raise ConfigError(_setting(name, which, x), f" is not valid: it must be {what}.")
    return tuple((whose(which, x), int(x) if name == "min_channels" else float(x)) for which, x in given.items())


def _fraction(x: Any) -> bool:
    return isinstance(x, Real) and 0 <= float(x) <= 1


def _count(x: Any) -> bool:
    return isinstance(x, Integral) and int(x) >= 1


def _setting(name: str, which: Which, x: Any) -> Setting:
    """As the user gives it: `min_channels=8`, `ratios={'layer3.*': 0.5}`, or a study."""
    if (study := study_of(which)) is not None:
        return Setting(name, study)
    return Setting(name, x if which == "*" and name != "ratios" else {_shown(which): x})


class _Code(str):
    """Text that is shown without quotes: a type or a function by its name."""

    def __repr__(self) -> str:
        return str(self)


def _shown(which: Any) -> Any:
    return which if isinstance(which, str) else _Code(getattr(which, "__name__", type(which).__name__))


def _text(which: Which) -> str:
    """A pattern as it is; what else there is by its full name."""
    if isinstance(which, str):
        return which
    of = which if hasattr(which, "__qualname__") else type(which)
    return f"{of.__module__}.{of.__qualname__}"
