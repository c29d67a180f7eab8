"""AOFP in use: pictures, loops of one's own, copies, a teacher, and what becomes of bad input."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods import Task
from secateurs.methods.aofp.figures import draw, remaining, widths
from secateurs.testing.networks import randomize
from tests.methods.aofp.small import attached, bare, batches, events, images, network, train

# -- pictures ----------------------------------------------------------------------------------------------------------


def test_figures_from_the_record(tmp_path: Any) -> None:
    history: list[dict[str, Any]] = [
        {"epoch": 1, "train_loss": 1.0},
        {"event": "search", "groups": ["a", "b"], "sizes": [4, 10]},
        {"event": "move", "step": 3, "widths": [4, 8]},
        {"event": "move", "step": 7, "widths": [3, 8]},
        {"event": "end", "step": 9, "widths": [3, 9]},
    ]
    assert remaining(history) == {"a": ([0, 7, 9], [1.0, 0.75, 0.75]), "b": ([0, 3, 9], [1.0, 0.8, 0.9])}
    assert widths(history) == {"a": (4, 3), "b": (10, 9)}
    with pytest.raises(sc.ConfigError, match="not contain an aofp run"):
        remaining(history[:1])
    pytest.importorskip("matplotlib")
    for path in draw(history, tmp_path / "new"):
        assert path.read_bytes().startswith(b"\x89PNG")
    model, pruner = attached(sc.Budget(macs=0.6), steps=100, theta=0.05, search_cost=1)
    train(model, pruner, 100)
    plan = pruner.plan()
    found = widths(pruner.history)
    assert {n: b for n, (a, b) in found.items() if a != b} == {
        n: len(k) for n, k in plan.groups.items() if len(k) < found[n][0]
    }
    for name, (steps, shares) in remaining(pruner.history).items():
        assert steps == sorted(steps)
        assert shares[-1] == found[name][1] / found[name][0]


# -- loops of one's own, copies, evaluation ----------------------------------------------------------------------------


def test_a_loop_of_ones_own() -> None:
    model, pruner = attached(sc.Budget(macs=0.5), steps=200, theta=0.05, search_cost=1)
    optimizer = train(model, pruner, 200)
    x, plan = images(4, 9), pruner.plan()
    with torch.no_grad():
        want = sc.mask(bare(model), plan).eval()(x)
    sc.cut_(model, plan, optimizer)
    assert sc.count(model, images(1)).macs <= 0.5 * sc.count(network(), images(1)).macs
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), want, rtol=1e-4, atol=1e-5)
    F.cross_entropy(model.train()(x), torch.arange(4)).backward()
    optimizer.step()


def test_only_training_passes_count() -> None:
    model, pruner = attached(steps=400, search_cost=100)
    x, _y = batches()[0]
    twin = copy.deepcopy(model)
    model.eval()
    model(x)
    model.train()
    with torch.no_grad():
        model(x)
    twin.train()(x)
    assert pruner.damage.samples() == {}
    model(x)
    assert set(pruner.damage.samples()) == set(pruner.searches)


def test_taken_up_again_in_the_middle_of_a_search_step() -> None:
    def run(switch: int | None) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        model, pruner = attached(sc.Budget(macs=0.6), steps=60, theta=0.05, search_cost=3)
        train(model, pruner, switch or 45)
        if switch is not None:
            state = copy.deepcopy(pruner.state())
            weights = copy.deepcopy(model.state_dict())
            model, pruner = attached(sc.Budget(macs=0.6), steps=60, theta=0.05, search_cost=3)
            pruner.load(state)
            model.load_state_dict(weights)
            train(model, pruner, 45 - switch, first=switch)
        return pruner.record, model.state_dict()

    def restarted(switch: int) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """The same, momentum lost as above, without a new pruner."""
        model, pruner = attached(sc.Budget(macs=0.6), steps=60, theta=0.05, search_cost=3)
        train(model, pruner, switch)
        train(model, pruner, 45 - switch, first=switch)
        return pruner.record, model.state_dict()

    for switch in (7, 23):
        (record, weights), (want, wanted) = run(switch), restarted(switch)
        assert record == want
        assert events(record, "move")
        for name, value in wanted.items():
            assert torch.equal(value, weights[name]), name


def test_accumulated_batches_are_one_step() -> None:
    model, pruner = attached(steps=400, search_cost=100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    found = []
    for x, y in batches(2):
        F.cross_entropy(model(x), y).backward()
        found.append({key: torch.stack(rows) for key, rows in pruner.damage._sums.items()})
    key = next(k for k in found[1] if k.startswith("conv1"))  # which one layer reads
    optimizer.step()
    pruner.step()
    search = pruner.searches["conv1"]
    assert len(found[1][key]) == 2
    above, below, _ = found[1][key].sum(0).numpy()
    assert below.sum() == 8 * search.half  # half of the 16 examples, all alike
    assert search.sums == pytest.approx(above)
    assert search.counts.tolist() == below.tolist()
    assert (search.batches, search.halves) == (1, 8)


def test_one_half_for_a_batch() -> None:
    """The paper's and the released code's: all examples ablate the same filters."""
    model, pruner = attached(steps=400, search_cost=100, halves="batch")
    drawn = dict(pruner._drawn)
    train(model, pruner, 1)
    for name, search in pruner.searches.items():
        assert len(drawn[name]) == search.half
        assert np.flatnonzero(search.counts).tolist() == list(drawn[name])
        assert len(set(search.sums[drawn[name]])) == 1


@pytest.mark.parametrize(
    ("preset", "search_cost", "theta"),
    [("paper", 20_000, 0.01), ("vgg16", 20_000, 0.01), ("alexnet", 4000, 0.02), ("resnet", 8000, 0.02)],
)
def test_the_papers_runs(preset: str, search_cost: int, theta: float) -> None:
    """Sec. 4.2."""
    paper = sc.AOFP.preset(preset)
    assert (paper.search_cost, paper.theta) == (search_cost, theta)
    assert (paper.halves, paper.theta_growth, paper.lr, paper.ratio) == ("batch", 1, 1e-3, "example")


def test_the_original_teaches() -> None:
    def taught(distil: float, theta: float) -> tuple[float, list[dict[str, Any]]]:
        """How far the weights went, and the history."""
        record: list[dict[str, Any]] = []
        model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(576, 4))
        before = copy.deepcopy(randomize(model, 0))
        task = Task(
            model, sc.trace(model, images(1)), None, "internal", sc.Data.of(batches()), example_inputs=images(1),
            engine_options={"progress": "silent"}, log=record.append,
        )  # fmt: skip
        method = sc.AOFP(epochs=2, theta=theta, search_cost=1, lr=0.1, weight_decay=0, distil=distil, precision="fp32")
        method.select(task)
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
        pairs = zip(model.parameters(), before.parameters(), strict=True)
        return max(float((p - q).detach().abs().max()) for p, q in pairs), record

    assert taught(1.0, theta=0)[0] < 1e-5  # it is its own teacher
    assert 1e-3 < taught(0.9, theta=0)[0] < taught(0.0, theta=0)[0]
    moved, record = taught(1.0, theta=0.9)
    assert events(record, "move")
    assert moved > 1e-3  # the teacher is not pruned with its student


# -- what cannot be searched -------------------------------------------------------------------------------------------


class Functional(nn.Module):
    """Reads channels by a weight of its own, in a way that nobody can know."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(inputs, outputs) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,cd->ndhw", x, self.matrix)


