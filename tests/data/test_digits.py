"""The embedded data set, and the small network that learns it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from secateurs.data import load

pytest.importorskip("sklearn")


def test_split_is_fixed_stratified_and_disjoint() -> None:
    one, two = load("digits", augment=False, normalize="none"), load("digits", augment=False, normalize="none", seed=5)
    x, y = (torch.cat(parts) for parts in zip(*one.val, strict=True))
    assert torch.equal(x, torch.cat([x for x, _ in two.val]))  # whatever the seed
    assert x.shape[1:] == one.input_shape == (3, 32, 32)
    assert len(one.train.source) + len(one.val.source) == 1797
    counts = torch.bincount(y)
    assert len(counts) == len(one.classes) == 10
    assert (counts - 36).abs().max() <= 2
    train = {bytes(image.numpy().tobytes()) for image in one.train.source.images}
    assert not any(bytes(image.numpy().tobytes()) in train for image in one.val.source.images)
    assert x.min() == 0
    assert x.max() > 0.9


def test_batches_are_images_of_their_class() -> None:
    """A nearest-mean classifier gets most of them right, augmented or not."""
    data = load("digits", normalize="none")
    x, y = (torch.cat(parts) for parts in zip(*data.train, strict=True))
    means = torch.stack([x[y == label].mean(0) for label in range(10)])
    val, targets = (torch.cat(parts) for parts in zip(*data.val, strict=True))
    found = torch.cdist(val.flatten(1), means.flatten(1)).argmin(1)
    assert (found == targets).float().mean() > 0.8


def test_image_size() -> None:
    data = load("digits", image_size=16)
    assert next(iter(data.train))[0].shape == (128, 3, 16, 16)
    assert F.one_hot(next(iter(data.val))[1], 10).sum() == 128
