"""The module attributes that repeat a width, and their values after a cut, whichever module owns the tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from secateurs.graph import attributes, figures
from secateurs.graph.figures import Figure
from secateurs.graph.naming import held
from secateurs.graph.tape import Tape

Array = np.ndarray
Count = Callable[[Array], int]  # how many of these channels are left
_LEAST = 4  # the smallest number that counts as a width under a name such as `dim`: `dim = 2` is an axis


class Owners:
    """The modules of a network whose attributes repeat widths. The attributes follow the tensors that a module computed with in
    a run: parameters that it may share with others, or tensors that hooks and parametrizations compute from several."""

    def __init__(self, modules: Mapping[str, nn.Module], tape: Tape) -> None:
        self._modules = modules
        self._weights = tape.weights
        self._figures: list[tuple[Figure, list[Array]]] = []  # what each may count
        self._groups: list[tuple[Figure, list[str]]] = []  # the layers whose number of groups each may be
        held: dict[str, list[Array]] = {}  # by module, the axes of its own parameters
        for axis in tape.axes if tape.figures else ():
            held.setdefault(axis.param.rpartition(".")[0], []).append(axis.labels)
        for figure in tape.figures:
            if figure.passed:
                self._figures.append((figure, _distinct(figure.passed)))
            elif (figure.size >= _LEAST or figures.certain(figure.attribute)) and figure.item in (None, 0):
                self._guess(figure, tape, held)

    def _guess(self, figure: Figure, tape: Tape, held: Mapping[str, Sequence[Array]]) -> None:
        words, path = figures.words(figure.attribute), figure.module
        if words & figures.GROUPS and (grouped := list(self._grouped(path, figure.size))):
            self._groups.append((figure, grouped))
            return
        into, out = ([x for x in side if len(x) == figure.size] for side in tape.through.get(path, ((), ())))
        if words & figures.INTO and into:
            found = into
        elif words & figures.OUT and out:
            found = out
        else:
            steps = [path, *(p for p, _ in figures.steps(path, self._modules[path]))]
            inside = [x for p in steps for side in (held.get(p, ()), *tape.through.get(p, ())) for x in side]
            found = [x for x in inside if len(x) == figure.size]
            timm = hasattr(self._modules[path], "get_classifier")
            if timm and words & {"features", "hidden"}:  # of the last layers
                found = [a.labels for a in tape.axes if len(a.labels) == figure.size][-1:]
        if found:
            self._figures.append((figure, _distinct(found)))

    def _grouped(self, path: str, groups: int) -> Iterator[str]:
        """Yield the layers in a module with this number of groups."""
        prefix = f"{path}." if path else ""
        for name in self._weights:
            module = self._modules[name]
            if name.startswith(prefix) and _groups_of(module) == groups:
                yield name

    def rewrites(self, count: Count) -> dict[tuple[str, str], Any]:
        """Return `{(module, attribute): value}` for the attributes that change."""
        found = self._known(count)
        own: dict[tuple[str, str], Any] = {}
        for figure, sizes in self._sizes(count, found):
            if len(sizes) == 1 and sizes != {figure.size} and not figure.computed:
                before = getattr(self._modules[figure.module], figure.attribute)
                figures.set_in(own, figure, tuple(before) if figure.item is not None else before, *sizes)
        return dict(sorted({**found, **own}.items()))

    def counted(self, figure: Figure, root: Array) -> Array | None:
        """Return the channels that a figure counts, if they are the same everywhere. root: the root of each label."""
        found = [] if figure.computed else next((x for f, x in self._figures if f is figure), [])
        alike = all(np.array_equal(root[x], root[found[0]]) for x in found[1:])
        return found[0] if found and alike else None

    def stale(self, count: Count) -> tuple[str, ...]:
        """Return sentences about figures that keep their value although something that they may count changes."""
        kept: dict[tuple[str, str, int], list[tuple[str, set[int]]]] = {}
        for figure, sizes in self._sizes(count, self._known(count)):
            module = self._modules[figure.module]
            settled = len(sizes) == 1 and (not figure.computed or sizes == {figure.size})
            if not settled and (figure.passed or figures.read_elsewhere(module, figure.attribute)):
                alike = type(module).__name__, figure.attribute, figure.size
                kept.setdefault(alike, []).append((figure.module, sizes))
        return tuple(_sentence(*alike, found) for alike, found in kept.items())

    def _known(self, count: Count) -> dict[tuple[str, str], Any]:
        """Return the attributes of PyTorch's modules that change."""
        found: dict[tuple[str, str], Any] = {}
        for path, weights in self._weights.items():
            module = self._modules[path]
            old = {leaf: tuple(_size(a) for a in axes) for leaf, axes in weights.items()}
            new = {leaf: tuple(_size(a, count) for a in axes) for leaf, axes in weights.items()}
            if old != new:
                for attribute, value in attributes.figures(module, old, new).items():
                    if getattr(module, attribute, value) != value:
                        found[path, attribute] = value
        return found

    def _sizes(self, count: Count, known: Mapping[tuple[str, str], Any]) -> Iterator[tuple[Figure, set[int]]]:
        """Yield each figure with the sizes that it may have."""
        for figure, channels in self._figures:
            yield figure, {count(x) for x in channels}
        for figure, layers in self._groups:
            yield figure, {known.get((n, "groups"), known.get((n, "num_groups"), figure.size)) for n in layers}


def holders(modules: Mapping[str, nn.Module]) -> dict[str, tuple[str, ...]]:
    """Return the modules that hold each parameter or buffer, by its name: several if it is shared."""
    found: dict[str, list[str]] = {}
    for x in held(modules):
        found.setdefault(x.name, []).append(x.path)
    return {n: tuple(dict.fromkeys(paths)) for n, paths in found.items()}


def _groups_of(module: nn.Module) -> int | None:
    own = module.__dict__
    return own.get("groups", own.get("num_groups"))


def _size(axis: int | Array, count: Count = len) -> int:
    return axis if isinstance(axis, int) else count(axis)


def _distinct(arrays: Sequence[Array]) -> list[Array]:
    return list({id(x): x for x in arrays}.values())


def _sentence(kind: str, attribute: str, size: int, found: Sequence[tuple[str, set[int]]]) -> str:
    path, sizes = found[0]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    widths = ", ".join(map(str, sorted(sizes)))
    return (
        f"{path or 'the model'}{more} ({kind}) {'keep' if more else 'keeps'} {attribute}={size}, which may count channels that "
        f"are now {widths}: set it before you call code that reads it, for example code that fuses layers."
    )
