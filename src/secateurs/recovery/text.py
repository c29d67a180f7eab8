"""Recovery as text: `reconstruct, finetune:10 lr=0.05`, or `none`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from secateurs.errors import ConfigError, nearest
from secateurs.grammar import terms, typed, word
from secateurs.grammar import written as settings_written
from secateurs.presets import changed
from secateurs.recovery.recipes import MODES
from secateurs.recovery.reconstruct import Reconstruct
from secateurs.training.recipe import Phase

KINDS: dict[str, type[Phase]] = {**MODES, Reconstruct.mode: Reconstruct}
NONE = "none"


def read(text: str) -> list[tuple[type[Phase], dict[str, Any]]]:
    """The phases that a text names, each with its settings. What follows a colon is one of them: `finetune:10` has 10 epochs,
    `reconstruct:512` reads 512 images. Raises ConfigError for what is not written so."""
    found = []
    for term in terms(text, KINDS) if text.strip() != NONE else []:
        name, *words = term.name.split() or [""]
        mode, colon, _ = name.partition(":")
        if not mode:
            raise ConfigError("A recovery has no name: write, for example, 'finetune:10 lr=0.05', or 'none'.")
        if mode not in KINDS:
            raise ConfigError(f"There is no recovery {mode!r}. {nearest(mode, [*KINDS, NONE])}")
        if words:
            raise ConfigError(f"{term.name!r}: a setting of {mode} is written key=value.")
        settings = typed(KINDS[mode], term.settings)
        if colon:
            length = _length(mode)
            if length in settings:
                raise ConfigError(f"{term}: {length} is given twice: give one of them.")
            settings = {length: _amount(name), **settings}
        found.append((KINDS[mode], settings))
    return found


def written(mode: str, settings: Mapping[str, Any]) -> str:
    """The text of a phase, with its settings as JSON has them."""
    given = changed(KINDS[mode], settings)
    amount = given.pop(_length(mode), None)
    return " ".join([mode if amount is None else f"{mode}:{word(amount)}", *settings_written(given)])


def as_text(phases: Sequence[Mapping[str, Any]]) -> str:
    """The text of phases, each with its mode and its settings as JSON has them."""
    return ", ".join(written(phase["mode"], phase) for phase in phases) or NONE


def _length(mode: str) -> str:
    return "images" if mode == Reconstruct.mode else "epochs"


def _amount(name: str) -> float:
    mode, _, text = name.partition(":")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        length = _length(mode)
        raise ConfigError(f"{name}: write {mode}:{length.upper()}, with a number of {length}, 0 or more.")
    return number
