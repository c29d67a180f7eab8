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
from pydantic.fields import FieldInfo

from secateurs.errors import ConfigError

WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
MARKS = ",+"  # between terms
QUOTED = r'"(?:[^"\\]|\\.)*"'
WHOLE = rf'{QUOTED}|\[(?:{QUOTED}|[^"\]])*\]|\{{(?:{QUOTED}|[^"}}])*\}}'  # what may hold marks and spaces
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
    one of these names: `nodes=a,b` is one setting. In quotes and brackets none does. Raises ConfigError for words that are
    not settings, and for settings that are given twice."""
    known = "|".join(map(re.escape, names))
    mark = rf"[{MARKS}](?=\s|$|(?:{known})(?:[\s:{MARKS}]|$))"
    words: list[list[str]] = [[]]
    for word in re.findall(rf"[^\s={MARKS}]+=(?:{WHOLE}|(?!{mark})\S)*|[{MARKS}]|[^\s{MARKS}]+", text):
        if word in MARKS:
            words.append([])
        else:
            words[-1].append(word)
    return [_term(part) for part in words]


def _term(words: Sequence[str]) -> Term:
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


def value(text: str) -> Any:
    """What a text stands for: JSON if it is JSON (0.7, true, null), True and False as well, or the text."""
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def typed(kind: type[BaseModel], settings: Mapping[str, str]) -> dict[str, Any]:
    """Values of text as the fields take them: words for true and false, and several values with commas."""
    return {name: _typed(kind.model_fields.get(name), text) for name, text in settings.items()}


def _typed(field: FieldInfo | None, text: str) -> Any:
    found, types = value(text), [] if field is None else kinds(field.annotation)
    several = [get_origin(kind) in (tuple, list) for kind in types]
    if (isinstance(found, str) and any(several)) or (
        isinstance(found, bool | int | float) and several and all(several)
    ):
        whole = found if isinstance(found, str) else text  # a module's name may look like a number
        return [part.strip() for part in whole.split(",") if part.strip()]
    if field is not None and isinstance(found, str) and _takes_flags(field.annotation):
        return WORDS.get(found.lower(), found)
    return found


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
