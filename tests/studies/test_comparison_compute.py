"""Comparisons at equal compute: what is counted, and how it is divided."""

from __future__ import annotations

import itertools
from typing import Any

import pydantic
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, TensorDataset

import secateurs as sc
from secateurs.cutting import Pruning
from secateurs.graph.counter import MacCounter
from secateurs.methods import resolve
from secateurs.studies.comparison.bench import Bench
from secateurs.studies.comparison.compute import (
    _observed,
    divided,
    lasting,
    recovery_cost,
    search_cost,
    shared,
    width_of,
)
from secateurs.studies.comparison.contestants import Cell, Contestant
from secateurs.studies.comparison.work import Network, Work
from secateurs.tasks.purpose import Purpose
from tests.studies.comparing import batches, tiny


def images(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(n)), torch.arange(n) % 10


def bench(train: Any, epochs: float, *recover: sc.Recover, width: int = 8) -> Bench:
    torch.manual_seed(0)
    work = Work(
        Network(module=tiny(width=width).eval()), torch.zeros(1, 3, 8, 8), sc.Data(train, [images(1)]), Purpose(),
        recover or (sc.Recover(),), epochs=epochs,
    )  # fmt: skip
    return Bench(work, "cpu")


@pytest.mark.parametrize(("method", "least", "most"), [("l2", 0, 0), ("aofp", 0.9, 2), ("npn", 1, 3)])
def test_a_search_is_counted_as_it_runs(method: str, least: float, most: float) -> None:
    torch.manual_seed(0)
    model = sc.build("zoo:small_cnn", num_classes=10).eval()
    data = [(torch.randn(8, 3, 32, 32), torch.arange(8)) for _ in range(4)]
    cost = search_cost(model, data[0][0][:1], resolve(method), sc.Budget(macs=0.5), data, 0)
    assert least <= cost.epoch <= most
    assert 0 <= cost.once < 64  # of eight images a step
    twice = search_cost(model, data[0][0][:2], resolve(method), sc.Budget(macs=0.5), data, 0)
    assert twice.epoch == pytest.approx(cost.epoch, rel=0.01)  # whatever batch it is traced with


