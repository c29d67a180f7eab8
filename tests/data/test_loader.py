"""The loader: the same batches whenever, wherever and by how many processes they are asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateurs.data import Loader
from secateurs.data.augment import Augment, gather, generator
from secateurs.data.loader import ArraySource
from secateurs.errors import DataError

COUNT = 53


def make(**options: object) -> Loader:
    images = torch.randint(0, 256, (COUNT, 8, 8, 3), generator=generator(7), dtype=torch.uint8)
    source = ArraySource(images, torch.arange(COUNT), device=torch.device("cpu"))
    settings_ = {"batch_size": 8, "mean": (0.0,) * 3, "std": (1.0,) * 3, "augment": Augment(2), "shuffle": True}
    return Loader(source, **{**settings_, **options})


def same(one: list[tuple[Tensor, Tensor]], two: list[tuple[Tensor, Tensor]]) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, two, strict=True)
    )


def test_every_sample_once_in_another_order_each_epoch() -> None:
    loader = make()
    first = list(loader)
    loader.set_epoch(1)
    second = list(loader)
    assert len(first) == len(loader) == 7
    targets = [torch.cat([y for _, y in epoch]) for epoch in (first, second)]
    assert all(torch.equal(t.sort().values, torch.arange(COUNT)) for t in targets)
    assert not torch.equal(*targets)
    assert first[0][0].shape == (8, 3, 8, 8)
    assert first[0][0].dtype == torch.float32
    assert first[-1][0].shape == (5, 3, 8, 8)


def test_depends_on_seed_and_epoch_alone() -> None:
    loader = make()
    first = list(loader)
    torch.manual_seed(123)  # the global generator is not read
    state = torch.get_rng_state()
    assert same(first, list(loader))
    assert torch.equal(state, torch.get_rng_state())  # nor moved
    assert same(first, list(make()))
    assert not same(first, list(make(seed=1)))


def test_augmentation_changes_with_the_epoch_and_the_batch() -> None:
    images = torch.arange(64, dtype=torch.uint8).view(1, 8, 8, 1).expand(16, 8, 8, 3)
    source = ArraySource(images, torch.zeros(16), device=torch.device("cpu"))
    loader = Loader(source, batch_size=8, mean=(0.0,) * 3, std=(1.0,) * 3, augment=Augment(2))
    (a, _), (b, _) = loader
    loader.set_epoch(1)
    c = next(iter(loader))[0]
    assert not torch.equal(a, b)
    assert not torch.equal(a, c)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(start=st.integers(0, 7), epoch=st.integers(0, 3), drop_last=st.booleans())
def test_resumes_anywhere(start: int, epoch: int, drop_last: bool) -> None:
    loader = make(drop_last=drop_last)
    loader.set_epoch(epoch)
    start = min(start, len(loader))
    assert same(list(loader.iter_from(start)), list(loader)[start:])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(world=st.integers(1, 5), batch_size=st.integers(5, 60), epoch=st.integers(0, 2))
def test_processes_share_the_global_batch(world: int, batch_size: int, epoch: int) -> None:
    def run(rank: int, world_size: int) -> list[tuple[Tensor, Tensor]]:
        loader = make(batch_size=batch_size, rank=rank, world_size=world_size)
        loader.set_epoch(epoch)
        return list(loader)

    whole, parts = run(0, 1), [run(rank, world) for rank in range(world)]
    for index, (x, y) in enumerate(whole):
        if len(y) >= world:
            assert torch.equal(torch.cat([part[index][0] for part in parts]), x)
            assert torch.equal(torch.cat([part[index][1] for part in parts]), y)
        else:
            assert all(torch.equal(part[index][0], x) for part in parts)


def test_drop_last() -> None:
    loader = make(drop_last=True)
    assert len(loader) == 6
    assert {len(y) for _, y in loader} == {8}
    assert loader.samples == 48
    with pytest.raises(DataError, match="drop_last drops all data"):
        make(drop_last=True, batch_size=64)


def test_bad_ranks_and_batches() -> None:
    with pytest.raises(DataError, match="world_size=16"):
        make(world_size=16)
    with pytest.raises(DataError, match="rank=2"):
        make(world_size=2, rank=2)
    with pytest.raises(DataError, match="no batch 8"):
        make().iter_from(8)


def test_normalizes() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.4, 0.2)
    loader = make(mean=mean, std=std, augment=None, shuffle=False)
    x, _ = next(iter(loader))
    pixels = loader.source.images[:8].permute(0, 3, 1, 2).float() / 255
    expected = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)


def test_crop_and_flip_are_those_of_a_padded_image() -> None:
    """Against the plain way: pad each image by reflection, cut the window out, mirror it."""
    images = torch.randint(0, 256, (40, 9, 7, 3), generator=generator(1), dtype=torch.uint8)
    draws = Augment(pad=4).draw(40, generator(2))
    assert 0 < int(draws.flips.sum()) < 40
    assert set(draws.offsets.flatten().tolist()) == set(range(-4, 5))
    out = gather(images, torch.arange(40), draws)
    for i in range(40):
        padded = torch.nn.functional.pad(images[i].permute(2, 0, 1)[None].float(), (4, 4, 4, 4), mode="reflect")[0]
        top, left = (draws.offsets[i] + 4).tolist()
        window = padded[:, top : top + 9, left : left + 7]
        expected = window.flip(2) if draws.flips[i] else window
        assert torch.equal(out[i].permute(2, 0, 1).float(), expected)


def test_no_flip() -> None:
    assert not Augment(flip=False).draw(100, generator(0)).flips.any()
