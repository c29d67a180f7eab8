"""The graph's cost at any widths is what is counted in the network that is really cut: for every op that has a cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from secateurs.graph import Cost, count
from secateurs.graph.counter import MacCounter
from secateurs.plans import trace
from secateurs.surgery import apply, verify
from tests.networks import Complex, Net, conv, head

Run = Callable[..., Any]


def tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) → (N, H·W, C)"""
    return x.flatten(2).transpose(1, 2)


def after(run: Run, i: int, o: int, **parts: Any) -> nn.Module:
    """A convolution with `i` filters, what is tested, and a linear layer that reads `o` channels."""
    return Net(lambda s, x: s.out(run(s, s.conv(x))), conv=nn.Conv2d(3, i, 3), out=nn.Linear(o, 4), **parts)


def pooled(run: Run, i: int, o: int, **parts: Any) -> nn.Module:
    return after(lambda s, y: run(s, y).flatten(2).mean(2), i, o, **parts)


def heads(x: Tensor, n: int) -> Tensor:
    """(N, T, n·C) → (N, n, T, C)"""
    return x.view(*x.shape[:2], n, -1).transpose(1, 2)


def attends(n: int = 1, kv: int | None = None, mask: Run = lambda s: None, v: int = 6, **options: Any) -> nn.Module:
    """Attention whose values have another width than its queries; kv: the heads of keys and values."""
    kv = kv or n

    def run(s: Any, y: Tensor) -> Tensor:
        q, k, value = (heads(p(tokens(y)), h) for p, h in ((s.q, n), (s.k, kv), (s.v, kv)))
        y = F.scaled_dot_product_attention(q, k, value, attn_mask=mask(s), **options)
        return y.transpose(1, 2).flatten(2).mean(1)

    return after(
        run, 8, n * v, q=nn.Linear(8, 8 * n), k=nn.Linear(8, 8 * kv), v=nn.Linear(8, v * kv),
        bias=nn.Parameter(torch.randn(16, 16)), causal=nn.Buffer(torch.ones(16, 16).tril().bool()),
    )  # fmt: skip


def by_hand(s: Any, y: Tensor) -> Tensor:
    """Attention as batched products, the first of them with the bias added to it."""
    q, k, v = s.q(tokens(y)), s.k(tokens(y)), s.v(tokens(y))
    scores = torch.baddbmm(s.bias.expand(len(y), -1, -1), q, k.transpose(1, 2), alpha=0.3)
    return torch.bmm(scores.softmax(-1), v).mean(1)


def recurrent(layer: nn.Module, o: int) -> nn.Module:
    return after(lambda s, y: s.layer(tokens(y))[0].mean(1), 5, o, layer=layer)


def stepped(cell: nn.Module) -> nn.Module:
    def run(s: Any, y: Tensor) -> Tensor:
        state = None
        for x in tokens(y).unbind(1)[:3]:
            state = s.cell(x, state)
        return state[0] if isinstance(state, tuple) else state  # type: ignore[return-value]

    return after(run, 5, 6, cell=cell)


