"""A random network: which frame, which blocks with which options. Small, JSON, and built anew as often as needed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

from fuzzing import blocks as _registered  # noqa: F401
from fuzzing.frames import FRAMES, STEM, Chain
from fuzzing.kinds import KINDS
from fuzzing.parts import Block
from secateurs.testing.networks import randomize

SIZE = {1: 16, 2: 8, 3: 4}  # of space, by dimension


@dataclass(frozen=True)
class Spec:
    """blocks: (kind, options) each."""

    dim: int
    frame: str
    blocks: tuple[tuple[str, dict[str, Any]], ...]
    seed: int

    def build(self) -> Chain:
        """The network in eval mode, the same bit for bit each time."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            made: list[Block] = []
            for kind, options in self.blocks:
                made.append(_made(kind, options, made[-1].out if made else STEM, self.dim)[0])
            net = FRAMES[self.frame](made, self.dim, SIZE[self.dim])
            return randomize(net, self.seed).eval()  # type: ignore[return-value]

    def expressions(self) -> list[str]:
        """What makes each block, as it is written in a program."""
        found, c = [], STEM
        for kind, options in self.blocks:
            with torch.random.fork_rng():
                made, text = _made(kind, options, c, self.dim)
            c = made.out
            found.append(text)
        return found

    def to_json(self) -> dict[str, Any]:
        return {"dim": self.dim, "frame": self.frame, "blocks": [list(b) for b in self.blocks], "seed": self.seed}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Spec:
        return cls(record["dim"], record["frame"], tuple((k, o) for k, o in record["blocks"]), record["seed"])


def _made(name: str, options: dict[str, Any], c: int, dim: int) -> tuple[Block, str]:
    """A block, and the expression that makes it."""
    kind = KINDS[name]
    known = {"c": c, "dim": dim, "size": SIZE[dim], **options}
    values, texts = {}, []
    for argument in (*kind.given, *kind.options):
        value = text = known[argument]
        if argument in kind.around:
            value, text = _made(*value, c, dim)
        values[argument] = value
        texts.append(f"{argument}={text if argument in kind.around else repr(value)}")
    return kind.type(**values), f"{name}({', '.join(texts)})"


def network(seed: int) -> Spec:
    """The network of this seed: one to five blocks."""
    at = random.Random(seed)
    dim = at.choices((1, 2, 3), (2, 6, 2))[0]
    plain, around = (
        sorted(name for name, kind in KINDS.items() if dim in kind.dims and bool(kind.around) is wraps)
        for wraps in (False, True)
    )
    chosen = [KINDS[at.choice(around if at.random() < 0.25 else plain)] for _ in range(at.randint(1, 5))]
    frame = at.choice(sorted(FRAMES)) if at.random() < 0.6 else "Chain"
    return Spec(dim, frame, tuple((kind.name, kind.draw(at, dim)) for kind in chosen), seed)
