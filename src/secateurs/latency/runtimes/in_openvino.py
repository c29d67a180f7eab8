"""Pieces in OpenVINO: all widths of a piece as branches of one model, of which the runtime tells the time of each node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from secateurs.deploy.formats.openvino import PRECISIONS
from secateurs.deploy.target import Target
from secateurs.importing import openvino
from secateurs.latency.geometry import DEPTHWISE, Geometry
from secateurs.latency.runtimes.repeats import of_branches, repeated

MOVES = ("Reorder", "Parameter", "Result", "Convert")  # at the edges of the branches only


def measure(geometry: Geometry, points: Sequence[tuple[int, int]], target: Target) -> list[float]:
    ov = openvino()
    model = _Model(geometry)
    for at, widths in enumerate(points):
        model.branch(at, *widths)
    options = {
        "PERF_COUNT": True, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": target.used_threads,
        "INFERENCE_PRECISION_HINT": PRECISIONS[target.precision],
    }  # fmt: skip
    made = ov.Model(model.results, model.parameters, "pieces")
    request = ov.Core().compile_model(made, "CPU", options).create_infer_request()
    nodes: list[tuple[str, float]] = []
    for _ in repeated():
        request.infer(model.inputs, share_inputs=True, share_outputs=True)
        nodes += [
            (node.node_name, node.real_time.total_seconds())
            for node in request.profiling_info
            if node.node_type not in MOVES
        ]
    return of_branches(nodes, len(points))


class _Model:
    """A model whose branches are pieces at different widths."""

    def __init__(self, geometry: Geometry) -> None:
        self.g = geometry
        self.parameters: list[Any] = []
        self.results: list[Any] = []
        self.inputs: list[np.ndarray] = []

    def branch(self, at: int, wide_in: int, wide_out: int) -> None:
        import openvino.opset13 as ops

        g, self.at, self.nodes = self.g, at, 0
        if g.kind == "convolution":
            x = self._convolution(ops, wide_in, wide_out)
        elif g.kind == "linear":
            x = ops.matmul(self.fed(g.batch, wide_in), self.weight(wide_out, wide_in), False, True)
            x = ops.add(self.named(x), self.weight(1, wide_out))
        elif g.kind == "norm":
            own = [self.weight(wide_out) for _ in range(4)]
            x = ops.batch_norm_inference(self.fed(g.batch, wide_out, *g.space), *own, 1e-5)
        elif g.kind == "concatenation":
            half = max(1, wide_out // 2)
            x = ops.concat([self.fed(g.batch, n, *g.space) for n in (half, max(1, wide_out - half))], 1)
        elif g.kind == "pooling":
            x = self._pooling(ops, wide_out)
        else:
            parts = [self.fed(g.batch, wide_out, *g.space) for _ in range(g.inputs)]
            x = ops.add(*parts) if g.inputs > 1 else self._activation(ops, parts[0])
        x = self.named(x)
        if g.added:
            x = self.named(ops.add(x, self.fed(*x.get_output_shape(0))))
        if g.activation and g.kind != "pointwise":
            x = self.named(self._activation(ops, x))
        self.results.append(ops.result(x))

    def _convolution(self, ops: Any, wide_in: int, wide_out: int) -> Any:
        g, x = self.g, self.fed(self.g.batch, wide_in, *self.g.space)
        groups = wide_in if g.groups == DEPTHWISE else g.groups
        shape = (wide_in // groups, wide_out // groups) if g.transposed else (wide_out // groups, wide_in // groups)
        window = (list(g.stride), list(g.padding), list(g.padding), list(g.dilation))
        if groups == 1:
            weight = self.weight(*shape, *g.kernel)
            forward, backward = ops.convolution, ops.convolution_backprop_data
        else:
            weight = self.weight(groups, *shape, *g.kernel)
            forward, backward = ops.group_convolution, ops.group_convolution_backprop_data
        if g.transposed:
            stride, begin, end, dilation = window
            x = backward(x, weight, stride, pads_begin=begin, pads_end=end, dilations=dilation)
        else:
            x = forward(x, weight, *window)
        return ops.add(self.named(x), self.weight(1, wide_out, *[1] * len(g.space)))

    def _pooling(self, ops: Any, width: int) -> Any:
        g = self.g
        x = self.fed(g.batch, width, *(g.space or (1,)))
        if g.mode == "global" or not g.space:
            return ops.reduce_mean(x, np.array(range(2, 2 + max(1, len(g.space)))), True)
        window = (list(g.stride), list(g.padding), list(g.padding), list(g.kernel))
        if g.mode == "max":
            return ops.max_pool(x, list(g.stride), [1] * len(g.space), *window[1:]).output(0)
        return ops.avg_pool(x, *window, True)

    def _activation(self, ops: Any, x: Any) -> Any:
        name = self.g.activation
        known = {
            "hardtanh": lambda: ops.clamp(x, 0.0, 6.0), "silu": lambda: ops.swish(x), "gelu": lambda: ops.gelu(x, "erf"),
            "hardswish": lambda: ops.hswish(x), "hardsigmoid": lambda: ops.hsigmoid(x), "sigmoid": lambda: ops.sigmoid(x),
            "tanh": lambda: ops.tanh(x), "mish": lambda: ops.mish(x),
        }  # fmt: skip
        return known.get(name, lambda: ops.relu(x))()

    def named(self, node: Any) -> Any:
        owner = node.get_node() if hasattr(node, "get_node") else node
        owner.set_friendly_name(f"b{self.at}~{self.nodes}")
        self.nodes += 1
        return node

    def fed(self, *shape: int) -> Any:
        import openvino.opset13 as ops

        made = ops.parameter(list(shape), np.float32)
        self.parameters.append(made)
        self.inputs.append(np.full(shape, 0.1, dtype=np.float32))
        return made

    def weight(self, *shape: int) -> Any:
        import openvino.opset13 as ops

        return ops.constant(np.full(shape, 0.1, dtype=np.float32))