def squeezed(s: Any, y: Tensor) -> Tensor:
    """Packed sequences of different lengths."""
    y = nn.utils.rnn.pack_padded_sequence(tokens(y), torch.tensor([16, 9]), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(s.layer(y)[0], batch_first=True)[0].mean(1)


NETS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: pooled(lambda s, y: s.b(y), 8, 6, b=nn.Conv2d(8, 6, 3, stride=2, dilation=1)),
    "depthwise": lambda: pooled(lambda s, y: s.b(s.d(y)), 8, 6, d=conv(8, 16, groups=8), b=conv(16, 6)),
    "grouped": lambda: pooled(lambda s, y: s.b(s.d(y)), 8, 6, d=conv(8, 12, groups=2), b=conv(12, 6)),
    "conv1d": lambda: after(lambda s, y: s.b(y.flatten(2)).mean(2), 8, 6, b=nn.Conv1d(8, 6, 3)),
    "conv3d": lambda: after(lambda s, y: s.b(y[:, :, None]).mean((2, 3, 4)), 8, 6, b=nn.Conv3d(8, 6, (1, 2, 2))),
    "transposed": lambda: pooled(lambda s, y: s.b(y), 8, 6, b=nn.ConvTranspose2d(8, 6, 3, stride=2)),
    "transposed, grouped": lambda: pooled(lambda s, y: s.b(y), 8, 6, b=nn.ConvTranspose2d(8, 6, 3, groups=2)),
    "linear": lambda: after(lambda s, y: s.b(tokens(y)).mean(1), 8, 6, b=nn.Linear(8, 6)),
    "linear, one vector": lambda: after(lambda s, y: s.b(y.mean((0, 2, 3))), 8, 6, b=nn.Linear(8, 6)),
    "matmul": lambda: after(lambda s, y: (tokens(y) @ s.w).mean(1), 8, 6, w=nn.Parameter(torch.randn(8, 6))),
    "matmul, batched": lambda: after(lambda s, y: (tokens(y) @ s.w).mean(1), 8, 6, w=nn.Parameter(torch.randn(1, 8, 6))),
    "einsum": lambda: after(
        lambda s, y: torch.einsum("nchw,oc->no", y.relu(), s.w), 8, 6, w=nn.Parameter(torch.randn(6, 8))
    ),
    "einsum, three operands": lambda: after(
        lambda s, y: torch.einsum("nchw,mc,om->no", y, s.v, s.w), 8, 6,
        v=nn.Parameter(torch.randn(5, 8)), w=nn.Parameter(torch.randn(6, 5)),
    ),
    "einsum, no sum": lambda: after(
        lambda s, y: torch.einsum("nchw,c->nc", y, s.w), 8, 8, w=nn.Parameter(torch.randn(8))
    ),
    "tensordot": lambda: after(
        lambda s, y: torch.tensordot(tokens(y), s.w, ([2], [0])).mean(1), 8, 6, w=nn.Parameter(torch.randn(8, 6))
    ),
    "bilinear": lambda: after(
        lambda s, y: s.b(y.mean((2, 3)), s.d(y).mean((2, 3))), 8, 6, d=nn.Conv2d(8, 7, 1), b=nn.Bilinear(8, 7, 6)
    ),
    "products of activations": lambda: after(
        by_hand, 8, 6, q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 6), bias=nn.Parameter(torch.randn(1, 16, 16))
    ),
    "attention, one width": lambda: attends(v=8),
    "attention": attends,
    "attention, scaled": lambda: attends(scale=0.2),
    "attention, heads": lambda: attends(n=2),
    "attention, causal": lambda: attends(n=2, v=8, is_causal=True),
    "attention, bias": lambda: attends(n=2, v=8, mask=lambda s: s.bias),
    "attention, mask": lambda: attends(n=2, mask=lambda s: s.causal),
    "attention, shared keys": lambda: attends(n=4, kv=2, v=8, enable_gqa=True),
    "lstm": lambda: recurrent(nn.LSTM(5, 6, batch_first=True), 6),
    "lstm, layers and directions": lambda: recurrent(nn.LSTM(5, 6, 2, batch_first=True, bidirectional=True), 12),
    "lstm, projected": lambda: recurrent(nn.LSTM(5, 6, 2, proj_size=3, bias=False, batch_first=True), 3),
    "lstm, time first": lambda: recurrent(nn.LSTM(5, 6), 6),
    "lstm, packed": lambda: after(squeezed, 5, 6, layer=nn.LSTM(5, 6, batch_first=True)),
    "gru": lambda: recurrent(nn.GRU(5, 6, batch_first=True), 6),
    "gru, layers and directions": lambda: recurrent(nn.GRU(5, 6, 2, batch_first=True, bidirectional=True), 12),
    "gru, packed": lambda: after(squeezed, 5, 12, layer=nn.GRU(5, 6, batch_first=True, bidirectional=True)),
    "rnn": lambda: recurrent(nn.RNN(5, 6, 2, batch_first=True), 6),
    "lstm cell": lambda: stepped(nn.LSTMCell(5, 6)),
    "gru cell": lambda: stepped(nn.GRUCell(5, 6)),
    "rnn cell": lambda: stepped(nn.RNNCell(5, 6, nonlinearity="relu")),
    "complex": Complex,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", NETS)
