"""Budgets: what they allow, and that what they name as the lowest is."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from secateurs import Budget, BudgetError, Cost, Target
from secateurs.budget import exact


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"align": 8},
        {"macs": 0},
        {"macs": -0.5},
        {"macs": float("nan")},
        {"macs": float("inf")},
        {"params": True},
        {"params": "half"},
        {"macs": 1},
        {"macs": 1.5},
        {"macs": 60000.5},
        {"params": np.float64(12.9)},
        {"macs": 0.5, "params": 0},
        {"macs": 0.5, "align": 0},
        {"macs": 0.5, "align": 1.5},
        {"macs": 0.5, "align": True},
    ],
)
def test_nonsense_is_refused(figures: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match=r"budget|align"):
        Budget(**figures)


@pytest.mark.parametrize(
    ("figures", "limits"),
    [
        ({"macs": 0.5}, (500, 90)),
        ({"macs": 1.0}, (1000, 90)),
        ({"macs": 700}, (700, 90)),
        ({"macs": 700.0}, (700, 90)),
        ({"params": np.float64(2)}, (1000, 2)),
        ({"macs": 5000}, (5000, 90)),
        ({"params": 0.333}, (1000, 29)),
        ({"macs": 0.25, "params": 12}, (250, 12)),
        ({"macs": np.float32(0.5), "params": np.int64(7)}, (500, 7)),
    ],
)
def test_limits(figures: dict[str, Any], limits: tuple[int, int]) -> None:
    assert Budget(**figures).limits(Cost(1000, 90)) == Cost(*limits)


def test_a_time_that_the_network_already_takes_is_no_limit() -> None:
    base, cut = Cost(1000, 90, 0.5), Cost(500, 40, 0.55)  # the model's error
    for budget in (Budget(ms=1e6), Budget(ms=501.0), Budget(ms=1e6, macs=0.5).tightened(1.0)):
        budget.check(base, cut)
        assert budget.allows(cut, base)
    with pytest.raises(BudgetError, match=r"ms=499\.0.*cannot be met"):
        Budget(ms=499.0).check(base, cut)
    assert not Budget(latency=1.0).allows(cut, base)
    assert Budget(ms=1e6).limits(base).latency == 0.5  # what rounds and reports go by


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (37.5, "a fraction is at most 1.0, and an absolute figure is an integer; 37.5 percent are macs=0.375."),
        (60000.5, "a fraction is at most 1.0, and an absolute figure is an integer, macs=60000."),
        (1.5, "a fraction is at most 1.0, and an absolute figure is an integer; to keep all, write macs=1.0."),
        (1, "to keep all, write macs=1.0"),
    ],
)
def test_a_figure_that_may_mean_two_things_is_refused_with_both(value: float, message: str) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget(macs=value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [(1, "to keep all of it, write latency=1.0."), (60, "60 percent are latency=0.6, 60 milliseconds ms=60.0.")],
)
def test_a_time_that_is_no_fraction(value: int, message: str) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget(latency=value)
    assert str(caught.value).endswith(message)


def test_a_percentage_that_was_read_as_an_absolute_figure() -> None:
    with pytest.raises(BudgetError) as caught:
        Budget(macs=50).check(Cost(40_000, 900), Cost(2_000, 50), ("Also this.",))
    assert str(caught.value).endswith("is macs=0.05. 50 percent are macs=0.5. Also this.")
    with pytest.raises(BudgetError) as caught:
        Budget(macs=101).check(Cost(40_000, 900), Cost(2_000, 50))
    assert "percent" not in str(caught.value)


@pytest.mark.parametrize(("written", "taken"), [(60e6, 60_000_000), (1, 1.0), (0.5, 0.5), (1.5, 1.5), (2, 2)])
def test_figures_that_are_written_without_types(written: float, taken: float) -> None:
    assert (exact(written), type(exact(written))) == (taken, type(taken))


def test_allows_what_is_at_the_limit_and_nothing_above() -> None:
    base, budget = Cost(1000, 100), Budget(macs=0.5, params=30)
    assert budget.allows(Cost(500, 30), base)
    assert not budget.allows(Cost(501, 30), base)
    assert not budget.allows(Cost(500, 31), base)


def test_message_says_what_was_asked_and_what_there_is() -> None:
    with pytest.raises(BudgetError) as caught:
        Budget(macs=0.1).check(Cost(10_000, 100), Cost(2_345, 10))
    assert "macs=0.1 (1,000 of 10,000)" in str(caught.value)
    assert "2,345 remain" in str(caught.value)
    assert "lowest budget that can be met is macs=0.2345" in str(caught.value)
    assert caught.value.lowest == {"macs": 0.2345}
    with pytest.raises(BudgetError, match=r"params=9 \(9 of 100\).*params=0\.1\. Try less\.$"):
        Budget(macs=0.5, params=9).check(Cost(10_000, 100), Cost(2_345, 10), ("Try less.",))


@pytest.mark.parametrize("full", [1, 7, 100, 1000])
def test_named_figure_works_for_round_ones(full: int) -> None:
    """57 of 100 is 0.57, and 0.57 * 100 is 56.99… in binary."""
    for least in range(1, full + 1):
        named_figure_works(full, least)


@given(st.integers(1, 10**10), st.data())
def test_named_figure_works(full: int, data: st.DataObject) -> None:
    named_figure_works(full, data.draw(st.integers(1, full)))


def named_figure_works(full: int, least: int) -> None:
    base, lowest = Cost(full, full), Cost(least, least)
    for limit in (least - 1, least / full * 0.99):
        if limit <= 0 or limit == 1 or Budget(macs=limit).allows(lowest, base):
            continue
        with pytest.raises(BudgetError) as caught:
            Budget(macs=limit).check(base, lowest)
        named = float(re.search(r"is macs=([\d.]+)\.( |$)", str(caught.value))[1])
        assert named <= 1
        Budget(macs=named).check(base, lowest)
        assert named - least / full <= 2e-4


@given(st.floats(1e-6, 1.0), st.integers(1, 10**12))
def test_a_fraction_is_never_exceeded(share: float, full: int) -> None:
    assert Budget(macs=share).limits(Cost(full, full)).macs <= share * full


def test_time_is_measured_in_the_networks_precision() -> None:
    half, whole = nn.Linear(2, 2).bfloat16(), nn.Linear(2, 2)
    assert Budget(latency=0.5).suited(half, "cpu").on("cpu") == Target("torch-cpu", precision="bf16")
    assert Budget(ms=3.0, target="torch-cpu").suited(half, "cuda").target == Target("torch-cpu", precision="bf16")
    files = Budget(latency=0.5, target="onnxruntime")
    for budget, model in ((files, half), (Budget(latency=0.5), whole), (Budget(macs=0.5), half)):
        assert budget.suited(model, "cpu") is budget


def test_numbers_of_numpy_are_on_record() -> None:
    found = Budget(np.float32(0.5), np.int64(60), np.int32(8), latency=np.float32(0.25), ms=np.int64(3))
    assert json.loads(json.dumps(found.record())) == found.record()
    assert found == Budget(0.5, 60, 8, latency=0.25, ms=3)
