"""What a runtime computes at once: a layer with what is fused into it, or an op of its own, at any widths."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

Kind = Literal["convolution", "linear", "norm", "pointwise", "pooling", "concatenation"]
DEPTHWISE = 0  # groups: as many as there are channels


@dataclass(frozen=True)
class Geometry:
    """Everything about a piece of a network but its widths.

    batch: the images; of a linear layer, the rows. space: the input's spatial size. groups: of a convolution, `DEPTHWISE` for
    one per channel. norm, added, activation: what follows a layer at once, in this order. inputs: of an op between
    activations. mode: "max", "mean" or "global" for pooling.
    """

    kind: Kind
    batch: int
    space: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    norm: bool = False
    added: bool = False
    activation: str = ""
    inputs: int = 1
    mode: str = ""

    @property
    def square(self) -> bool:
        """Whether it has two widths; of the other kinds, what comes in and what goes out are as wide."""
        return self.kind in ("convolution", "linear") and self.groups != DEPTHWISE

    @property
    def key(self) -> str:
        """A name for files."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:20]