def test_groups_whose_readers_are_unknown_are_left_out_with_a_reason() -> None:
    torch.manual_seed(0)
    model = randomize(nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Functional(8, 10), nn.ReLU(), nn.Conv2d(10, 12, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    ), 0)  # fmt: skip
    result = sc.prune(
        model, images(1), sc.AOFP(epochs=6, search_cost=1), sc.Budget(macs=0.2), data=batches(), progress="silent"
    )
    (start,), (end,) = events(result.history, "search"), events(result.history, "end")
    assert set(start["left_out"]) == {"0"}
    assert "Functional, not a convolution or linear layer" in start["left_out"]["0"]
    assert result.after.macs <= 0.2 * result.before.macs  # the budget is met all the same
    assert end["forced"] > 0
    only = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Functional(8, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(sc.ConfigError, match=r"no layer whose damage can be measured.*Functional"):
        sc.prune(only, images(1), "aofp", data=batches(), progress="silent")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search_cost": 0}, "search_cost=0"),
        ({"theta": -0.1}, "theta=-0.1"),
        ({"theta_growth": 0.5}, "theta_growth=0.5"),
        ({"min_filters": 0}, "min_filters=0"),
        ({"ratio": "mean"}, "ratio='mean'"),
        ({"phi": 3}, "phi=3"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(sc.ConfigError, match=message):
        sc.AOFP(**settings)


@pytest.mark.parametrize("growth", [1, 2])
def test_theta_of_zero_meets_no_budget(growth: float) -> None:
    method = sc.AOFP(theta=0, theta_growth=growth)
    with pytest.raises(sc.ConfigError, match=r"theta=0.* never prunes, and grows by no factor"):
        sc.prune(network(), images(1), method, sc.Budget(macs=0.5), data=batches())


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"search_cost": 1, "theta": 0.0}, "no layer has a filter whose damage is below theta=0: raise theta"),
        ({"search_cost": 6}, "no step of the search was complete: train longer, or lower search_cost=6"),
    ],
)
def test_a_run_without_a_budget_that_prunes_nothing_says_why(
    settings: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "secateurs"):
        model, pruner = attached(steps=4, **settings)
        early = "the first step of the search takes 6 batches (search_cost=6, warmup=0), and the training has 4"
        assert (early in caplog.text) == (settings["search_cost"] == 6)
        train(model, pruner, 4)
    assert not pruner.plan().kept
    assert [h["text"] for h in pruner.history if "text" in h] == [f"aofp pruned no filters, since {why}."]


def test_data_is_needed() -> None:
    with pytest.raises(sc.ConfigError, match="aofp prunes during training"):
        sc.prune(network(), images(1), "aofp", sc.Budget(macs=0.5))
