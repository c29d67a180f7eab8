"""Batches of any structure, divided into examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from secateurs.data.structure import examples, part
from secateurs.methods.npn.network import some_images


@pytest.mark.parametrize("count", [2, 3, 5])
def test_lists_of_images_are_divided_by_image(count: int) -> None:
    """Images have three channels, which is no number of examples."""
    images = [torch.randn(3, 4 + i, 5) for i in range(count)]
    targets = [{"boxes": torch.rand(count, 4), "labels": torch.ones(count)} for _ in images]
    given: list[Any] = [(images, targets), {"images": images, "targets": targets}]
    for batch in given:
        assert examples(batch) == count
        divided = part(batch, slice(0, 2), count)
        some, labels = divided.values() if isinstance(divided, dict) else divided
        assert len(some) == len(labels) == 2
        assert all(one is image for one, image in zip(some, images, strict=False))
        assert labels[1] is targets[1]


def test_pairs_in_lists_are_divided_by_row() -> None:
    first, second = part([torch.arange(2), torch.arange(2)], slice(0, 1), 2)
    assert first.tolist() == second.tolist() == [0]


def test_a_pruner_sees_whole_images() -> None:
    images = [torch.randn(3, 4, 5 + i) for i in range(8)]
    targets = [{"boxes": torch.rand(3, 4)} for _ in images]
    (some, labels), _ = some_images((images, targets), {}, 0.25)
    assert [one.shape for one in some] == [(3, 4, 5), (3, 4, 9)]
    assert labels == [targets[0], targets[4]]
    (rows,), _ = some_images((torch.arange(8),), {}, 0.25)
    assert rows.tolist() == [0, 4]
