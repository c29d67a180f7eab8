"""The cost of a network: multiply-accumulates and parameters, at any widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from secateurs.graph.counter import MacCounter
from secateurs.graph.faults import running
from secateurs.graph.inputs import call, check_model, fresh, to_model_device, untracked
from secateurs.graph.modes import evaluating, unfused
from secateurs.graph.state import State
from secateurs.graph.swapped import swapped

Array = np.ndarray


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one forward pass over the example inputs (their batch included), and parameters.

    latency: seconds of one forward pass, as the latency model of the graph predicts them; None without one.
    """

    macs: int
    params: int
    latency: float | None = field(default=None, repr=False, compare=False)


def count(model: nn.Module, example_inputs: Any) -> Cost:
    """Return the cost of a model: the multiply-accumulates of one forward pass in eval mode, and the parameters. The
    multiply-accumulates are half the count of `FlopCounterMode`, plus those of ops that it does not know: recurrent and
    bilinear layers, and attention on CPUs. The model is not modified. Raises TraceError if it does not run on these inputs."""
    check_model(model)
    modules = dict(model.named_modules())
    state = State(modules, untracked(example_inputs))
    inputs = fresh(to_model_device(model, example_inputs), meta=False)
    with (
        unfused(), evaluating(model), swapped(state, modules, state.copies()), MacCounter() as counter,
        running(model, inputs),
    ):  # fmt: skip
        call(model, inputs)
    return Cost(counter.macs, sum(p.numel() for p in model.parameters()))


class CostModel:
    """Sums of products of widths. Every factor is an affine form of the group widths, `constant + Σ multiplicity·width`.

    To evaluate one candidate takes microseconds. The time grows with the number of places where a width appears.
    """

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self._forms: dict[tuple[int, tuple[tuple[int, int], ...], bool], int] = {}
        self._rows: list[tuple[int, tuple[tuple[int, int], ...]]] = []
        self._terms: dict[str, list[tuple[int, tuple[int, ...]]]] = {"macs": [], "params": []}
        self.kernels: dict[str, int] = {}  # weight of a convolution → the form that counts its stripes
        self._packed: dict[str, tuple[Array, Array]] = {}

    def form(self, constant: int, multiplicities: Mapping[int, int], zero_at_one: bool = False) -> int:
        """Return the index of the form `constant + Σ multiplicities[g]·width[g]`. zero_at_one: a value of 1 counts as 0."""
        key = (constant, tuple(sorted(multiplicities.items())), zero_at_one)
        if key not in self._forms:
            self._forms[key] = len(self._rows)
            self._rows.append(key[:2])
        return self._forms[key]

    def stripes(self, kernel: str, constant: int, multiplicities: Mapping[int, int]) -> int:
        """Return the index of the form that counts this kernel's stripes. A call of the cost model can override the number."""
        if kernel not in self.kernels:
            self.kernels[kernel] = len(self._rows)
            self._rows.append((constant, tuple(sorted(multiplicities.items()))))
        return self.kernels[kernel]

    def add(self, what: str, coefficient: int, forms: tuple[int, ...]) -> None:
        """Add one product: `coefficient · Π forms`, to the `macs` or the `params`."""
        self._terms[what].append((coefficient, forms))

    def freeze(self) -> CostModel:
        """Pack the forms and terms into arrays, once all are known."""
        one = self.form(1, {})
        for what, terms in self._terms.items():
            merged: dict[tuple[int, ...], int] = {}
            for coefficient, forms in terms:
                key = tuple(sorted(forms))
                merged[key] = merged.get(key, 0) + coefficient
            depth = max((len(k) for k in merged), default=1) or 1
            index = np.array([[*k, *[one] * (depth - len(k))] for k in merged], dtype=np.int64).reshape(-1, depth)
            self._packed[what] = np.array(list(merged.values()), dtype=np.int64), index.T.copy()
        self._zero_at_one = [row for (_, _, zero), row in self._forms.items() if zero]
        flat = [(row, g, m) for row, (_, pairs) in enumerate(self._rows) for g, m in pairs]
        self._constants = np.array([c for c, _ in self._rows], dtype=np.float64)
        self._row = np.array([r for r, _, _ in flat], dtype=np.int64)
        self._group = np.array([g for _, g, _ in flat], dtype=np.int64)
        self._multiplicity = np.array([m for _, _, m in flat], dtype=np.float64)
        return self

    def __call__(self, widths: Array, stripes: Mapping[str, int] | None = None) -> Cost:
        """Return the cost at these widths, (groups,). Widths may be fractional, as for channels that are partly open.
        stripes: kernel → number of stripes left in it; other kernels keep all that the widths allow."""
        weights = self._multiplicity * np.asarray(widths)[self._group]
        values = self._constants + np.bincount(self._row, weights=weights, minlength=len(self._constants))
        if np.asarray(widths).dtype.kind != "f":
            values = values.astype(np.int64)  # exact: widths are far below 2⁵³
        for row in self._zero_at_one:
            values[row] *= values[row] != 1
        for kernel, left in (stripes or {}).items():
            values[self.kernels[kernel]] = left
        return Cost(self._total("macs", values), self._total("params", values))

    def _total(self, what: str, values: Array) -> int:
        coefficients, index = self._packed[what]
        product = coefficients
        for factor in index:
            product = product * values[factor]
        return int(product.sum())