@pytest.mark.parametrize("first", [True, False])
def test_what_the_cut_takes_afterwards_is_no_training(monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    """Which channels are cut decides what calibration does, and they differ between a short search and a longer one."""
    torch.manual_seed(0)
    model = tiny().eval()
    arguments = model, torch.zeros(1, 3, 8, 8), resolve("npn"), sc.Budget(macs=0.5), batches().train, 0
    expected = search_cost(*arguments)
    usual, cuts = Pruning._calibrated, itertools.count()

    def calibrated(self: Pruning, task: Any, *cut: Any) -> Any:
        if next(cuts) == (0 if first else 1):
            task.model(torch.zeros(300, 3, 8, 8))
        return usual(self, task, *cut)

    monkeypatch.setattr(Pruning, "_calibrated", calibrated)
    found = search_cost(*arguments)
    assert next(cuts) == 2
    assert found.epoch == pytest.approx(expected.epoch, rel=1e-6)
    assert expected.once + 1 < found.once < expected.once + 101  # the larger of the two cuts


@pytest.mark.parametrize(
    ("method", "macs"), [("aofp", 0.8), ("aofp theta=0.2", 0.8), ("aofp theta=1", 0.5), ("npn", 1.0), ("pff", 1.0)]
)
def test_a_search_that_ends_early(method: str, macs: float) -> None:
    """An epoch costs what the steps cost that there were, and a search that takes none costs nothing."""
    cells = bench([images(128)] * 8, 2.0)
    cell = Cell(Contestant.of(method), sc.Budget(macs=macs), 0)
    cost = cells.search_cost(cell)
    assert 0.9 < cost.epoch < 1.5 if macs < 1 else cost.epoch == 0
    figures = cells.measure(cell, cost)
    assert figures["search"]["epochs"] <= 2
    assert (figures["search"]["steps"] == 0) == (macs == 1)  # recovery's are not the search's
    assert figures["passes"] == pytest.approx(
        cost.once / 1024
        + figures["search"]["steps"] / 8 * cost.epoch
        + figures["recovery"][0]["epochs"] * (macs + 1 / 3),
        abs=0.2,
    )


def test_epochs_that_are_shorter_than_the_data() -> None:
    """`steps_per_epoch` makes epochs shorter, and more of them take the compute."""
    counted, found = [], []
    for text, short in (("onestep", None), ("onestep steps_per_epoch=2", 2)):
        cells = bench([images(16)] * 12, 4.0, sc.Recover(share=0, steps_per_epoch=short))
        cell = Cell(Contestant.of(text), sc.Budget(macs=0.5), 0)
        cost = cells.search_cost(cell)
        with MacCounter() as counter:
            found.append(cells.measure(cell, cost))
        counted.append(counter.macs)
    assert found[0]["search"]["steps"] == found[1]["search"]["steps"] > 1
    assert found[0]["passes"] == pytest.approx(found[1]["passes"], abs=0.01)
    assert counted[0] == pytest.approx(counted[1], rel=0.02)


def test_a_loader_with_a_generator_of_its_own_starts_again_in_every_cell() -> None:
    torch.manual_seed(0)
    examples = torch.utils.data.TensorDataset(torch.randn(64, 3, 8, 8), torch.arange(64) % 10)
    loader = torch.utils.data.DataLoader(examples, 16, shuffle=True, generator=torch.Generator().manual_seed(5))
    cells = bench(loader, 1.0)
    orders = [[y.tolist() for _, y in cells.at(seed).train] for seed in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


class Batched(Dataset[tuple[Tensor, Tensor]]):
    """Its items are batches."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return images(8)


class Listed(list[tuple[Tensor, Tensor]]):
    """Batches of a class of the user's own, with an attribute that means something else."""

    samples = ("one.png", "two.png")


HALF: Any = [[0, 1, 2, 3], [4, 5, 6, 7]]  # a batch sampler that draws half of the data


@pytest.mark.parametrize(
    ("train", "count"),
    [
        (DataLoader(TensorDataset(*images(16)), batch_size=3), 16),
        (DataLoader(TensorDataset(*images(16)), batch_size=3, drop_last=True), 15),
        (DataLoader(TensorDataset(*images(16)), batch_sampler=BatchSampler(range(10), 4, drop_last=True)), 8),
        (DataLoader(TensorDataset(*images(16)), batch_sampler=HALF), 8),
        (DataLoader(Batched(), batch_size=None), 24),
        (Listed([images(4)] * 2), 8),
    ],
)
def test_a_pass_has_as_many_images_as_are_read(train: Any, count: int) -> None:
    assert bench(train, 1.0).images == count


def test_a_method_is_the_same_but_for_its_length() -> None:
    class Scaled(sc.OneStep):
        strength: float = 1.0
        _extra: str = "none"

        @pydantic.field_validator("strength", mode="before")
        @classmethod
        def _percent(cls, value: float) -> float:
            return value / 100

    method = Scaled(strength=50)
    method._extra = "mine"
    for found in (lasting(method, 2.5), _observed(method, lambda: None)):
        assert isinstance(found, Scaled)
        assert (found.strength, found._extra, found.name) == (0.5, "mine", "Scaled")
    assert lasting(method, 2.5).epochs == 2.5  # type: ignore[attr-defined]

    class Whole(sc.OneStep):
        epochs: int = 3  # type: ignore[assignment]

    assert [lasting(Whole(), n).epochs for n in (0.2, 2.7)] == [1, 3]  # type: ignore[attr-defined]
    assert method.epochs is None


@pytest.mark.parametrize("share", [None, 0.9])
def test_a_teacher_that_cannot_teach_costs_nothing(share: float | None) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*tiny(), nn.Linear(10, 1))
    data = sc.Data([(torch.randn(16, 3, 8, 8), torch.randn(16, 1))] * 4, [(torch.randn(8, 3, 8, 8), torch.randn(8, 1))])
    recover = sc.Recover() if share is None else sc.Recover(share=share)
    work = Work(Network(module=net), torch.zeros(1, 3, 8, 8), data, Purpose(loss=F.mse_loss), (recover,), epochs=4.0)
    bench = Bench(work, "cpu")
    if share is None:
        assert [phase.share for phase in bench.recovery] == [0]
    else:
        with pytest.raises(sc.ConfigError, match="cannot teach"):
            _ = bench.recovery


def test_a_teacher_costs_a_third_of_a_pass() -> None:
    assert recovery_cost(sc.Recover(share=0), 0.3, 100) == 0.3
    assert recovery_cost(sc.Recover(), 0.3, 100) == pytest.approx(0.3 + 1 / 3)
    assert recovery_cost(sc.Reconstruct(images=50), 0.3, 100) == pytest.approx(0.5 * 1.3 / 3)


def test_phases_share_what_is_left() -> None:
    rebuild, mimic, tune = shared([sc.Reconstruct(images=50), sc.Mimic(), sc.Recover(share=0)], 3, 0.5, 100, 5)
    fixed = recovery_cost(rebuild, 0.5, 100)
    assert mimic.epochs * (0.5 + 1 / 3) == pytest.approx((3 - fixed) / 2)
    assert tune.epochs * 0.5 == pytest.approx((3 - fixed) / 2)
    (none,) = shared([sc.Recover()], -1, 0.5, 100, 5)
    assert none.epochs == 0


def test_what_an_epoch_of_the_cut_network_costs() -> None:
    whole = sc.Cost(macs=1000, params=100)
    assert width_of(sc.Budget(macs=0.3), whole, "macs") == 0.3
    assert width_of(sc.Budget(macs=300), whole, "macs") == 0.3
    assert width_of(sc.Budget(macs=0.3), whole, "steps") == 1
    assert width_of(sc.Budget(params=0.3), whole, "macs") == 1


@pytest.mark.parametrize("method", ["l2", "aofp", "npn"])
def test_what_is_reported_is_what_runs(method: str) -> None:
    """All multiply-accumulates of a cell, counted while it runs, against its figure."""
    cells = bench([images(32)] * 16, 3.0, width=48)
    cell = Cell(Contestant.of(method), sc.Budget(macs=0.5), 0)
    cost = cells.search_cost(cell)
    with MacCounter() as counter:
        figures = cells.measure(cell, cost)
    brute = counter.macs / (3 * cells.cost.macs * 16 * 32)
    assert brute == pytest.approx(figures["passes"], rel=0.06)
    assert figures["passes"] == pytest.approx(3, abs=0.01)


def test_a_method_that_takes_more_than_there_is() -> None:
    cost = search_cost(tiny(), torch.randn(1, 3, 8, 8), resolve("aofp"), sc.Budget(macs=0.5), batches().train, 0)
    with pytest.raises(sc.ConfigError, match="aofp with 5 epochs takes"):
        divided(sc.AOFP(epochs=5), 0.3, 3, cost, 32, 2, 0.5, [sc.Recover()])
    kept = divided(sc.AOFP(epochs=1), 0.3, 3, cost, 32, 2, 0.5, [sc.Recover()])
    assert kept.epochs == 1
