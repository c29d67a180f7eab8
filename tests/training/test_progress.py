from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from secateurs.training import Engine, Recipe
from secateurs.training.progress import summary
from tests.training.helpers import batches, net


class Damaged(list[Any]):
    """Batches some of whose images could not be decoded."""

    def __init__(self, skipped: int, items: list[Any]) -> None:
        super().__init__(items)
        self.skipped = skipped


@pytest.mark.parametrize(("train", "val"), [(1, 3), (2, 0), (0, 1)])
def test_damaged_images_are_counted_in_both_splits(train: int, val: int) -> None:
    data = SimpleNamespace(train=Damaged(train, batches(2)), val=Damaged(val, batches(1)))
    (line,) = Engine(net(), data, Recipe(epochs=1, lr=0.01), progress="silent").fit()
    assert (line.get("skipped", 0), line.get("val_skipped", 0)) == (train, val)
    text = summary(line, "train")
    assert ("1 unreadable image left out" in text) == (train == 1)
    assert ("2 unreadable images left out" in text) == (train == 2)
    assert ("1 unreadable validation image left out" in text) == (val == 1)
    assert ("3 unreadable validation images left out" in text) == (val == 3)


def test_a_line_fits_into_a_terminal() -> None:
    line = {"epoch": 100, "train_loss": 2.303, "train_top1": 100.0, "val_top1": 100.0, "val_top5": 100.0}
    text = summary({**line, "images_per_second": 12_345.0, "seconds": 599.0}, "pretrain")
    assert text == "pretrain  epoch 100  loss 2.303  top-1 100.0  val 100.00  12,345 img/s  9:59"
    assert len(text) <= 80
