"""Cost: at any widths, from the graph alone, to the digit that the built network counts."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateurs.errors import PlanError, TraceError
from secateurs.graph import Cost, count
from secateurs.graph.cost import CostModel
from secateurs.plans import trace
from secateurs.surgery import apply
from tests.networks import CASES, Net, chain, conv, head, image


def test_by_hand() -> None:
    """chain on 2 × 3 × 12 × 12: two 3×3 convolutions and a linear layer."""
    model, x = CASES["chain"].make(), image()

    def expected(a: int, b: int) -> Cost:
        macs = 2 * (144 * 9 * (3 * a + a * b) + 5 * b)
        params = (27 * a + a) + 2 * a + 9 * a * b + 2 * b + (5 * b + 5)
        return Cost(macs, params)

    graph = trace(model, x)
    assert graph.cost() == count(model, x) == expected(8, 6)
    assert graph.cost({"a": 3}) == expected(3, 6)
    assert graph.cost({"a": 3, "b": 1}) == expected(3, 1)
    assert graph.cost(np.array([3, 1, 5])) == expected(3, 1)
    assert type(graph.cost().macs) is int


@settings(max_examples=60, deadline=None, derandomize=True)
@given(name=st.sampled_from([n for n, c in CASES.items() if c.prunable]), data=st.data())
def test_any_widths_of_any_structure(name: str, data: st.DataObject) -> None:
    case = CASES[name]
    model, inputs = case.make(), case.inputs()
    graph = trace(model, inputs)
    least = 2 if name == "einsum" else 1  # it multiplies by a single channel without a matrix product
    widths = {g.name: data.draw(st.integers(least, g.size)) for g in graph.groups if g.prunable}
    small = apply(model, graph.plan({g: range(w) for g, w in widths.items()}))
    assert graph.cost(widths) == count(small, inputs)


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2), (2, 4, 11, 9), None),
        (nn.Conv2d(4, 6, (1, 5), groups=2), (1, 4, 8, 8), 1 * 8 * 4 * 6 * 2 * 5),
        (nn.Conv1d(4, 6, 3), (3, 4, 9), 3 * 7 * 3 * 4 * 6),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 27 * 8 * 6),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (1, 4, 5, 5), 25 * 9 * 24),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (1, 4, 5, 5), 25 * 9 * 12),
        (nn.Linear(4, 6), (5, 7, 4), 5 * 7 * 24),
        (nn.Linear(4, 6, bias=False), (4,), 24),
        (nn.Bilinear(4, 4, 3), None, None),
    ],
    ids=str,
)  # fmt: skip
def test_single_layers(layer: nn.Module, shape: tuple[int, ...] | None, macs: int | None) -> None:
    inputs = torch.randn(shape) if shape is not None else (torch.randn(2, 4), torch.randn(2, 4))
    counted = count(layer, inputs)
    assert trace(layer, inputs).cost() == counted
    assert counted.params == sum(p.numel() for p in layer.parameters())
    if macs is not None:
        assert counted.macs == macs


def test_the_batch_is_included() -> None:
    model = chain()
    one, two = trace(model, image(1)).cost(), trace(model, image(2)).cost()
    assert two.macs == 2 * one.macs
    assert two.params == one.params


def test_shared_parameters_count_once_their_work_every_time() -> None:
    model = CASES["shared_module"].make()
    b = 2 * 144 * 9 * 64
    assert count(model, image()).macs == 2 * 144 * 27 * 8 + 2 * b + 2 * 8 * 5
    tied = CASES["tied_weights"].make()
    assert count(tied, image()).params == 27 * 8 + 8 + 9 * 64 + 8 + 8 + 45


def test_parameters_that_never_run_count() -> None:
    model = Net(
        lambda s, x: s.h(s.a(x)), a=conv(3, 8), h=head(8), idle=nn.Linear(100, 100), raw=nn.Parameter(torch.ones(7))
    )
    used = 27 * 8 + 8 + 45
    assert trace(model, image()).cost().params == count(model, image()).params == used + 10100 + 7


def test_a_model_without_macs() -> None:
    assert count(nn.ReLU(), image()) == Cost(0, 0)


def test_counting_leaves_the_model_alone() -> None:
    model = CASES["chain"].make().train()
    model.a.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    count(model, image())
    assert model.training
    assert not model.a.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(TraceError, match=r"expects \(N, 3, H, W\) but gets \(1, 4, 8, 8\)"):
        count(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(1, 4, 8, 8))


def test_unknown_groups() -> None:
    with pytest.raises(PlanError, match="no channel group 'c'"):
        trace(chain(), image()).cost({"c": 3})


@pytest.mark.parametrize("width", [0, -1, 9, 99, 2.5, True, "4", None])
def test_impossible_widths(width: Any) -> None:
    graph = trace(CASES["chain"].make(), image())
    with pytest.raises(
        PlanError, match=rf"Group a has 8 channels: its width must be an integer in 1…8, not {width!r}\."
    ):
        graph.cost({"b": 3, "a": width})
    assert graph.cost({"a": np.int64(8)}) == graph.cost()


def test_large_figures_are_exact() -> None:
    """Products beyond 2⁵³, where floats would round."""
    model = CostModel(2)
    model.add("macs", 10**9 + 7, (model.form(1, {0: 1}), model.form(0, {1: 1})))
    model.freeze()
    assert model(np.array([40_000, 60_000])).macs == (10**9 + 7) * 40_001 * 60_000
    assert model(np.array([40_000, 60_000])).params == 0


def test_one_candidate_takes_microseconds() -> None:
    layers = [m for _ in range(50) for m in (conv(8, 8), nn.BatchNorm2d(8), nn.ReLU())]
    graph = trace(nn.Sequential(conv(3, 8), *layers, head(8)), image())
    widths = graph.sizes.copy()
    start = time.perf_counter()
    for _ in range(100):
        graph.cost(widths)
    assert (time.perf_counter() - start) / 100 < 2e-3  # tens of microseconds; the bound leaves room for a busy machine
