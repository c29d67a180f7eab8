"""Numbers in the code that are made from a width: nothing that a label shows, and yet no cut may change them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.graph import claims
from secateurs.graph.trials import Trial
from secateurs.plans import trace
from secateurs.surgery import verify
from tests.networks import Net, conv, half, head, image

Run = Callable[[Any, Tensor], Tensor]


def two(run: Run) -> nn.Module:
    torch.manual_seed(0)
    return Net(run, a=conv(3, 8), b=conv(8, 6), h=head(6)).eval()


def on_a(change: Callable[[Any, Tensor], Tensor]) -> Run:
    return lambda s, x: s.h(s.b(change(s, s.a(x))))


FOLLOW_A: dict[str, Run] = {
    "shape": on_a(lambda s, y: y / y.shape[1]),
    "size": on_a(lambda s, y: y * y.size(1) ** -0.5),
    "unpacked": on_a(lambda s, y: y * math.sqrt(tuple(y.shape)[1])),
    "numel": on_a(lambda s, y: y / y[0].numel()),
    "len": on_a(lambda s, y: y / len(y[0])),
    "attribute": on_a(lambda s, y: y * s.a.out_channels**-0.5),
    "attribute of the reader": on_a(lambda s, y: y - s.b.in_channels),
    "weight": on_a(lambda s, y: y / s.a.weight.numel()),
    "power": on_a(lambda s, y: y.abs() ** (1 / y.shape[1])),
    "full": on_a(lambda s, y: y * torch.full((1,), y.shape[1] / 4, device=y.device)),
    "tensor": on_a(lambda s, y: y * torch.tensor(y.shape[1] / 4)),
    "tensor on a device": on_a(lambda s, y: y * torch.tensor(y.shape[1] / 4, device=y.device)),
    "new tensor": on_a(lambda s, y: y * y.new_tensor([y.shape[1] / 4])),
    "text": on_a(lambda s, y: y * float(str(s.a.out_channels))),
    "formatted text": on_a(lambda s, y: y * float(f"{s.a.out_channels:d}")),
    "bits": on_a(lambda s, y: y * s.a.out_channels.bit_length()),
    "modular power": on_a(lambda s, y: y * pow(s.a.out_channels, 3, 7)),
    "after the next layer": lambda s, x: s.h(s.b(s.a(x)) * s.a.out_channels),
    "the next layer's weight": lambda s, x: s.h(F.conv2d(s.a(x), s.b.weight / math.sqrt(9 * s.b.weight.shape[1]))),
}


@pytest.mark.parametrize("name", FOLLOW_A)
@pytest.mark.parametrize("real", [False, True], ids=["meta", "real"])
def test_the_group_that_a_number_counts_stays_and_no_other(name: str, real: bool) -> None:
    def run(s: Any, x: Tensor) -> Tensor:
        assert not real or float(x.sum()) != 0  # needs values
        return FOLLOW_A[name](s, x)

    model = two(run)
    graph = trace(model, image())
    assert graph["a"].reason is not None
    assert str(graph["a"].reason).startswith(f"{claims.NUMBER} (test_numbers.py:")
    assert graph["b"].prunable
    assert verify(model, graph.plan(half(graph)), image()) <= 1e-5


FREE: dict[str, Run] = {
    "a constant": on_a(lambda s, y: y * 0.125 / 8 + 8),
    "positions": on_a(lambda s, y: y / (y.shape[2] * y.shape[3])),
    "the batch": on_a(lambda s, y: y / y.shape[0]),
    "values of the input": lambda s, x: s.h(s.b(s.a(x)) * float(x.abs().max())),
    "values behind the next layer": lambda s, x: (lambda y: s.h(y / float(s.h(y).abs().max())))(s.b(s.a(x))),
    "asked for and not used": on_a(lambda s, y: y if y.shape[1] > 0 else y * 2),
}


@pytest.mark.parametrize("name", FREE)
def test_numbers_that_follow_no_width_keep_nothing(name: str) -> None:
    model = two(FREE[name])
    graph = trace(model, image())
    assert graph["a"].prunable
    assert graph["b"].prunable
    assert verify(model, graph.plan(half(graph)), image()) <= 1e-5


def test_many_layers_that_do_so_are_found_without_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    runs = Trial.failure
    monkeypatch.setattr(Trial, "failure", lambda t: looks.append(1) or runs(t))
    n = 12

    def run(s: Any, x: Tensor) -> Tensor:
        for layer in s.layers:
            x = layer(x).relu()
            x = x * x.shape[1] ** -0.5
        return s.h(s.last(x))

    layers = nn.ModuleList(conv(3 if i == 0 else 8, 8) for i in range(n))
    model = Net(run, layers=layers, last=conv(8, 6), h=head(6)).eval()
    graph = trace(model, image())
    assert [g.prunable for g in graph.groups] == [False] * n + [True, False]
    assert looks == []


def test_code_without_numbers_is_not_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "failure", lambda t: pytest.fail("a cut copy was tried"))
    assert trace(two(lambda s, x: s.h(s.b(F.relu6(s.a(x))))), image())["a"].prunable


def test_lines_that_draw_random_numbers_are_noted() -> None:
    assert trace(two(lambda s, x: s.h(s.b(F.dropout(s.a(x), training=s.training)))), image()).random == ()
    found = trace(two(on_a(lambda s, y: y + torch.randn_like(y))), image()).random
    assert len(found) == 1
    assert found[0].startswith("test_numbers.py:")


def test_a_number_that_only_a_cut_network_computes_with() -> None:
    model = two(on_a(lambda s, y: y * 1.1 if y.shape[1] < 8 else y))
    graph = trace(model, image())
    assert graph["a"].reason is not None
    assert "number of channels" in str(graph["a"].reason)
    assert graph["b"].prunable


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.groups = 2  # as many as `enter` has channels that can be cut
        self.enter, self.grouped = conv(3, 8), conv(8, 8, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.grouped(self.enter(x).unflatten(1, (self.groups, -1)).swapaxes(1, 2).flatten(1, 2))


def test_a_shuffle_is_not_blamed_for_a_condition_that_follows_it() -> None:
    """The shuffle asks for its own width, and what it asks in the original it need not ask in a cut network."""

    def asked(s: Any, x: Tensor) -> Tensor:
        y = s.a(s.shuffled(x))
        return s.h(s.b(y * min(y.shape[1], 6)))

    model = Net(asked, shuffled=Shuffled(), a=conv(8, 8), b=conv(8, 6), h=head(6)).eval()
    graph = trace(model, image())
    assert [g.name for g in graph.groups if not g.prunable] == ["a", "h.2"]
    assert "depends on the number of channels" in str(graph["a"].reason)


@pytest.mark.parametrize(("of_a", "of_b"), [(4, 6), (5, 6), (7, 4), (8, 12)])
def test_of_two_conditions_that_change_together_one_is_to_blame(of_a: int, of_b: int) -> None:
    """The first has another outcome at some width, and makes no difference; the second does."""

    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        if y.shape[1] == x.shape[1] and s.same:
            y = y + x
        z = s.b(y)
        return s.h(z.relu() if z.shape[1] % 2 == 0 else z.tanh())

    model = Net(forward, a=conv(3, of_a), b=conv(of_a, of_b), h=head(of_b)).eval()
    model.same = False
    graph = trace(model, image())
    assert [g.name for g in graph.groups if not g.prunable] == ["b", "h.2"]
