"""Which channel groups a pattern, a module, a type of modules or a function stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from secateurs.errors import ConfigError, Message, Setting, nearest
from secateurs.graph import ChannelGraph, ChannelGroup
from secateurs.proposed import Exactly, study_of

Which = str | type[nn.Module] | nn.Module | Callable[[ChannelGroup], Any]
Layers = Which | Iterable[Which]


class Matcher:
    """Finds the groups of a network that a pattern, a module, a type or a function stands for."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self._makers = {g.name: {g.name, *_around(g.producers)} for g in graph.groups}

    def __call__(self, which: Which) -> list[ChannelGroup]:
        return [g for g in self.graph.groups if self._is(g, which)]

    def check(self, patterns: Iterable[tuple[Which, Setting]]) -> None:
        """Raise ConfigError that names all patterns that match no group, each with the setting that it is from. A function may
        match none."""
        wrong = [
            Message(setting, *self._nothing(which))
            for which, setting in patterns
            if isinstance(which, str | type | nn.Module) and which != "*" and not self(which)
        ]
        if wrong:
            raise ConfigError(wrong[0], *(part for each in wrong[1:] for part in (" ", each)))

    def _is(self, group: ChannelGroup, which: Which) -> bool:
        if isinstance(which, Exactly):
            return group.name == which
        if isinstance(which, str):
            return any(name == which or fnmatchcase(name, which) for name in self._makers[group.name])
        modules = self.graph.modules
        if isinstance(which, type):
            around = _around(dict.fromkeys(s.module for s in group.slots))
            return any(name in modules and isinstance(modules[name], which) for name in around)
        if isinstance(which, nn.Module):
            return any(modules.get(name) is which for name in self._makers[group.name])
        return bool(which(group))

    def _nothing(self, which: Which) -> tuple[object, ...]:
        """What to say about a pattern that matches no group."""
        if not isinstance(which, str):
            return (" matches no layer of the network.",)
        if study_of(which) is not None:
            return (f" is of another network: this one has no channel group {which}.",)
        touched = {s.module for g in self.graph.groups for s in g.slots}
        others = [n for n in self.graph.modules if n and (n == which or fnmatchcase(n, which))]
        if made := next((n for n in others if n in touched), None):
            made_by = next(g.producers for g in self.graph.groups if any(s.module == made for s in g.slots))
            return (f" matches {made}, which makes no channels of its own: name {' or '.join(made_by[:2])}.",)
        if others:
            return (f" matches {others[0]}, in which no layer makes channels.",)
        known = {name for names in self._makers.values() for name in names}
        return (f" matches no layer that makes channels. {nearest(which, known)}",)


def _around(names: Iterable[str]) -> Iterator[str]:
    """These modules and all that they are in, but the network itself."""
    for name in names:
        while name:
            yield name
            name = name.rpartition(".")[0]