def test_cost_at_any_widths(name: str) -> None:
    torch.manual_seed(0)
    model, x = NETS[name]().eval(), torch.randn(2, 3, 6, 6)
    graph = trace(model, x)
    assert graph.cost() == count(model, x)
    free = [g for g in graph.groups if g.prunable]
    assert len(free) >= 1 + (name != "einsum, no sum")  # what the op reads, and what it makes
    draw = np.random.default_rng(0)
    for share in (0.7, 0.0):
        kept = {g.name: sorted(draw.permutation(g.size)[: max(1, int(share * g.size))].tolist()) for g in free}
        plan = graph.plan(kept)
        widths = {g: len(index) for g, index in kept.items()}
        assert graph.cost(widths) == count(apply(model, plan), x)
        if name != "complex":
            assert verify(model, plan, x) < 1e-5
    alone = free[-1]
    assert graph.cost({alone.name: 1}) == count(apply(model, graph.plan({alone.name: [0]})), x)


def test_half_the_flops_of_torch() -> None:
    """Where torch knows all of a network's ops."""
    for name in ("conv", "grouped", "transposed", "linear", "einsum", "products of activations", "complex"):
        model, x = NETS[name]().eval(), torch.randn(2, 3, 6, 6)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(x)
        assert count(model, x).macs == counter.get_total_flops() // 2


def test_cutting_values_never_adds_to_the_count() -> None:
    """PyTorch runs attention as one op only while its widths are equal."""
    model, x = attends(v=8).eval(), torch.randn(2, 3, 6, 6)
    graph = trace(model, x)
    n, t = 2, 16
    attention = n * t * t * (8 + 8)
    linear = n * t * 8 * (8 + 8 + 8) + n * 8 * 4 + n * t * 27 * 8
    assert count(model, x).macs == graph.cost().macs == attention + linear
    small = apply(model, graph.plan({"v": [0, 1, 2]}))
    assert count(small, x).macs == n * t * t * (8 + 3) + n * t * 8 * (8 + 8 + 3) + n * 3 * 4 + n * t * 27 * 8


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_recurrent_layer_by_hand() -> None:
    x = torch.randn(7, 2, 5)  # (T, N, I)
    layers = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}
    for kind, gates in layers.items():
        macs = 7 * 2 * gates * 6 * (5 + 6)
        layer = kind(5, 6)
        assert count(layer, x) == Cost(macs, gates * 6 * (5 + 6 + 2))
        assert trace(layer, x).cost() == count(layer, x)
    both = nn.LSTM(5, 6, 2, bidirectional=True, proj_size=4)
    steps, first, second = 7 * 2, 24 * (5 + 4) + 4 * 6, 24 * (8 + 4) + 4 * 6
    assert count(both, x).macs == steps * 2 * (first + second)


def test_kernels_of_other_devices() -> None:
    """Their formulas, by shapes: (x, weights, …) of cuDNN and MIOpen, (x, states, weights, …) of MPS."""
    counter = MacCounter()
    x, layer = torch.randn(7, 2, 5), nn.LSTM(5, 6, 2)
    weights = [p.detach() for p in layer.parameters()]
    states = [torch.zeros(2, 2, 6)] * 2
    due = 2 * count(layer, x).macs
    formulas = counter.flop_registry
    assert formulas[torch.ops.aten._cudnn_rnn](x, weights, 4, None, *states, 2, 6, 0, 2, out_val=x) == due
    assert formulas[torch.ops.aten.miopen_rnn](x, weights, 4, *states, 2, 6, 2, out_val=x) == due
    assert formulas[torch.ops.aten._lstm_mps](x, states, weights, True, 2, out_val=x) == due


def test_parameters_that_are_expanded_or_reshaped_count() -> None:
    """A query that is one parameter for all images."""
    model = Net(
        lambda s, x: s.out(s.queries.expand(len(x), -1, -1)).sum(1) + s.h(s.a(x)),
        a=conv(3, 8), h=head(8, 4), queries=nn.Parameter(torch.randn(5, 16)), out=nn.Linear(16, 4),
    )  # fmt: skip
    x = torch.randn(2, 3, 6, 6)
    assert count(model, x).macs == trace(model, x).cost().macs == 2 * 36 * 27 * 8 + 2 * 8 * 4 + 2 * 5 * 16 * 4
