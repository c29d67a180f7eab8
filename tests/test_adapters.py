"""Adapters for well-known kinds of models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.errors import DataError

BUDGET = sc.Budget(macs=0.6)


def trunk() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
    )


class Named(nn.Module):
    """Like a model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = trunk(), nn.Linear(8, 4)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.head(self.trunk(pixel_values).mean((2, 3)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)


def test_models_that_return_their_loss() -> None:
    def batch() -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(4, 3, 8, 8), "labels": torch.randint(0, 4, (4,))}

    data = [batch() for _ in range(3)]
    example = {"pixel_values": torch.randn(1, 3, 8, 8)}
    recover = [sc.Reconstruct(images=8), sc.Recover(epochs=2, share=0.5)]
    for method in ("l2", sc.NPN(epochs=2)):
        result = sc.prune(
            Named(),
            example,
            method,
            BUDGET,
            sc.Data(data, data),
            recover,
            **sc.adapters.huggingface(),
            progress="silent",
        )
        assert result.after.top1 is not None
        assert result.history[-1]["share"] == 0.5
    given: dict[str, Any] = {**sc.adapters.huggingface(), "recover": sc.Recover(epochs=1), "progress": "silent"}
    unlabeled = [{"pixel_values": b["pixel_values"]} for b in data]
    with pytest.raises(DataError, match="returns no loss: the batches need its labels, under the key 'labels'"):
        sc.prune(Named(), example, "l2", BUDGET, unlabeled, **given)
    pairs = [list(b.values()) for b in data]
    with pytest.raises(DataError, match="Batch 0 of train: A batch is a list: this adapter takes dicts"):
        sc.prune(Named(), example, "l2", BUDGET, pairs, **given)


class Detector(nn.Module):
    """Like torchvision's: lists of images of several sizes; losses in training, detections in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.box, self.score = trunk(), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        height, width = (max(x.shape[a] for x in images) for a in (1, 2))
        x = torch.stack([F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images])
        h = self.trunk(x)
        boxes, scores = (head(h).mean((2, 3)) for head in (self.box, self.score))
        if self.training:
            assert targets is not None
            wanted = torch.stack([t["boxes"][0] for t in targets])
            labels = torch.stack([t["labels"][0] for t in targets])
            return {"boxes": F.smooth_l1_loss(boxes, wanted), "classes": F.cross_entropy(scores, labels)}
        return [
            {"boxes": b[None], "scores": s.softmax(0).max()[None], "labels": s.argmax()[None]}
            for b, s in zip(boxes, scores, strict=True)
        ]


def test_detectors() -> None:
    def batch(n: int) -> tuple[Any, Any]:
        images = tuple(torch.rand(3, 8 + 2 * i, 12 - i) for i in range(n))
        return images, tuple({"boxes": torch.rand(1, 4), "labels": torch.randint(0, 2, (1,))} for _ in images)

    def distance(found: Any, targets: Any) -> Tensor:
        return torch.stack([F.l1_loss(f["boxes"], t["boxes"]) for f, t in zip(found, targets, strict=True)]).mean()

    data = [batch(2), batch(3)] * 4
    for method in ("l2", sc.AOFP(epochs=1), sc.PFF(epochs=1), sc.OneStep(), "epruner"):
        result = sc.prune(
            Detector(), ([torch.rand(3, 8, 8)],), method, BUDGET, sc.Data(data, data), sc.Recover(epochs=6, lr=0.05),
            metrics={"distance": distance}, scope="all", progress="silent", **sc.adapters.detection(),
        )  # fmt: skip
        assert result.after.metrics["distance"] < result.before.metrics["distance"]
        assert result.after.top1 is None
        assert result.error < 1e-5
