"""A part of a run's page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Panel:
    """name: that of its template, `templates/NAME.html`, which gets `data`. lead: a sentence under the title."""

    name: str
    title: str
    data: Mapping[str, Any] = field(default_factory=dict)
    lead: str = ""
