"""Methods by name: those that registered, those that installed packages declare, and those of a module of your own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from secateurs.budget import Budget
from secateurs.errors import ConfigError, Setting, nearest, one_of
from secateurs.grammar import terms, value
from secateurs.importing import import_object
from secateurs.methods.method import Method

GROUP = "secateurs.methods"  # of entry points
# What others call methods, letters and digits only.
ALIASES = {
    "magnitude": ("l2", "l1"), "norm": ("l2", "l1"), "weight": ("l2", "l1"), "l1norm": ("l1",), "l2norm": ("l2",),
    "depgraph": ("group-l2", "group-l1"), "groupnorm": ("group-l2", "group-l1"), "groupmagnitude": ("group-l2", "group-l1"),
    "slimming": ("bn-scale",), "networkslimming": ("bn-scale",), "bn": ("bn-scale",), "batchnorm": ("bn-scale",),
    "gamma": ("bn-scale",), "slim": ("bn-scale",), "zeros": ("apoz",), "activation": ("apoz", "variance"),
    "std": ("variance",), "gradient": ("taylor", "fisher"), "molchanov": ("taylor", "group-taylor"), "hessian": ("fisher",),
    "lnstructured": ("l2", "l1"), "grouphessian": ("fisher",), "groupfisher": ("fisher",), "obd": ("fisher",),
    "obs": ("damage",), "leastsquares": ("damage",), "thinet": ("damage",), "reconstruction": ("damage",),
    "snip": ("group-taylor", "taylor"), "geometricmedian": ("fpgm", "epruner"),
    "greedy": ("oracle",), "bruteforce": ("oracle",), "ablation": ("oracle",), "clustering": ("epruner",),
    "affinity": ("epruner",), "exemplar": ("epruner",), "gate": ("npn",), "gates": ("npn",), "l0": ("npn",),
    "lasso": ("onestep",), "grouplasso": ("onestep",), "importance": ("onestep",), "filtersearch": ("aofp",),
    "stripe": ("pff", "l2-stripes"), "stripes": ("pff", "l2-stripes"), "shapes": ("pff",), "pattern": ("pff", "l2-stripes"),
}  # fmt: skip
MODULE = "python:"  # begins the name of a class in a module
NAME = re.compile(r"[^\W\d_][\w.-]*")

M = TypeVar("M", bound=type[Method])
_METHODS: dict[str, type[Method]] = {}


def register(name: str = "") -> Callable[[M], M]:
    """Make a method known by name to `sc.prune`, the command line, the demo and `secateurs.testing`, as a decorator.

    >>> @sc.register("first")
    ... class First(sc.Criterion):
    ...     def scores(self, task):          # → {group name: (size,)}, higher = more worth keeping
    ...         return {g.name: -torch.arange(g.size) for g in task.groups}

    A package makes its methods known by an entry point; the class is then imported when it is first asked for:

        [project.entry-points."secateurs.methods"]
        first = "package.module:First"

    Raises ConfigError for a class that is not a method, for a name that the command line cannot have, and for the name of
    another method.
    """
    if isinstance(name, type):
        raise ConfigError(f'@sc.register needs a name: write @sc.register("{name.__name__.lower()}").')
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not a valid name of a method: use letters, digits, '-', '_' and '.', and begin with a letter, as in "
            '@sc.register("mine").'
        )

    def decorate(cls: M) -> M:
        _method(cls, getattr(cls, "__qualname__", repr(cls)))
        return _add(name, cls)

    return decorate


def _add(name: str, cls: M) -> M:
    known = _METHODS.get(name)
    if known is not None and _place(known) != _place(cls):
        raise ConfigError(
            f"A method named {name!r} is registered already: {known.__qualname__}. Register {cls.__qualname__} under another "
            "name."
        )
    cls.name = name
    _METHODS[name] = cls
    return cls


def _place(cls: type) -> tuple[str, str]:
    """Where a class is defined: that of a script that runs and is imported, too, is one."""
    module = sys.modules.get(cls.__module__)
    return getattr(module, "__file__", None) or cls.__module__, cls.__qualname__


def methods() -> tuple[str, ...]:
    """Names of all methods: the registered ones, and those that installed packages declare."""
    return (*_METHODS, *(name for name in _declared() if name not in _METHODS))


def registered(name: str) -> type[Method] | None:
    """The method of this name, if there is one already. Nothing is imported for it: the name may come from a file."""
    return _METHODS.get(name)


def about(method: type[Method]) -> str:
    """What its docstring says first: the first paragraph up to a colon, without the period; empty for a class that has none."""
    return " ".join((method.__doc__ or "").split("\n\n")[0].split(": ")[0].split()).removesuffix(".")


def resolve(method: str | Method, **settings: Any) -> Method:
    """A configured method from its name (or `python:package.module:Class`) and settings.

    Raises ConfigError with the nearest names if there is none, or if a package's method cannot be used; SpecError for a
    module that cannot be imported.
    """
    if isinstance(method, Method):
        return type(method)(**{**method.model_dump(exclude_unset=True), **settings}) if settings else method
    if isinstance(method, type) and issubclass(method, Method):
        raise ConfigError(f"method={method.__name__} is a class: pass an instance, {method.__name__}(…).")
    if not isinstance(method, str):
        raise ConfigError(f"method={method!r:.100} is not a method: {_meant(method)}.")
    found = find(method)
    try:
        return found(**settings)
    except TypeError as error:  # an `__init__` of its own, with arguments that it must have
        raise ConfigError(f"The method {method!r} cannot be made from its settings: {error}.") from error


def _meant(value: Any) -> str:
    """What to write for something that is not a method, without the period."""
    if isinstance(value, Mapping) and value.keys() <= {"macs", "params"} and value:
        return "pass the budget by name, budget=sc.Budget(macs=0.5)"
    if isinstance(value, Mapping):
        return (
            "to keep a share of single layers pass ratios={layer: share}, and a budget for the whole network by "
            "budget=sc.Budget(macs=0.5)"
        )
    if isinstance(value, Budget):
        return f"pass it by name, budget={value!r}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"for a budget pass budget=sc.Budget(macs={value!r})"
    kind = value if isinstance(value, type) else type(value)
    if any(home.__module__.partition(".")[0] == "torch_pruning" for home in kind.__mro__):
        return f"it is torch-pruning's, and a method of ours is given by name. {_similar(kind.__name__)} See docs/migration.md"
    if callable(value):
        return "subclass sc.Criterion, call the function in scores(task), and pass an instance"
    return f"pass a name, one of {', '.join(methods())}"


def find(name: str) -> type[Method]:
    """The class of this name. Raises as `resolve` does."""
    if name in _METHODS:
        return _METHODS[name]
    if name.startswith(MODULE):
        return _checked(import_object(name.removeprefix(MODULE), name), name, name)
    declared = _declared()
    first, *words = name.split() or [name]
    if words and (made := _METHODS.get(first)) is not None:  # text, which the command line and `compare` take
        given = terms(name, ())[0].settings
        if not given:
            raise ConfigError(f"{name!r}: a setting of {first} is written key=value.")
        settings = [Setting(key, value(text), None if key == "preset" else made) for key, text in given.items()]
        written = [part for setting in settings for part in (", ", setting)][1:]
        raise ConfigError(
            f"{name!r} has settings: the name of the method is {first!r}, and its settings are written ", *written, "."
        )
    if name not in declared:
        raise ConfigError(f"There is no method {name!r}. {_similar(name)}")
    entry = declared[name]
    try:
        found = entry.load()
    except Exception as error:  # whatever the package's code does
        where = f"the package {entry.dist.name}" if entry.dist is not None else entry.value
        raise ConfigError(
            f"The method {name!r} of {where} cannot be loaded: {type(error).__name__}: {error}."
        ) from error
    return _checked(found, name, f"{name!r}, {entry.value}")


def _similar(name: str) -> str:
    """What may be meant: the same name in another spelling, a method that others call so, or names with similar letters."""
    plain = _letters(name.rpartition(".")[2] if name.startswith("tp.") else name)
    short = next((plain.removesuffix(end) for end in ("importance", "pruner") if plain.endswith(end)), plain)
    found = [known for known in methods() if _letters(known) in (plain, short)]
    found = found or list(ALIASES.get(plain, ALIASES.get(short, ())))
    if not found:
        return nearest(name, methods())
    also = " ThiNet's least squares are a recovery, sc.Reconstruct." if plain in ("thinet", "reconstruction") else ""
    return f"Did you mean {one_of(found)}?{also}"


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _checked(found: Any, name: str, what: str) -> type[Method]:
    """A class that is a method, named if it has not registered under a name of its own."""
    cls = _method(found, what)
    return cls if _METHODS.get(cls.name) is cls else _add(name, cls)


def _method(found: Any, what: str) -> type[Method]:
    """Return a class that is a method. Raises ConfigError for anything else."""
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(
            f"{what} is not a method: it has to be a subclass of sc.Method, sc.Criterion or sc.TrainingMethod."
        )
    return found


def _declared() -> dict[str, EntryPoint]:
    """Entry points of installed packages by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}
