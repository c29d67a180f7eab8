"""Pieces in ONNX Runtime: all widths of a piece as branches of one model, of which the runtime tells the time of each node."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateurs.deploy.target import Target
from secateurs.latency.geometry import DEPTHWISE, Geometry
from secateurs.latency.runtimes.repeats import of_branches, repeated

MOVES = ("ReorderInput", "ReorderOutput")  # at the edges of the branches only

_ACTIVATIONS = {
    "relu": "Relu", "silu": "Sigmoid", "sigmoid": "Sigmoid", "gelu": "Gelu", "hardswish": "HardSwish",
    "hardsigmoid": "HardSigmoid", "tanh": "Tanh", "leaky_relu": "LeakyRelu", "mish": "Mish",
}  # fmt: skip


def measure(geometry: Geometry, points: Sequence[tuple[int, int]], target: Target) -> list[float]:
    import onnxruntime as ort

    model = _Model(geometry)
    for at, widths in enumerate(points):
        model.branch(at, *widths)
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads, options.inter_op_num_threads = target.used_threads, 1
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder, "run"))
        session = ort.InferenceSession(model.bytes(), options, providers=["CPUExecutionProvider"])
        for _ in repeated():
            session.run(None, model.inputs)
        events = json.loads(Path(session.end_profiling()).read_bytes())
    return of_branches(_nodes(events), len(points))


def _nodes(events: Sequence[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """The name of each node that ran, and the seconds that it took."""
    for event in events:
        name, args = event.get("name", ""), event.get("args", {})
        if event.get("cat") == "Node" and name.endswith("_kernel_time") and args.get("op_name") not in MOVES:
            yield name, event["dur"] * 1e-6


class _Model:
    """A model whose branches are pieces at different widths."""

    def __init__(self, geometry: Geometry) -> None:
        self.g = geometry
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.outputs: list[Any] = []
        self.inputs: dict[str, np.ndarray] = {}

    def bytes(self) -> bytes:
        import onnx
        from onnx import helper

        values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, x.shape) for n, x in self.inputs.items()]
        graph = helper.make_graph(self.nodes, "pieces", values, self.outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        made: bytes = model.SerializeToString()
        return made

    def branch(self, at: int, wide_in: int, wide_out: int) -> None:
        import onnx
        from onnx import helper

        g, self.at = self.g, at
        if g.kind == "convolution":
            groups = wide_in if g.groups == DEPTHWISE else g.groups
            shape = (wide_in, wide_out // groups) if g.transposed else (wide_out, wide_in // groups)
            x = self.node(
                "ConvTranspose" if g.transposed else "Conv",
                [self.fed(g.batch, wide_in, *g.space), self.weight(*shape, *g.kernel), self.weight(wide_out)],
                kernel_shape=g.kernel, strides=g.stride, pads=[*g.padding, *g.padding], dilations=g.dilation, group=groups,
            )  # fmt: skip
        elif g.kind == "linear":
            x = self.node(
                "Gemm", [self.fed(g.batch, wide_in), self.weight(wide_out, wide_in), self.weight(wide_out)], transB=1
            )
        elif g.kind == "norm":
            own = [self.weight(wide_out) for _ in range(4)]
            x = self.node("BatchNormalization", [self.fed(g.batch, wide_out, *g.space), *own])
        elif g.kind == "concatenation":
            half = max(1, wide_out // 2)
            parts = [self.fed(g.batch, n, *g.space) for n in (half, max(1, wide_out - half))]
            x = self.node("Concat", parts, axis=1)
        elif g.kind == "pooling" and g.mode != "global" and g.space:
            name = "MaxPool" if g.mode == "max" else "AveragePool"
            pads = [*g.padding, *g.padding]
            x = self.node(
                name, [self.fed(g.batch, wide_out, *g.space)], kernel_shape=g.kernel, strides=g.stride, pads=pads
            )
        elif g.kind == "pooling":
            x = self.node("GlobalAveragePool", [self.fed(g.batch, wide_out, *(g.space or (1,)))])
        else:
            parts = [self.fed(g.batch, wide_out, *g.space) for _ in range(g.inputs)]
            x = self.node("Add" if g.inputs > 1 else _ACTIVATIONS.get(g.activation, "Relu"), parts)
        if g.added:
            space = self.space()
            x = self.node("Add", [x, self.fed(g.batch, wide_out, *space)])
        if g.activation and g.kind != "pointwise":
            x = self.activation(x)
        self.outputs.append(helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, None))

    def activation(self, x: str) -> str:
        name = self.g.activation
        if name == "hardtanh":
            return self.node("Clip", [x, self.constant(0.0), self.constant(6.0)])
        made = self.node(_ACTIVATIONS.get(name, "Relu"), [x])
        return self.node("Mul", [x, made]) if name == "silu" else made

    def space(self) -> list[int]:
        """The spatial size that a layer puts out."""
        g = self.g
        sizes = zip(g.space, g.kernel, g.stride, g.padding, g.dilation, strict=True)
        if g.transposed:
            return [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in sizes]
        return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        from onnx import helper

        name = f"b{self.at}~{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}o"], name=name, **attributes))
        return f"{name}o"

    def fed(self, *shape: int) -> str:
        name = f"b{self.at}~x{len(self.inputs)}"
        self.inputs[name] = np.full(shape, 0.1, dtype=np.float32)
        return name

    def weight(self, *shape: int) -> str:
        from onnx import numpy_helper

        name = f"b{self.at}~w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.full(shape, 0.1, dtype=np.float32), name))
        return name

    def constant(self, value: float) -> str:
        from onnx import numpy_helper

        name = f"b{self.at}~c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(value, dtype=np.float32), name))
        return name
