"""Methods as text: `aofp theta=0.02`, `pff preset=paper`."""

from __future__ import annotations

from typing import Any

from secateurs.errors import ConfigError, Setting
from secateurs.grammar import Term, terms, typed
from secateurs.methods.method import Method
from secateurs.methods.registry import find, methods, resolve


def read(text: str, several: str | None = None) -> Term:
    """The name and the settings of a method. Raises ConfigError for text that names no method, or several. several: the setting
    that takes several methods, which the error names."""
    found = terms(text, methods())
    if len(found) > 1:
        advice = ("one of them",) if several is None else (Setting(several, tuple(map(str, found))),)
        raise ConfigError(f"{text!r} names several methods: give ", *advice, ".")
    if not found[0].name:
        raise ConfigError("A method has no name: write, for example, 'l2' or 'aofp theta=0.02'.")
    return found[0]


def made(term: Term, **usual: Any) -> Method:
    """The method that a text names. usual: settings in the place of the defaults, where the text names no preset; those of the
    text override them. Raises as `resolve` does."""
    given = typed(find(term.name), term.settings)
    return resolve(term.name, **(given if "preset" in given else {**usual, **given}))
