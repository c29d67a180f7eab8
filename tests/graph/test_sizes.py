"""Code that reads widths in every way: what is computed from a width follows it, and what is a constant keeps it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateurs.graph import claims
from secateurs.graph.trials import Trial
from secateurs.plans import PrunableGraph, trace
from secateurs.surgery import verify
from tests.networks import SIZE, SPLIT, Net, conv, fraction, head, image

Change = Callable[[Any, Tensor], Tensor]


@functools.lru_cache
def cached_half(c: int) -> int:
    return c // 2


# Maps of 8 channels to 8 channels that are right at any width.
COMPUTED: dict[str, Change] = {
    "halves": lambda s, y: torch.cat([y[:, : y.shape[1] // 2].relu(), y[:, y.shape[1] // 2 :]], 1),
    "from the end": lambda s, y: torch.cat([y[:, : -(y.shape[1] // 2)].relu(), y[:, -(y.shape[1] // 2) :]], 1),
    "int of a float": lambda s, y: torch.cat([y[:, : int(y.size(1) * 0.5)].relu(), y[:, int(y.size(1) * 0.5) :]], 1),
    "a cached number": lambda s, y: torch.cat(
        [y[:, : cached_half(y.shape[1])].relu(), y[:, cached_half(y.shape[1]) :]], 1
    ),
    "split": lambda s, y: torch.cat([p.relu() for p in y.split(y.shape[1] // 2, 1)], 1),
    "split in two": lambda s, y: torch.cat(y.split([y.shape[1] // 2, y.shape[1] - y.shape[1] // 2], dim=1)[::-1], 1),
    "narrow": lambda s, y: torch.cat(
        [y.narrow(1, y.shape[1] // 2, y.shape[1] // 2), y.narrow(1, 0, y.shape[1] // 2)], 1
    ),
    "unflatten": lambda s, y: y.unflatten(1, (2, y.shape[1] // 2)).relu().flatten(1, 2),
    "groups last": lambda s, y: y.view(len(y), y.shape[1] // 2, 2, 12, 12).relu().flatten(1, 2),
    "views of views": lambda s, y: y.view(len(y), 2, -1, 12, 12).view(len(y), y.shape[1], 144).relu().view_as(y),
    "folded": lambda s, y: y.reshape(y.shape[0] * y.shape[1], 1, 12, 12).relu().view(y.shape[0], y.shape[1], 12, 12),
    "the batch again": lambda s, y: (lambda z, c: z.view(z.shape[0] // c, c, 12, 12))(y.flatten(0, 1), y.shape[1]),
    "expand": lambda s, y: y * s.map.expand(2, y.shape[1], 12, 12),
    "repeat": lambda s, y: y * s.map.repeat(1, y.shape[1], 1, 1),
    "expand as": lambda s, y: y * s.map.expand_as(y),
    "broadcast": lambda s, y: torch.mul(*torch.broadcast_tensors(s.map, y)),
    "zeros": lambda s, y: y + torch.zeros(y.shape[0], y.shape[1], 1, 1, device=y.device),
    "new zeros": lambda s, y: y + y.new_zeros(y.shape[1], 1, 1),
    "full": lambda s, y: y * torch.full((y.shape[1], 1, 1), 0.5, device=y.device),
    "depthwise": lambda s, y: F.conv2d(
        y, torch.full((1, 1, 3, 3), 1 / 9, device=y.device).expand(y.shape[1], 1, 3, 3), groups=y.shape[1], padding=1
    ),
    "filters for each": lambda s, y: (
        F.conv2d(y, s.filters.repeat(y.shape[1], 1, 1, 1), padding=1, groups=y.shape[1]).unflatten(1, (-1, 2)).sum(2)
    ),
    "unpooled": lambda s, y: F.max_unpool2d(*F.max_pool2d(y, 2, return_indices=True), 2, output_size=y.size()),
    "a grid": lambda s, y: F.grid_sample(
        y,
        F.affine_grid(torch.eye(2, 3, device=y.device).expand(2, 2, 3), y.size(), align_corners=False),
        align_corners=False,
    ),
    "an attribute": lambda s, y: y.view(len(y), s.current.out_channels, -1).relu().view(y.shape),
    "a weight's shape": lambda s, y: y.view(len(y), s.current.weight.shape[0], -1).relu().view(y.shape),
    "the data of a weight": lambda s, y: y.view(len(y), s.current.weight.data.shape[0], -1).relu().view(y.shape),
    "a whole slice": lambda s, y: y[:, : y.shape[1]].relu(),
    "a longer slice": lambda s, y: y[:, :64].relu(),
    "a condition that is met": lambda s, y: y.relu() if y.shape[1] == s.current.out_channels else y,
    "a number that cancels": lambda s, y: y * (y.numel() / y.shape[1] / 288),
    "group norm by channels": lambda s, y: F.group_norm(y, y.shape[1]),
}

# The same, with something that only fits 8 channels, or computes something else with fewer.
KEEPS: dict[str, tuple[Change, str]] = {
    "a constant view": (lambda s, y: y.view(2, 8, 144).relu().view(2, -1, 12, 12), SIZE),
    "a constant split": (lambda s, y: torch.cat([p.relu() for p in y.split([2, 6], 1)], 1), SPLIT),
    "a constant slice": (lambda s, y: torch.cat([y[:, :2].relu(), y[:, 2:]], 1), SPLIT),
    "a constant op": (lambda s, y: torch.ops.aten.view.default(y, [2, 8, 144]).view(2, -1, 12, 12), SIZE),
    "constants of several axes": (lambda s, y: y.view(2, 4, 2, 144).relu().reshape(2, -1, 12, 12), SPLIT),
    "a constant beside an escape": (
        lambda s, y: y.view(2, 8, int(144 + 0 * y.shape[1])).relu().view(2, -1, 12, 12),
        "",
    ),
    "an attribute of the user's own": (lambda s, y: y.view(2, s.number, 144).relu().view(2, -1, 12, 12), SIZE),
    "odd or even": (lambda s, y: y.tanh() if y.shape[1] % 2 else y.relu(), claims.DEPENDS),
    "few": (lambda s, y: y.tanh() if y.shape[1] < 4 else y.relu(), claims.DEPENDS),
    "one number": (lambda s, y: y.tanh() if y.shape[1] == 6 else y.relu(), claims.DEPENDS),
    "the greater": (lambda s, y: y / max(y.shape[1], 4), claims.NUMBER),
    "the lesser": (lambda s, y: y * min(y.shape[1], 6), claims.DEPENDS),
    "a function by number": (lambda s, y: (torch.relu, torch.tanh)[y.shape[1] % 2](y), claims.DEPENDS),
    "a flag": (lambda s, y: F.avg_pool2d(y, 3, 1, 1, count_include_pad=y.shape[1] % 2 == 0), claims.DEPENDS),
    "a window": (lambda s, y: F.max_pool2d(y, y.shape[1] // 4 * 2 - 1, 1, 1), claims.NUMBER),
    "a window by another way": (lambda s, y: F.max_pool2d(y, int(y.shape[1] / 4) * 2 - 1, 1, 1), ""),
    "a slope": (lambda s, y: F.leaky_relu(y, 1 / y.shape[1]), claims.NUMBER),
    "a root": (lambda s, y: y / math.sqrt(y.shape[1]), claims.NUMBER),
    "numpy": (lambda s, y: y * float(np.float32(y.shape[1])), claims.NUMBER),
    "an assertion": (lambda s, y: y.relu() if y.shape[1] == 8 else 1 / 0, claims.DEPENDS),
}


# Those that are right at any width but one.
PAIRS: dict[str, Change] = {
    "squeezed": lambda s, y: y * y.mean((2, 3)).squeeze()[:, :, None, None],
    "only one": lambda s, y: y.tanh() if y.shape[1] == 1 else y.relu(),
    "at least two": lambda s, y: y.view(y.shape[0], max(y.shape[1], 2), *y.shape[2:]),
    "an assertion": lambda s, y: y.relu() if y.shape[1] > 1 else 1 / 0,
}


def chain(*changes: Change, real: bool = False) -> nn.Module:
    """Convolutions to 8 channels, each followed by a change that runs in the very same line. real: it needs values."""

    def run(s: Any, x: Tensor) -> Tensor:
        assert not real or float(x.sum()) != 0
        for layer, change in zip(s.layers, changes, strict=True):
            s.__dict__["current"] = layer
            x = change(s, layer(x))
        return s.h(s.last(x))

    torch.manual_seed(0)
    layers = nn.ModuleList(conv(3 if i == 0 else 8, 8) for i in range(len(changes)))
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight)
    parts = {
        "last": conv(8, 6),
        "h": head(6),
        "map": nn.Parameter(torch.rand(1, 1, 12, 12)),
        "filters": nn.Parameter(torch.rand(2, 1, 3, 3)),
        "number": 8,
        "rows": nn.Parameter(torch.rand(1, 1, 8)),
    }
    return Net(run, layers=layers, **parts).eval()


def right_at(model: nn.Module, graph: PrunableGraph, shares: tuple[float, ...] = (0.7, 0.5, 0.3, 0.01)) -> None:
    """The cut network is right at these widths."""
    for share in shares:
        assert verify(model, graph.plan(fraction(graph, share)), image()) <= 1e-5


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("real", [False, True], ids=["meta", "real"])
def test_what_is_computed_follows(name: str, real: bool) -> None:
    model = chain(COMPUTED[name], real=real)
    for _ in range(2):  # the second trace finds what the first has left in caches
        graph = trace(model, image())
        assert all(g.prunable or g.name == "h.2" for g in graph.groups), [(g.name, g.reason) for g in graph.groups]
        right_at(model, graph)


@pytest.mark.parametrize("name", KEEPS)
@pytest.mark.parametrize("real", [False, True], ids=["meta", "real"])
def test_what_fits_one_width_keeps_it(name: str, real: bool) -> None:
    change, reason = KEEPS[name]
    model = chain(change, real=real)
    graph = trace(model, image())
    assert str(graph["layers.0"].reason).startswith(reason)
    assert graph["layers.0"].reason is not None
    assert "test_sizes.py:" in str(graph["layers.0"].reason)
    assert graph["last"].prunable
    right_at(model, graph)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("real", [False, True], ids=["meta", "real"])
def test_what_only_fails_with_one_channel_keeps_two(name: str, real: bool) -> None:
    model = chain(PAIRS[name], COMPUTED["zeros"], PAIRS[name], real=real)
    graph = trace(model, image())
    for layer in ("layers.0", "layers.2"):
        group = graph[layer]
        assert (group.reason, group.least) == (None, 2)
        assert str(group.least_reason).startswith(f"{claims.ALONE} (test_sizes.py:")
    for layer in ("layers.1", "last"):
        assert (graph[layer].reason, graph[layer].least, graph[layer].least_reason) == (None, 1, None)
    right_at(model, graph)


@pytest.mark.parametrize("name", KEEPS)
def test_one_line_of_code_keeps_the_groups_that_it_must_and_no_other(name: str) -> None:
    """Several modules run it, with what is computed between them."""
    model = chain(KEEPS[name][0], COMPUTED["halves"], KEEPS[name][0], COMPUTED["zeros"])
    graph = trace(model, image())
    assert [g.name for g in graph.groups if not g.prunable and g.name.startswith("layers")] == ["layers.0", "layers.2"]
    right_at(model, graph, (0.5, 0.01))


def test_constants_that_are_broadcast_beside_channels() -> None:
    """One value for each channel, and not one for all."""
    values = torch.rand(8, 1, 1)
    model = chain(lambda s, y: torch.mul(*torch.broadcast_tensors(y, values.to(y.device))), COMPUTED["zeros"])
    graph = trace(model, image())
    assert not graph["layers.0"].prunable
    assert graph["layers.1"].prunable
    right_at(model, graph)


def test_an_op_that_computes_with_a_width_itself() -> None:
    """Attention is scaled by the width of the queries; here these are a parameter."""

    def run(s: Any, x: Tensor) -> Tensor:
        y = s.a(x).flatten(2).mT
        return s.h(F.scaled_dot_product_attention(s.queries.expand(2, -1, -1), y, y).mean(1))

    model = Net(run, a=conv(3, 8), queries=nn.Parameter(torch.rand(1, 5, 8)), h=nn.Linear(8, 4)).eval()
    assert str(trace(model, image())["a"].reason).startswith((claims.NUMBER, "aten."))


# -- the width of other channels ---------------------------------------------------------------------------------------


def two(combine: Callable[[Any, Tensor, Tensor], Tensor], a: int = 8, b: int = 8, c: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return Net(
        lambda s, x: s.h(combine(s, s.a(x), s.b(x))),
        a=conv(3, a), b=conv(3, b), c=conv(a, c), d=conv(b, c), h=head(c),
    ).eval()  # fmt: skip


OTHERS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "a view": lambda s, y, z: s.c(y) + s.d(z.view(2, y.shape[1], 12, 12)),
    "the shape of another": lambda s, y, z: s.c(y) + s.d(z.flatten(1).view_as(y)),
    "the shape of another, by name": lambda s, y, z: s.c(y) + s.d(z.flatten(2).reshape_as(other=y)),
    "a crop that changes nothing": lambda s, y, z: s.c(y) + s.d(z[:, : y.shape[1]]),
    "an attribute": lambda s, y, z: s.c(y) + s.d(z.view(2, s.a.out_channels, 12, 12)),
}
KEEP_BOTH: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "a split": lambda s, y, z: (
        s.c(y) + s.d(torch.cat(z.split([y.shape[1] // 2, z.shape[1] - y.shape[1] // 2], 1)[::-1], 1))
    ),
    "the next layer's": lambda s, y, z: s.c(y) + s.d(z.view(2, s.c.in_channels, 12, 12)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_size_of_other_channels_ties_them(name: str) -> None:
    model = two(OTHERS[name])
    graph = trace(model, image())
    assert {"a", "b"} == set(graph["a"].producers)
    assert graph["a"].prunable
    right_at(model, graph)


def test_a_size_of_other_channels_that_stay_whole() -> None:
    """Of an image, which nothing cuts, and of channels that a constant keeps."""
    model = Net(lambda s, x: s.h(s.a(x).view(2, x.shape[1], 12, 12)), a=conv(3, 3), h=head(3)).eval()
    assert not trace(model, image())["a"].prunable
    model = two(lambda s, y, z: s.c(y.view(2, 8, 12, 12)) + s.d(z.view(2, y.shape[1], 12, 12)))
    graph = trace(model, image())
    assert not graph["a"].prunable
    assert "b" in graph["a"].producers or not graph["b"].prunable


@pytest.mark.parametrize("name", KEEP_BOTH)
def test_a_size_that_is_computed_from_other_channels_keeps_both(name: str) -> None:
    model = two(KEEP_BOTH[name])
    graph = trace(model, image())
    for group in ("a", "b"):
        assert str(graph[group].reason).startswith(claims.COMPUTED)
        assert "test_sizes.py:" in str(graph[group].reason)
    assert graph["c"].prunable
    right_at(model, graph)


def test_a_size_of_channels_that_go_together_keeps_nothing() -> None:
    model = two(lambda s, y, z: y + z.view(2, y.shape[1], 12, 12))
    graph = trace(model, image())
    assert graph["a"].prunable
    right_at(model, graph)


def test_a_crop_to_fewer_channels() -> None:
    """Of b, the first half is added to a: as long as both are cut alike, the halves stay."""
    model = Net(
        lambda s, x: (lambda y, z: s.h(y + z[:, : y.shape[1]]))(s.a(x), s.b(x)), a=conv(3, 4), b=conv(3, 8), h=head(4)
    )
    graph = trace(model.eval(), image())
    assert graph["a"].prunable
    right_at(model, graph)


def test_what_is_padded_to_another_width() -> None:
    def run(s: Any, x: Tensor) -> Tensor:
        y, z = s.a(x), s.b(x)
        return s.h(F.pad(y, (0, 0, 0, 0, 0, z.shape[1] - y.shape[1])) + z)

    model = Net(run, a=conv(3, 4), b=conv(3, 8), h=head(8)).eval()
    right_at(model, trace(model, image()))


# -- blocks that are ambiguous, in networks that are not ---------------------------------------------------------------


class Attention(nn.Module):
    """Heads of constant size, in the same lines for each."""

    def __init__(self, c: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.each = heads, c // heads
        self.qkv, self.out = conv(c, 3 * c, 1), conv(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(x).view(n, self.heads, 3 * self.each, h * w).split(self.each, dim=2)
        y = v @ (q.transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)
        return x + self.out(y.reshape(n, c, h, w))


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[frozenset[int]]:
    """The cuts that were tried."""
    seen: list[frozenset[int]] = []
    run = Trial.failure
    monkeypatch.setattr(Trial, "failure", lambda trial: seen.append(trial.cut) or run(trial))
    return seen


@pytest.mark.parametrize("blocks", [1, 6])
def test_an_attention_block_keeps_its_own_channels(blocks: int, trials: list[frozenset[int]]) -> None:
    parts: list[nn.Module] = [conv(3, 8)]
    for _ in range(blocks):
        parts += [Attention(8), conv(8, 12), nn.ReLU(), conv(12, 8)]
    model = nn.Sequential(*parts, head(8)).eval()
    graph = trace(model, image())
    assert [g.prunable for g in graph.groups if g.size == 12] == [True] * blocks
    assert not any(g.prunable for g in graph.groups if ".qkv" in g.name)
    assert len(trials) <= 2  # however many there are
    right_at(model, graph, (0.5,))


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / math.sqrt(x.shape[1])


def test_trials_grow_with_the_lines_in_doubt_and_not_with_the_network(trials: list[frozenset[int]]) -> None:
    found = []
    for n in (4, 24):
        layers = [m for _ in range(n) for m in (conv(8, 8), Scaled(), conv(8, 8))]
        model = nn.Sequential(conv(3, 8), *layers, head(8)).eval()
        trials.clear()
        graph = trace(model, image())
        assert sum(g.prunable for g in graph.groups) == n + 1
        found.append(len(trials))
    assert found[1] <= found[0] <= 10


# -- whatever is combined ----------------------------------------------------------------------------------------------

ALL = [*COMPUTED.values(), *PAIRS.values(), *(change for change, _ in KEEPS.values())]


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    changes=st.lists(st.sampled_from(ALL), min_size=1, max_size=4), share=st.floats(0.01, 0.95), seed=st.integers(0, 9)
)
def test_what_is_prunable_is_right_at_any_width(changes: list[Change], share: float, seed: int) -> None:
    model = chain(*changes)
    graph = trace(model, image())
    assert verify(model, graph.plan(fraction(graph, share, seed)), image()) <= 1e-5
    computed = set(COMPUTED.values())
    if all(change in computed for change in changes):
        assert all(g.prunable or g.name == "h.2" for g in graph.groups)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_depthwise_convolution_is_one_in_a_trial_too(transposed: bool) -> None:
    """Cut to one channel it has one group, and looks like a plain one."""

    class Asked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kind = nn.ConvTranspose2d if transposed else nn.Conv2d
            self.enter, self.each, self.leave = nn.Conv2d(3, 8, 1), kind(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.enter(x)
            y = self.each(y[:, : len(list(range(y.shape[1])))])  # only trials can tell that this is every channel
            return self.leave(y.relu())

    assert trace(Asked(), torch.randn(1, 3, 8, 8))["enter"].prunable
