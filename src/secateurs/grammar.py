"""Settings as text: `aofp theta=0.02`, `reconstruct, finetune:10 lr=0.05`. Methods, recoveries and `--set` are read by this."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from secateurs.errors import ConfigError, Setting, fraction

WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
MARKS = ",+"  # between terms
QUOTED = r'"(?:[^"\\]|\\.)*"'
WHOLE = rf'{QUOTED}|\[(?:{QUOTED}|[^"\]])*\]|\{{(?:{QUOTED}|[^"}}])*\}}'  # what may hold marks and spaces
NAME = rf"(?:(?<=\d[eE])\+(?=\d)|[^\s{MARKS}])+"  # `pff:1e+8` has no mark
PLAIN = re.compile(rf'[^\s{MARKS}"\[\]{{}}]*')


@dataclass(frozen=True)
class Term:
    """A name with settings, whose values are text: `aofp theta=0.02`."""

    name: str
    settings: Mapping[str, str]

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={text}" for key, text in self.settings.items())])


def terms(text: str, names: Iterable[str]) -> list[Term]:
    """The terms of a text, which `,` or `+` separates. One within a value separates only before a space, at the end, or before
    one of these names: `nodes=a,b` is one setting. In quotes and brackets none does. Raises ConfigError for words that are not
    settings, for settings that are given twice, and for separators where none belongs."""
    known = "|".join(map(re.escape, names))
    mark = rf"[{MARKS}](?=\s|$|(?:{known})(?:[\s:{MARKS}]|$))"
    words: list[list[str]] = [[]]
    for word in re.findall(rf"[^\s={MARKS}]+=(?:{WHOLE}|(?!{mark})\S)*|[{MARKS}]|{NAME}", text):
        if word in MARKS:
            words.append([])
        else:
            words[-1].append(word)
    return _separated([_term(part) for part in words], text)


def _separated(found: list[Term], text: str) -> list[Term]:
    given = [term for term in found if term.name or term.settings]
    if not given:
        return [Term("", {})]
    if not given[0].name:
        raise ConfigError(f"{text!r} has no name before its settings: write NAME{given[0]}.")
    meant = "".join(f", {term}" if term.name else str(term) for term in given).removeprefix(", ")
    if not all(term.name for term in given):
        raise ConfigError(f"Settings are separated by spaces: write {meant!r}.")
    if len(given) < len(found):
        raise ConfigError(f"{text!r} has a comma or a + too many: write {meant!r}.")
    return found


def _term(words: Sequence[str]) -> Term:
    apart = [part for word in words for part in joined(word)]
    if len(apart) > len(words):
        raise ConfigError(f"Settings are separated by spaces: write {' '.join(apart)!r}.")
    name = list(takewhile(lambda word: "=" not in word, words))
    found: dict[str, str] = {}
    for word in words[len(name) :]:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{word!r} is not a setting: write key=value.")
        if key in found:
            raise ConfigError(f"{key} is given twice: give one of them.")
        found[key] = text
    return Term(" ".join(name), found)


def joined(text: str) -> list[str]:
    """The settings in a text where commas join them: `a=1` and `b=2` of `a=1,b=2`."""
    return _split(text, r",\s*(?=[^\W\d][\w.]*=)")


def value(text: str) -> Any:
    """What a text stands for: JSON if it is JSON (0.7, true, null), True and False as well, or the text."""
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def typed(kind: type[BaseModel], settings: Mapping[str, str]) -> dict[str, Any]:
    """Values of text as the fields take them: words for true and false, and several values with commas. Raises ConfigError for
    a percentage in the place of a fraction."""
    fields = kind.model_fields
    for name, text in settings.items():
        if name in fields and float in kinds(fields[name].annotation) and (share := fraction(text)) is not None:
            raise ConfigError(Setting(name, text, kind), ": write ", Setting(name, float(share), kind), ".")
    return {
        name: _typed(fields[name].annotation, text) if name in fields else value(text)
        for name, text in settings.items()
    }


def _typed(annotation: Any, text: str) -> Any:
    found, types = value(text), kinds(annotation)
    several = [get_args(kind)[0] for kind in types if get_origin(kind) in (tuple, list)]
    number = isinstance(found, bool | int | float)
    if several and (isinstance(found, str) or (number and len(several) == len(types))):
        return [_typed(several[0], part.strip()) for part in _split(text, ",") if part.strip()]
    if types == [str] and not isinstance(found, str) and (found is not None or annotation is str):
        return text  # a name may look like a number
    if isinstance(found, str) and _takes_flags(annotation):
        return WORDS.get(found.lower(), found)
    return found


def _split(text: str, mark: str) -> list[str]:
    """The parts of a text between marks, of which those in quotes and brackets are none."""
    return re.findall(rf"(?:{WHOLE}|(?!{mark})[\s\S])+", text)


def kinds(annotation: Any) -> list[Any]:
    """The types that a value may have beside None."""
    union = get_origin(annotation) in (Union, UnionType)
    return [kind for kind in (get_args(annotation) if union else (annotation,)) if kind is not type(None)]


def _takes_flags(annotation: Any) -> bool:
    return annotation is bool or any(map(_takes_flags, get_args(annotation)))


def written(values: Mapping[str, Any]) -> list[str]:
    """Settings as text that is read as the same, `key=value` each."""
    return [f"{key}={word(item)}" for key, item in values.items()]


def word(item: Any) -> str:
    """A value as text that `value` reads as the same."""
    if isinstance(item, str):
        return item if PLAIN.fullmatch(item) and value(item) == item else json.dumps(item)
    if isinstance(item, float) and float(f"{item:g}") == item:
        return f"{item:g}"
    return json.dumps(item, default=str, separators=(",", ":"))
