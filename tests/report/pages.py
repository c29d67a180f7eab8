"""Pages, read as a browser would."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "input", "br", "link", "img"}


@dataclass
class Element:
    name: str
    attributes: dict[str, str | None]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """Its elements in order. Raises AssertionError for tags that are not closed."""

    source: str
    elements: list[Element] = field(default_factory=list)
    _open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source)
        self.close()
        assert not self._open, f"<{self._open[-1].name}> is not closed"

    def __hash__(self) -> int:
        return id(self)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = Element(tag, dict(attrs))
        self.elements.append(found)
        if tag not in VOID:
            self._open.append(found)

    def handle_endtag(self, tag: str) -> None:
        last = self._open.pop()
        assert last.name == tag, f"</{tag}> closes <{last.name}>"

    def handle_data(self, data: str) -> None:
        for one in self._open:
            one.text += data

    def of(self, name: str, **attributes: str) -> list[Element]:
        return [
            e
            for e in self.elements
            if e.name == name and all(e.attributes.get(k.rstrip("_")) == v for k, v in attributes.items())
        ]

    @property
    def panels(self) -> list[str]:
        return [
            (e.attributes.get("class") or "").removeprefix("panel-")
            for e in self.of("section")
            if (e.attributes.get("class") or "").startswith("panel-")
        ]

    @property
    def data(self) -> list[Any]:
        """What the page's script reads."""
        return [json.loads(e.text) for e in self.of("script", type="application/json")]

    @property
    def text(self) -> str:
        """What is read on the page."""
        return " ".join(self.of("body")[0].text.split())
