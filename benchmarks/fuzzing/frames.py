"""What is around the blocks: stems, heads, the forms of inputs and outputs, losses in training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzzing.parts import Block, conv, mean, spread

STEM = 4


def images(dim: int, size: int, c: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(2, c, *[size] * dim, generator=torch.Generator().manual_seed(seed))


class Chain(nn.Module):
    """A stem, blocks after each other, a classifier.

    kept: what stays whole because it is returned: 0 is what the stem makes, i what the i-th block does.
    """

    kept: tuple[int, ...] = ()

    def __init__(self, blocks: Iterable[Block], dim: int, size: int) -> None:
        super().__init__()
        self.stem, self.blocks = conv(dim, 3, STEM), nn.ModuleList(blocks)
        self.last = len(self.blocks)
        self.width = self.blocks[-1].out if self.last else STEM
        self.head = nn.Linear(self.width, 3)
        self.dim, self.size = dim, size

    def inputs(self) -> Any:
        return images(self.dim, self.size)

    def features(self, x: Tensor) -> list[Tensor]:
        maps = [F.relu(self.stem(x))]
        for layer in self.blocks:
            maps.append(layer(maps[-1]))
        return maps

    def forward(self, x: Tensor) -> Any:
        return self.head(mean(self.features(x)[-1]))


class Dense(Chain):
    """A prediction for each position."""

    def __init__(self, blocks: Iterable[Block], dim: int, size: int) -> None:
        super().__init__(blocks, dim, size)
        self.head = conv(dim, self.width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.head(self.features(x)[-1]), scale_factor=2.0)


class Flat(Chain):
    """A linear layer over all channels and positions."""

    def __init__(self, blocks: Iterable[Block], dim: int, size: int) -> None:
        super().__init__(blocks, dim, size)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(self.width * size**dim, 5), nn.ReLU(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)[-1])


class Returns(Chain):
    """Feature maps among the outputs, in containers."""

    def __init__(self, blocks: Iterable[Block], dim: int, size: int) -> None:
        super().__init__(blocks, dim, size)
        self.kept = (self.last,)

    def forward(self, x: Tensor) -> Any:
        maps = self.features(x)
        return {"logits": self.head(mean(maps[-1])), "levels": [(maps[-1].tanh(), "a level")]}


@dataclass
class Found:
    logits: Tensor
    features: Any


class ReturnsDataclass(Returns):
    def forward(self, x: Tensor) -> Any:
        maps = self.features(x)
        return Found(self.head(mean(maps[-1])), {"last": maps[-1]})


class ReturnsNamespace(Returns):
    def forward(self, x: Tensor) -> Any:
        maps = self.features(x)
        return SimpleNamespace(logits=self.head(mean(maps[-1])), pyramid=SimpleNamespace(last=maps[-1]))


class Slotted:
    __slots__ = ("features", "logits")

    def __init__(self, logits: Tensor, features: Tensor) -> None:
        self.logits, self.features = logits, features


class ReturnsSlots(Returns):
    def forward(self, x: Tensor) -> Any:
        maps = self.features(x)
        return [Slotted(self.head(mean(maps[-1])), maps[-1])]


class TwoImages(Chain):
    """Two inputs, each with a stem of its own, compared."""

    def __init__(self, blocks: Iterable[Block], dim: int, size: int) -> None:
        super().__init__(blocks, dim, size)
        self.other = conv(dim, 2, STEM)

    def inputs(self) -> Any:
        return images(self.dim, self.size), images(self.dim, self.size, 2, 2)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        maps = F.relu(self.stem(x) - self.other(y))
        for layer in self.blocks:
            maps = layer(maps)
        return self.head(mean(maps))


class Siamese(Chain):
    """The same layers on both inputs; how far apart they are."""

    def inputs(self) -> Any:
        return {"left": images(self.dim, self.size), "right": images(self.dim, self.size, 3, 2)}

    def forward(self, left: Tensor, right: Tensor | None = None) -> Any:
        a = self.head(mean(self.features(left)[-1]))
        return (a, None) if right is None else (a, self.head(mean(self.features(right)[-1])) - a)


class ListOfImages(Chain):
    def inputs(self) -> Any:
        return ([images(self.dim, self.size)[0], images(self.dim, self.size, 3, 2)[0]],)

    def forward(self, x: list[Tensor]) -> Any:
        return [{"scores": row} for row in self.head(mean(self.features(torch.stack(x))[-1]))]


class Timed(Chain):
    """Diffusion: a number's embedding is added to the map."""

    def __init__(self, blocks: Iterable[Block], dim: int, size: int) -> None:
        super().__init__(blocks, dim, size)
        self.time = nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, STEM))
        self.head = conv(dim, self.width, 3)

    def inputs(self) -> Any:
        return {"x": images(self.dim, self.size), "t": torch.tensor([3, 7])}

    def forward(self, x: Tensor, t: Tensor) -> Any:
        at = t[:, None] * torch.tensor([1.0, 0.1], device=t.device).to(x)
        maps = self.stem(x) + spread(self.time(torch.cat([at.sin(), at.cos()], 1)), x)
        for layer in self.blocks:
            maps = layer(maps)
        return self.head(maps)


