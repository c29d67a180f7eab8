"""Types of the fields that are read from an artifact."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from secateurs.files import shown


def _path(text: object) -> str:
    """Check text that may be a path. Bytes that are not UTF-8 are represented by surrogates, as in Python's file names."""
    if not isinstance(text, str) or len(text) > 10_000:
        raise ValueError(f"expected text, got {type(text).__name__}")
    os.fsencode(text)  # UnicodeEncodeError is a ValueError
    return text


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"it has control characters: {shown(text)[:60]}")
    return text


LONGEST = 1000  # characters of a line
Line = Annotated[str, Field(strict=True, max_length=LONGEST), AfterValidator(_printable)]
PathText = Annotated[Any, BeforeValidator(_path)]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
AtLeastOne = Annotated[int, Field(strict=True, ge=1, lt=2**31)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Percent = Annotated[float, Field(strict=True, ge=0, le=100)]
Seconds = Annotated[float, Field(strict=True, ge=0, le=1e12)]


def plain(value: Any) -> Any:
    """Convert to JSON types. NaN and infinity, which JSON does not have, become null. Arrays become lists."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


class Open(BaseModel):
    """A model that allows unknown fields."""

    model_config = ConfigDict(extra="allow", frozen=True)


@dataclass(frozen=True)
class Figures:
    """A network's cost and, with validation data, its measurements: the loss, a classifier's top-1 and top-5 accuracy in
    percent, and custom metrics by name."""

    macs: Count
    params: Count
    top1: Percent | None = None
    top5: Percent | None = None
    loss: Number | None = None
    metrics: Mapping[Line, Number | None] = field(default_factory=dict)  # null if it is not finite


@dataclass(frozen=True)
class Latency:
    """The measured time of a cut network on its target, compared with the original's.

    target: its settings. goal: the fraction of the original's time that the budget allows. ratio: the measured fraction, as
    the median over rounds in which both ran in turn. noise: the standard error of that median, as a fraction of it.
    before, after: seconds of one run. predicted: the fraction that the latency model predicts. model_error: the model's mean
    relative error on `cuts` other cuts of this network. tries: how many cuts were measured until the budget was met.
    """

    target: Mapping[str, Any]
    goal: Number
    ratio: Number
    noise: Number
    before: Seconds
    after: Seconds
    predicted: Number
    model_error: Number | None = None
    cuts: Count = 0
    tries: Count = 1
