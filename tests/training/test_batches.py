from __future__ import annotations

import pytest
import torch

import secateurs.recovery as R
from secateurs.errors import DataError
from secateurs.training import batches as B

from .helpers import Noisy, Ours, batches, engine, net


def passes(source: object, epoch: int, start: int = 0) -> list:
    return [(i, b, last) for i, b, last in B.walk(source, seed=3, epoch=epoch, start=start)]


@pytest.mark.parametrize("wrap", [list, Noisy, Ours, lambda items: lambda: iter(items)])
def test_a_pass_entered_later_yields_the_same_batches(wrap: type) -> None:
    source = wrap(batches(5))
    whole = passes(source, 2)
    assert [i for i, _, _ in whole] == list(range(5))
    assert [last for _, _, last in whole] == [False] * 4 + [True]
    for start in range(5):
        torch.rand(start)  # other draws must not matter
        for (i, a, x), (j, b, y) in zip(whole[start:], passes(source, 2, start), strict=True):
            assert (i, x) == (j, y)
            assert torch.equal(a.inputs, b.inputs)
            assert torch.equal(a.targets, b.targets)


def test_data_loader_shuffles_by_our_seed() -> None:
    items = [(x[0], y[0]) for x, y in batches(20)]
    loader = torch.utils.data.DataLoader(items, batch_size=4, shuffle=True)
    first, again, other = passes(loader, 0), passes(loader, 0), passes(loader, 1)
    assert all(torch.equal(a.inputs, b.inputs) for (_, a, _), (_, b, _) in zip(first, again, strict=True))
    assert not torch.equal(first[0][1].inputs, other[0][1].inputs)


class Drawn(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.randn(3), index


def test_workers_that_are_kept_draw_the_same_in_the_same_pass() -> None:
    loader = torch.utils.data.DataLoader(Drawn(), batch_size=2, num_workers=1, persistent_workers=True)
    first, _, again = passes(loader, 0), passes(loader, 1), passes(loader, 0)
    assert all(torch.equal(a.inputs, b.inputs) for (_, a, _), (_, b, _) in zip(first, again, strict=True))
    loader._iterator = None  # ends them


def test_one_shot_generator_runs_out_with_a_clear_error() -> None:
    recipe = R.Recover(epochs=2, schedule="constant", precision="fp32")
    with pytest.raises(DataError, match="one-shot generator"):
        engine(net(), iter(batches()), recipe).fit()
    with pytest.raises(DataError, match="steps="):
        engine(net(), (b for b in batches())).fit()


def test_generator_function_is_counted_for_a_schedule() -> None:
    train = batches(6)
    e = engine(net(), lambda: iter(train), R.Recover(epochs=1.5, precision="fp32"))
    e.fit()
    assert (e.total, e.step) == (9, 9)
    assert [line["step"] for line in e.history] == [6, 9]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([], "empty"),
        ([torch.zeros(3)], "Batch 0 of train is a tensor"),
        ([(torch.zeros(3), torch.zeros(3), 1)], "tuple of 3"),
        ([(torch.zeros(3), [1, 2, 3])], "targets must be a tensor"),
        (5, "not an int"),
    ],
)
def test_bad_data(source: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        engine(net(), source, R.Recover(steps=3)).fit()


def test_shares_of_a_batch_make_the_batch() -> None:
    batch = B.Batch({"x": torch.arange(7), "y": (torch.arange(7),)}, torch.arange(7))
    for world in (1, 2, 3):
        parts = [B.share(batch, rank, world) for rank in range(world)]
        assert torch.equal(torch.cat([p.targets for p in parts]), batch.targets)
        assert torch.equal(torch.cat([p.inputs["y"][0] for p in parts]), batch.targets)
    assert B.share(batch, 1, 8).targets.shape == (7,)  # too few rows to go round
