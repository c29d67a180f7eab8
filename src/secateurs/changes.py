"""What has changed between the settings on record and those of now, in words."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any


def differences(then: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """What to call each setting that is not what it was, and its two values."""
    keys = (
        ["name"] if then.get("name") != now.get("name") else dict.fromkeys([*then, *now])
    )  # another method altogether
    for key in keys:
        a, b = then.get(key), now.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{within}{key}.")
        elif a != b:
            yield f"{within}{key} ({_brief(a)} then, {_brief(b)} now)"


def _brief(value: Any) -> str:
    """A value, shortened for a message."""
    if value is None or isinstance(value, Mapping):
        return "none" if value is None else "given"
    if isinstance(value, float):
        return f"{value:.12g}"
    text = repr(value) if isinstance(value, str | int) else reprlib.repr(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
