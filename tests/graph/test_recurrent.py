"""Recurrent layers: one op each, whose cells are cut in all gates, layers and directions at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateurs.graph.reasons import Kind
from secateurs.plans import PrunableGraph, trace
from secateurs.surgery import apply, cut_, verify
from tests.networks import Net, half

Run = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def read(x: Tensor) -> Tensor:
    """The columns of a map as a sequence: (N, C, H, W) → (N, W, C·H)"""
    return x.permute(0, 3, 1, 2).flatten(2)


def net(run: Run, layer: nn.Module, o: int, **parts: Any) -> nn.Module:
    torch.manual_seed(0)
    return Net(
        lambda s, *x: run(s, read(s.conv(x[0])), *x[1:]),
        conv=nn.Conv2d(3, 5, 3), layer=layer, out=nn.Linear(o, 4), **parts,
    ).eval()  # fmt: skip


def images() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))  # read as (2, 4, 5 · 4)


def sound(model: nn.Module, *inputs: Tensor) -> PrunableGraph:
    """Its groups can be cut one by one and together."""
    graph = trace(model, inputs)
    kept = half(graph)
    for some in (kept, *({g: index} for g, index in kept.items())):
        assert verify(model, graph.plan(some), inputs) < 1e-5
    return graph


def last(s: Any, y: Tensor) -> Tensor:
    return s.out(s.layer(y)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("both", [False, True])
def test_inputs_and_cells_are_cut(kind: Any, both: bool) -> None:
    layer = kind(20, 6, num_layers=2, bidirectional=both, batch_first=True)
    model = net(last, layer, 6 * (1 + both))
    graph = sound(model, images())
    conv, cells = graph["conv"], graph["layer"]
    assert (conv.size, conv.consumers, conv.prunable) == (5, ("layer",), True)
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    assert (cells.size, cells.coupled, cells.exact) == (6, gates, True)
    assert cells.producers == ("layer",)
    assert set(cells.consumers) == {"layer", "out"}
    assert all(s.index.shape == (6, gates) for s in cells.slots if s.produces)


def test_attributes_and_flat_weights_follow() -> None:
    layer = nn.LSTM(20, 6, num_layers=2, bidirectional=True, batch_first=True)
    model = net(last, layer, 12)
    small = apply(model, trace(model, images()).plan({"conv": [0, 2, 3], "layer": [1, 2, 5, 0]}))
    cut: Any = small.layer
    assert (cut.input_size, cut.hidden_size, cut.proj_size) == (12, 4, 0)
    assert [tuple(w.shape) for w in cut.all_weights[2]] == [(16, 8), (16, 4), (16,), (16,)]
    assert all(a is getattr(cut, name) for a, name in zip(cut._flat_weights, cut._flat_weights_names, strict=True))
    rows = [i * 6 + k for i in range(4) for k in (0, 1, 2, 5)]
    assert torch.equal(cut.weight_hh_l1_reverse, layer.weight_hh_l1_reverse[rows][:, [0, 1, 2, 5]])
    fresh = nn.LSTM(cut.input_size, cut.hidden_size, 2, batch_first=True, bidirectional=True)
    fresh.load_state_dict(cut.state_dict())
    y = torch.randn(2, 4, 12)
    assert torch.equal(fresh(y)[0], cut(y)[0])


def test_it_trains_after_a_cut_in_place() -> None:
    model = net(last, nn.GRU(20, 6, batch_first=True), 6)
    optimizer = torch.optim.Adam(model.parameters())
    plan = trace(model, images()).plan({"layer": [0, 3]})
    small = apply(model, plan)
    cut_(model, plan, optimizer)
    layer: Any = model.layer
    assert all(
        w is getattr(layer, name) for w, name in zip(layer._flat_weights, layer._flat_weights_names, strict=True)
    )
    assert torch.equal(model(images()), small(images()))
    before = layer.weight_hh_l0.detach().clone()
    model(images()).sum().backward()
    optimizer.step()
    assert not torch.equal(layer.weight_hh_l0, before)


def test_a_projection_is_cut_and_its_cells_are_not() -> None:
    """PyTorch takes an LSTM for one without projection if it has as many cells as outputs."""
    model = net(last, nn.LSTM(20, 6, 2, proj_size=3, bidirectional=True, batch_first=True), 6)
    graph = sound(model, images())
    outputs, cells = sorted((g for g in graph.groups if g.producers == ("layer",)), key=lambda g: g.size)
    assert (cells.size, str(cells.reason)) == (6, "an LSTM with a projection must have more cells than outputs")
    assert (outputs.size, outputs.prunable) == (3, True)
    small: Any = apply(model, graph.plan({outputs.name: [0, 2]}))
    assert (small.layer.hidden_size, small.layer.proj_size) == (6, 2)


def test_the_states_at_the_end() -> None:
    """h_n and c_n hold the states of all layers and directions."""

    def run(s: Any, y: Tensor) -> Tensor:
        _, (h, c) = s.layer(y)
        return s.out(torch.cat([h[-2], h[-1]], 1)) + s.more(c.mean(0))

    model = net(run, nn.LSTM(20, 6, 2, batch_first=True, bidirectional=True), 12, more=nn.Linear(6, 4))
    graph = sound(model, images())
    assert set(graph["layer"].consumers) == {"layer", "out", "more"}


def test_a_decoder_begins_with_the_states_of_an_encoder() -> None:
    def run(s: Any, y: Tensor) -> Tensor:
        _, states = s.layer(y)
        return s.out(s.decoder(s.start.expand(len(y), 3, -1), states)[0][:, -1])

    decoder = nn.LSTM(7, 6, batch_first=True)
    model = net(run, nn.LSTM(20, 6, batch_first=True), 6, decoder=decoder, start=nn.Parameter(torch.randn(1, 1, 7)))
    graph = sound(model, images())
    assert graph["layer"].producers == ("layer", "decoder")


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(kind: Any) -> None:
    def run(s: Any, y: Tensor) -> Tensor:
        state = None
        for x in y.unbind(1):
            state = s.layer(x, state)
        return s.out(state[0] if isinstance(state, tuple) else state)

    model = net(run, kind(20, 6), 6)
    graph = sound(model, images())
    assert graph["conv"].prunable
    assert graph["layer"].prunable
    small: Any = apply(model, graph.plan({"conv": [0], "layer": [1, 2]}))
    assert (small.layer.input_size, small.layer.hidden_size) == (4, 2)


def test_packed_sequences() -> None:
    def run(s: Any, y: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(y, torch.tensor([4, 2]), batch_first=True)
        return s.out(nn.utils.rnn.pad_packed_sequence(s.layer(packed)[0], batch_first=True)[0].mean(1))

    graph = sound(net(run, nn.GRU(20, 6, batch_first=True), 6), images())
    assert [g.prunable for g in graph.groups] == [True, True, False]


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (lambda s, y, *h: s.layer(y, torch.zeros(1, len(y), 6)), Kind.CODE),
        (lambda s, y, h: s.layer(y, h), Kind.CONSTANT),
    ],
)
def test_an_initial_state_of_the_users(run: Run, kind: Kind) -> None:
    state = torch.randn(1, 2, 6)
    model = net(lambda s, y, *h: s.out(run(s, y, *h)[0][:, -1]), nn.GRU(20, 6, batch_first=True), 6)
    graph = sound(model, images(), state)
    assert graph["conv"].prunable
    assert graph["layer"].reason is not None
    assert graph["layer"].reason.kind is kind


def test_an_initial_state_of_the_layers_width() -> None:
    def run(s: Any, y: Tensor) -> Tensor:
        return s.out(s.layer(y, torch.zeros(1, len(y), s.layer.hidden_size))[0][:, -1])

    assert sound(net(run, nn.GRU(20, 6, batch_first=True), 6), images())["layer"].prunable


def test_a_learned_initial_state() -> None:
    def run(s: Any, y: Tensor) -> Tensor:
        return s.out(s.layer(y, s.start.expand(-1, len(y), -1).contiguous())[0][:, -1])

    model = net(run, nn.GRU(20, 6, batch_first=True), 6, start=nn.Parameter(torch.randn(1, 1, 6)))
    assert {s.param for s in sound(model, images())["layer"].slots} >= {"start", "layer.weight_hh_l0"}


def test_channels_that_are_the_steps_stay() -> None:
    model = Net(
        lambda s, x: s.out(s.layer(s.conv(x).flatten(2))[0].mean(1)),
        conv=nn.Conv2d(3, 5, 3), layer=nn.LSTM(16, 6, batch_first=True), out=nn.Linear(6, 4),
    )  # fmt: skip
    graph = sound(model.eval(), images())
    assert str(graph["conv"].reason) == "aten.lstm runs along channels"
    assert graph["layer"].prunable


def test_a_trace_does_not_grow_with_the_steps() -> None:
    model = net(lambda s, y: s.out(s.layer(y)[0].mean(1)), nn.LSTM(20, 6, 2, batch_first=True), 6)
    flow = trace(model, images()).flow
    longer = trace(model, torch.randn(2, 3, 6, 60)).flow
    assert len(flow.ops) == len(longer.ops)
    assert [op.call.module for op in flow.readers(["layer.weight_hh_l1"])] == ["layer"]