class Auxiliary(Chain):
    """A second classifier in training only."""

    def __init__(self, blocks: Iterable[Block], dim: int, size: int) -> None:
        super().__init__(blocks, dim, size)
        at = self.last // 2
        self.at, self.aux = at, nn.Linear(self.blocks[at - 1].out if at else STEM, 3)

    def forward(self, x: Tensor) -> Any:
        maps = self.features(x)
        out = self.head(mean(maps[-1]))
        return (out, self.aux(mean(maps[self.at]))) if self.training else out


class Targets(Auxiliary):
    """A loss in training, of targets that are needed for it."""

    def targets(self) -> Any:
        return torch.tensor([0, 2])

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        maps = self.features(x)
        out = self.head(mean(maps[-1]))
        if not self.training:
            return out
        if y is None:
            raise ValueError("targets are needed in training")
        return F.cross_entropy(out, y) + F.cross_entropy(self.aux(mean(maps[self.at])), y)


class DeepSupervision(Chain):
    """In training the one head reads two maps of the same width."""

    def __init__(self, blocks: Iterable[Block], dim: int, size: int) -> None:
        super().__init__(blocks, dim, size)
        self.a, self.b, self.head = conv(dim, self.width, 6, 1), conv(dim, self.width, 6, 1), nn.Linear(6, 3)
        self.other = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.features(x)[-1]
        a, b = mean(self.a(x).relu()), mean(self.b(x).relu())
        return [self.head(a), self.other(b), *([self.head(b)] if self.training else [])]


class Detector(Chain):
    """Boxes and scores for each position, and the best of them by topk: of little use as a witness."""

    def __init__(self, blocks: Iterable[Block], dim: int, size: int) -> None:
        super().__init__(blocks, dim, size)
        self.head, self.boxes = (
            conv(dim, self.width, 1),
            nn.Sequential(conv(dim, self.width, 5, 1), nn.ReLU(), conv(dim, 5, 4)),
        )

    def forward(self, x: Tensor) -> Any:
        maps = self.features(x)[-1]
        scores, boxes = self.head(maps).flatten(1), self.boxes(maps).flatten(2)  # (N, T), (N, 4, T)
        if self.training:
            return scores, boxes
        best, at = scores.topk(4, 1)
        return [
            {"scores": s, "boxes": b} for s, b in zip(best, boxes.gather(2, at[:, None].expand(-1, 4, -1)), strict=True)
        ]


FRAMES: dict[str, type[Chain]] = {
    frame.__name__: frame
    for frame in (
        Chain, Dense, Flat, Returns, ReturnsDataclass, ReturnsNamespace, ReturnsSlots, TwoImages, Siamese, ListOfImages,
        Timed, Auxiliary, Targets, DeepSupervision, Detector,
    )
}  # fmt: skip
