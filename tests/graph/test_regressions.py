"""Networks that once were cut wrongly, or not at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateurs.graph import count
from secateurs.plans import PrunableGraph, trace
from secateurs.surgery import verify
from tests.networks import SPLIT, Net, conv, half, head, image


def sound(model: nn.Module) -> PrunableGraph:
    x = image()
    graph = trace(model.eval(), x)
    assert verify(model, graph.plan(half(graph)), x) <= 1e-5
    return graph


def test_transposed_depthwise_convolution() -> None:
    up = nn.ConvTranspose2d(8, 8, 3, stride=2, groups=8)
    sound(Net(lambda s, x: s.c(s.b(s.a(x))), a=conv(3, 8), b=up, c=conv(8, 2)))


def test_weight_that_is_a_sum_of_weights() -> None:
    """Both summands must be masked."""
    w3, w1 = nn.Parameter(torch.randn(7, 8, 3, 3)), nn.Parameter(torch.randn(7, 8, 1, 1))
    sound(
        Net(
            lambda s, x: s.h(F.conv2d(s.a(x), s.w3 + F.pad(s.w1, (1, 1, 1, 1)), padding=1)),
            a=conv(3, 8), h=head(7), w3=w3, w1=w1,
        )
    )  # fmt: skip


def test_slice_by_a_constant_beside_the_rest() -> None:
    """The cut network runs, and adds up equal channels; but others go through the non-linearity."""
    model = Net(
        lambda s, x: (lambda y: s.h(s.c(torch.cat([y[:, :4], F.relu(y[:, 4:])], 1))))(s.a(x)),
        a=conv(3, 16), c=conv(16, 8), h=head(8),
    )  # fmt: skip
    reason = sound(model)["a"].reason
    assert reason is not None
    assert str(reason).startswith(SPLIT)


def test_code_that_insists_on_a_number_of_channels() -> None:
    def run(s: Net, x: torch.Tensor) -> torch.Tensor:
        y = s.a(x)
        if y.shape[1] != 8:
            raise ValueError("eight channels, please")
        return s.h(s.b(y))

    graph = sound(Net(run, a=conv(3, 8), b=conv(8, 8), h=head(8)))
    reason = graph["a"].reason
    assert reason is not None
    assert str(reason).startswith("the code depends on the number of channels")
    assert graph["b"].prunable


def test_network_without_layers() -> None:
    graph = trace(nn.Sequential(nn.ReLU()), image())
    assert graph.groups == ()
    assert graph.cost().macs == 0


def test_count_sees_attention() -> None:
    model = Net(
        lambda s, x: s.h(s.m(*[s.a(x).flatten(2).transpose(1, 2)] * 3)[0].mean(1)),
        a=conv(3, 8), m=nn.MultiheadAttention(8, 2, batch_first=True), h=nn.Linear(8, 4),
    ).eval()  # fmt: skip
    assert trace(model, image()).cost() == count(model, image())


@pytest.mark.parametrize("copied", [torch.Tensor.contiguous, lambda w: w.to(memory_format=torch.contiguous_format)])
def test_weight_that_is_laid_out_in_another_way(copied: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Whether the weight itself is read or a copy of it depends on its layout, and so on its widths."""
    w = nn.Parameter(torch.randn(7, 8, 3, 3).contiguous(memory_format=torch.channels_last))
    model = Net(lambda s, x: s.h(F.conv2d(s.a(x), copied(s.w)).view(len(x), s.w.shape[0], -1).mean(2)),
                a=conv(3, 8), h=nn.Linear(7, 4), w=w)  # fmt: skip
    graph = sound(model)
    assert [(g.prunable, g.least) for g in (graph["a"], graph["w"])] == [(True, 1), (True, 1)]


def test_an_index_by_integers_has_no_size_that_depends_on_values() -> None:
    """A table of biases beside code that asks for the width: a trial still sees what narrow networks do."""

    def run(s: Net, x: torch.Tensor) -> torch.Tensor:
        y = s.a(x) + s.table[s.index].mean()
        return s.h(s.b(y.relu() if y.shape[1] >= 4 else y.tanh()))

    table, index = nn.Parameter(torch.randn(5)), torch.tensor([0, 3, 1])
    reason = sound(Net(run, a=conv(3, 8), b=conv(8, 8), h=head(8), table=table, index=index))["a"].reason
    assert reason is not None
    assert str(reason).startswith("the code depends on the number of channels")
