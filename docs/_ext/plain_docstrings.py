"""Docstrings are plain text, for `help()`: this gives Sphinx reStructuredText for them, and adds the fields of classes.

Understood: paragraphs, `code` in backticks, `name: description` lines with indented continuations, lists of `- items`,
indented blocks (code), and `>>>` sessions.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

NAMES = r"\*{0,2}[A-Za-z_][\w.]*"
ITEM = re.compile(rf"({NAMES}(?:, {NAMES})*): (\S.*)")
CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)


def inline(text: str) -> str:
    """A run of text: code stays code, and nothing else is markup."""
    out, at = [], 0
    for match in CODE.finditer(text):
        out += [re.sub(r"([\\*_|])", r"\\\1", text[at : match.start()]), f"``{match[2].strip()}``\\ "]
        at = match.end()
    out.append(re.sub(r"([\\*_|`])", r"\\\1", text[at:]))
    return re.sub(r"(\\ )(?=\s|$)", "", "".join(out)).replace("::", r":\ :")


def literal(lines: list[str]) -> list[str]:
    return [".. code-block:: python", "", *textwrap.indent(textwrap.dedent("\n".join(lines)), "   ").split("\n"), ""]


def definition(term: str, text: str) -> list[str]:
    return [", ".join(f"**{inline(name)}**" for name in term.split(", ")), f"   {inline(text)}", ""]


def entries(lines: list[str]) -> list[str]:
    """Lines with their indented continuations, each as one string."""
    found: list[str] = []
    for line in lines:
        if line.startswith(" ") and found:
            found[-1] += " " + line.strip()
        else:
            found.append(line)
    return found


def block(lines: list[str]) -> list[str]:
    """One block of a docstring, which no blank line divides, as reStructuredText."""
    if lines[0].startswith((" ", ">>>")):
        return literal(lines)
    parts = entries(lines)
    if all(ITEM.fullmatch(part) for part in parts):
        return [line for part in parts for line in definition(*ITEM.fullmatch(part).groups())]
    if all(part.startswith("- ") for part in parts):
        return [*(f"- {inline(part[2:])}" for part in parts), ""]
    first = next((i for i, line in enumerate(lines) if i and ITEM.match(line)), None)
    if first is not None and all(ITEM.fullmatch(part) for part in entries(lines[first:])):
        return block(lines[:first]) + block(lines[first:])
    return [inline(" ".join(line.strip() for line in lines)), ""]


def converted(lines: list[str]) -> list[str]:
    out: list[str] = []
    here: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            here.append(line)
        elif here:
            out += block(here)
            here = []
    return out


def settings(cls: type[BaseModel], text: str) -> list[str]:
    """Fields of a pydantic model which its docstring does not describe."""
    out: list[str] = []
    for name, field in cls.model_fields.items():
        if not re.search(rf"(?m)^(?:[\w*]+, )*{name}(?:, \w+)*: ", text):
            default = field.get_default(call_default_factory=True)
            shown = "required" if default is PydanticUndefined else f"default: `{default!r}`"
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            one_of = f"one of {', '.join(f'`{choice!r}`' for choice in choices)}" if choices else ""
            out += definition(name, "; ".join(filter(None, (field.description, one_of, shown))))
    return out


def fields(cls: type, text: str) -> list[str]:
    """Fields of a dataclass, described by their comments."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        return []
    out: list[str] = []
    for field in dataclasses.fields(cls):
        if field.name.startswith("_") or re.search(rf"(?m)^(?:\w+, )*{field.name}(?:, \w+)*: ", text):
            continue
        comment = re.search(rf"(?m)^    {field.name}: .*?  # (.*)$", source)
        out += definition(field.name, f"`{field.type}`" + (f": {comment[1]}" if comment else ""))
    return out


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    text = "\n".join(lines)
    new = converted(lines)
    if what == "class" and isinstance(obj, type):
        if issubclass(obj, BaseModel):
            new += settings(obj, text)
        elif dataclasses.is_dataclass(obj):
            new += fields(obj, text)
    lines[:] = new


def default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return ""
    plain = field.default is not dataclasses.MISSING and not callable(field.default)
    return f"={field.default!r}" if plain else "=…"


def signature(app: Any, what: str, name: str, obj: Any, *_: Any) -> tuple[str, None] | None:
    """Classes with fields show their names and defaults: types stand with each field's description."""
    if what != "class" or not isinstance(obj, type):
        return None
    if issubclass(obj, BaseModel):
        defaults = {n: f.get_default(call_default_factory=True) for n, f in obj.model_fields.items()}
        shown = [n if d is PydanticUndefined else f"{n}={d!r}" for n, d in defaults.items()]
    elif dataclasses.is_dataclass(obj):
        shown = [f"{f.name}{default(f)}" for f in dataclasses.fields(obj) if f.init]
    else:
        return None
    return f"({', '.join(shown)})", None


def skip(app: Any, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Members that pydantic adds to every model are left out."""
    return True if name.startswith("model_") else None


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True}
