"""Check the arguments of a study."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real
from typing import Any

from secateurs.errors import ConfigError, Setting
from secateurs.methods.criterion import Criterion
from secateurs.methods.method import Method
from secateurs.methods.registry import methods, resolve


def criterion(method: str | Method) -> Criterion:
    """Return the method. Raises ConfigError if it does not score channels."""
    found = resolve(method)
    if isinstance(found, Criterion):
        return found
    known = ", ".join(name for name in methods() if isinstance(resolve(name), Criterion))
    raise ConfigError(
        Setting("method", found.name), f" does not score channels, and a sensitivity study needs a criterion: {known}."
    )  # fmt: skip


def fractions(shares: Any) -> tuple[float, ...]:
    """Return the shares in ascending order. Raises ConfigError for values that are not fractions."""
    given = (shares,) if isinstance(shares, Real) or not isinstance(shares, Iterable) else tuple(shares)
    for share in given:
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 < float(share) < 1:
            raise ConfigError(
                Setting("shares", share), " is not valid: give fractions of a group's channels to cut, between 0 and 1."
            )
    if not given:
        raise ConfigError(Setting("shares", ()), " is empty: give fractions of a group's channels to cut.")
    return tuple(sorted({float(share) for share in given}))
