"""Recurrent layers. PyTorch runs them as one kernel or as thousands of small ops, depending on the device and on gradients.
Here each layer is one op.

The k-th cell of a layer is the k-th row of each of its gates. One state tensor holds the cells of all layers and directions, so
the k-th cells of all of them are one channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateurs.graph.context import Context
from secateurs.graph.rules.registry import rule
from secateurs.graph.tape import Array, Labels

aten = torch.ops.aten

_LAYERS = {torch.lstm: aten.lstm, torch.gru: aten.gru, torch.rnn_tanh: aten.rnn_tanh, torch.rnn_relu: aten.rnn_relu}
_CELLS = {
    torch.lstm_cell: aten.lstm_cell, torch.gru_cell: aten.gru_cell, torch.rnn_tanh_cell: aten.rnn_tanh_cell,
    torch.rnn_relu_cell: aten.rnn_relu_cell,
}  # fmt: skip
_WHOLE = {**_CELLS, torch._pad_packed_sequence: aten._pad_packed_sequence}


def whole(function: Any, args: tuple[Any, ...]) -> Any:
    """Return the op for a call of this function, if it is followed as a whole; else None."""
    if function in _WHOLE:
        return _WHOLE[function].default
    if function in _LAYERS:
        packed = len(args) > 3 and isinstance(args[3], list | tuple)
        return _LAYERS[function].data if packed else _LAYERS[function].input
    return None


@dataclass(frozen=True)
class Weights:
    """The weights of one layer in one direction."""

    ih: Tensor  # (gates · cells, inputs)
    hh: Tensor  # (gates · cells, outputs)
    biases: Sequence[Tensor] = ()  # (gates · cells,) each
    hr: Tensor | None = None  # (outputs, cells): the projection of an LSTM, without which the outputs are the cells


def unpacked(params: Sequence[Tensor], biases: bool, projected: bool) -> list[Weights]:
    """Return the weights of every layer and direction, in order."""
    each = 2 + 2 * biases + projected
    return [
        Weights(p[0], p[1], p[2 : 4 if biases else 2], p[-1] if projected else None)
        for p in (params[i : i + each] for i in range(0, len(params), each))
    ]


def follow(t: Context, reads: Array, layers: list[list[Weights]], cells: int, steps: Sequence[Any]) -> list[Array]:
    """Return the labels of the outputs of one direction, and of the cells. reads: the channels of the first layer's input;
    layers: the weights of each layer by direction; steps: the factors of how often each weight is used."""
    first = layers[0][0]
    rows = t.axis(first.ih, 0)
    gates = rows.reshape(-1, cells)  # (gates, cells)
    t.couple(gates)
    outputs = gates[0] if first.hr is None else t.axis(first.hr, 0)
    if first.hr is not None:
        t.freeze(rows, "an LSTM with a projection must have more cells than outputs")
    for directions in layers:
        for w in directions:
            t.unify(rows, t.axis(w.ih, 0), t.axis(w.hh, 0), *w.biases)
            t.unify(reads, t.axis(w.ih, 1))
            t.unify(outputs, t.axis(w.hh, 1))
            for weight in (w.ih, w.hh):
                t.produce(weight, 0)
                t.consume(weight, 1)
                t.cost(*steps, t.width(weight, 0), t.width(weight, 1))
            if w.hr is not None:
                t.unify(gates[0], t.axis(w.hr, 1))
                t.unify(outputs, t.axis(w.hr, 0))
                t.produce(w.hr, 0)
                t.consume(w.hr, 1)
                t.cost(*steps, t.width(w.hr, 0), t.width(w.hr, 1))
        reads = t.tile(outputs, len(directions))
    return [outputs, gates[0]]


def begin(t: Context, state: Tensor, own: Array, batch: Array | None) -> None:
    """Declare that the initial state of a layer, (*, N, channels), has these channels."""
    given, last = t.labels(state), state.ndim - 1
    for axis, labels in given.items():
        if axis < last - 1:
            t.freeze(labels, f"{t.op_name} keeps its layers' states there")
    if batch is not None or last - 1 in given:
        t.unify(t.zeros(state.shape[-2]) if batch is None else batch, t.axis(state, last - 1))
    if last in given or t.is_live(state):
        t.unify(own, t.axis(state, last))
    else:
        t.assume(own, "the size of the initial state is a constant in the code")


@rule(aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input, counts_macs=True)
def layer(
    t: Context, x: Tensor, state: Any, params: Sequence[Tensor], biases: bool, layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool,
) -> list[Labels]:  # fmt: skip
    """x: (T, N, I), or (N, T, I) with `batch_first`; states: (layers · directions, N, channels)."""
    time = 1 if batch_first else 0
    own = t.labels(x)
    t.freeze(own.get(time, t.zeros(0)), f"{t.op_name} runs along channels")
    kept = {a: labels for a, labels in own.items() if a == 1 - time}
    steps = [t.width(x, 1 - time), x.shape[time]]
    return stacked(t, x, state, params, biases, bidirectional, steps, kept)


@rule(aten.lstm.data, aten.gru.data, aten.rnn_tanh.data, aten.rnn_relu.data, counts_macs=True)
def packed(
    t: Context, x: Tensor, sizes: Tensor, state: Any, params: Sequence[Tensor], biases: bool, layers: int, dropout: float,
    train: bool, bidirectional: bool,
) -> list[Labels]:  # fmt: skip
    """x: (steps of all sequences, I)."""
    t.freeze(t.labels(x).get(0, t.zeros(0)), f"{t.op_name} runs along channels")
    return stacked(t, x, state, params, biases, bidirectional, [x.shape[0]], {})


def stacked(
    t: Context, x: Tensor, state: Any, params: Sequence[Tensor], biases: bool, bidirectional: bool, steps: list[Any],
    kept: Labels,
) -> list[Labels]:  # fmt: skip
    """kept: the labels of the batch axis."""
    states = [state] if isinstance(state, Tensor) else list(state)
    weights = unpacked(params, biases, states[0].shape[-1] != states[-1].shape[-1])
    directions = 1 + bidirectional
    layers = [weights[i : i + directions] for i in range(0, len(weights), directions)]
    found = follow(t, t.axis(x, x.ndim - 1), layers, states[-1].shape[-1], steps)
    batch = next(iter(kept.values()), None)
    for one, own in zip(states, found, strict=False):
        begin(t, one, own, batch)
    after = {} if batch is None else {1: batch}
    ends: list[Labels] = [{**after, 2: own} for own in found[: len(states)]]
    return [{**kept, x.ndim - 1: np.concatenate([found[0]] * directions)}, *ends]


@rule(aten.lstm_cell, aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell, counts_macs=True)
def cell(
    t: Context, x: Tensor, state: Any, ih: Tensor, hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> list[Labels]:
    """One step. x: (N, I), states: (N, cells)."""
    states = [state] if isinstance(state, Tensor) else list(state)
    weights = Weights(ih, hh, [b for b in (b_ih, b_hh) if b is not None])
    found = follow(t, t.axis(x, 1), [[weights]], hh.shape[1], [t.width(x, 0)])
    batch = t.labels(x).get(0)
    for one, own in zip(states, found, strict=False):
        begin(t, one, own, batch)
    after = {} if batch is None else {0: batch}
    return [{**after, 1: own} for own in found[: len(states)]]


@rule(aten._pack_padded_sequence)
def pack(t: Context, x: Tensor, lengths: Tensor, batch_first: bool) -> list[Labels]:
    """(T, N, *) → (steps of all sequences, *), and the number of sequences at each step."""
    own = t.labels(x)
    t.freeze({a: labels for a, labels in own.items() if a < 2}, f"{t.op_name} runs along channels")
    return [{a - 1: labels for a, labels in own.items() if a > 1}, {}]


@rule(aten._pad_packed_sequence)
def unpack(t: Context, x: Tensor, sizes: Tensor, *_: Any) -> list[Labels]:
    """(steps of all sequences, *) → (T, N, *), padded, and the lengths of the sequences."""
    own = t.labels(x)
    t.freeze(own.get(0, t.zeros(0)), f"{t.op_name} runs along channels")
    return [{a + 1: labels for a, labels in own.items() if a > 0}, {}]
