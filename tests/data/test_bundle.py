"""Data: what it takes, and what it says of batches that are none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from secateurs.data import Data
from secateurs.errors import DataError

BATCH = (torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))


def test_wraps_iterables_and_passes_data_through() -> None:
    batches = [BATCH]
    data = Data.of(batches)
    assert data.train is batches
    assert data.val is None
    assert Data.of(data) is data
    assert len(list(data.batches())) == 1
    with pytest.raises(DataError, match="no val batches"):
        next(data.batches("val"))


def test_functions_return_fresh_batches() -> None:
    def batches() -> Iterator[Any]:
        yield BATCH

    data = Data.of(batches)
    assert len(list(data.batches())) == len(list(data.batches())) == 1


def test_inputs_may_be_tuples_and_dicts() -> None:
    x, y = BATCH
    assert Data([((x, x), y), ({"image": x}, y)]).train


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((1,), "tuple of 1"),
        ((torch.zeros(4),) * 3, "tuple of 3"),
        ((torch.zeros(4), 3), "targets must be a tensor"),
        (([1, 2], torch.zeros(2)), "inputs must be a tensor"),
        ((torch.zeros(4, 3), torch.zeros(5)), "4 inputs and 5 targets"),
        ({"x": 1}, "a dict with 1 entry"),
    ],
)
def test_bad_batches(batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"Batch 0 of train.*{message}"):
        list(Data([batch]).batches())
    with pytest.raises(DataError, match=f"Batch 1 of val.*{message}"):
        list(Data([BATCH], val=iter([BATCH, batch])).batches("val"))


@pytest.mark.parametrize(
    ("source", "message"),
    [("digits", "is a name"), (3, "not an int"), ([], "empty"), (None, "No")],
)
def test_bad_sources(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Data(source)


@pytest.mark.parametrize("source", [BATCH, list(BATCH), BATCH[0]])
def test_a_single_batch_by_itself(source: Any) -> None:
    with pytest.raises(DataError, match="put it in a list"):
        Data.of(source)


X = torch.zeros(4, 3, 8, 8)


@pytest.mark.parametrize("batch", [X, (X,), [X], {"x": X}, ({"x": X},), ((X, X),)])
def test_training_batches_may_be_inputs_only(batch: Any) -> None:
    data = Data([batch, batch])
    assert [type(inputs) for inputs in data.inputs()] == [
        type(batch[0] if isinstance(batch, tuple | list) else batch)
    ] * 2
    with pytest.raises(DataError, match=r"Batch 0 of train .* not a pair"):
        list(data.batches())
    with pytest.raises(DataError, match=r"Batch 0 of val .* not a pair"):
        list(Data([batch], val=[batch]).batches("val"))


@pytest.mark.parametrize("batch", [X[:0], {"x": X[0, 0, 0, 0]}, {}, (((),),)])
def test_inputs_without_an_example(batch: Any) -> None:
    with pytest.raises(DataError, match="Batch 0 of train"):
        list(Data([batch]).inputs())
