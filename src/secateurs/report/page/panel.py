"""A section of a run's page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Panel:
    """A section of a run's page. name: its template, `templates/NAME.html`, which gets `data`. lead: text under the title."""

    name: str
    title: str
    data: Mapping[str, Any] = field(default_factory=dict)
    lead: str = ""
