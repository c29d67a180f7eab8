"""The geometry of what a runtime computes at once: a layer with the ops fused into it, or a separate op, at any widths."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

Kind = Literal["convolution", "linear", "norm", "pointwise", "pooling", "concatenation"]
DEPTHWISE = 0  # the value of `groups` for one group per channel


@dataclass(frozen=True)
class Geometry:
    """Everything about a piece of a network except its widths.

    batch: the number of images, or of a linear layer's rows. space: the input's spatial size. groups: those of a convolution;
    `DEPTHWISE` for one per channel. norm, added, activation: the ops that directly follow a layer, in this order. inputs: the
    number of activations that an op reads. mode: "max", "mean" or "global" for pooling.
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
        """Whether the piece has two widths. Pieces of other kinds have the same input and output width."""
        return self.kind in ("convolution", "linear") and self.groups != DEPTHWISE

    @property
    def key(self) -> str:
        """The piece's name in files."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:20]
