"""Time cut networks without exporting each of them, by cutting the weights in the original's file. For measuring only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import nn

from secateurs.deploy.clock import Program
from secateurs.deploy.export import export
from secateurs.deploy.formats import ONNX, Format
from secateurs.deploy.target import Target
from secateurs.plans import Plan

Cut = Callable[[Plan], Program | None]


@contextmanager
def sliced(model: nn.Module, inputs: Any, target: Target) -> Iterator[tuple[Program | None, Cut]]:
    """Yield the original's program, or None unless the target is ONNX Runtime, and a function that makes a program of the
    network cut by a plan. The function returns None for a file that cannot be cut this way, because constants other than
    those of layers depend on widths."""
    format = target.format
    if format is None or ONNX.missing:
        yield None, lambda plan: None
        return
    import onnx

    with TemporaryDirectory() as folder:
        path = Path(folder, "original.onnx")
        export(model, path, inputs, dynamic_batch=False)
        whole = onnx.load(path)

        def cut(plan: Plan) -> Program | None:
            if plan.stripes:
                return None
            made = Path(folder, "cut.onnx")
            try:
                made.write_bytes(_cut(whole, plan).SerializeToString())
                return _opened(format, made, target, inputs)
            except Exception:  # whatever a runtime raises for a file that is not consistent
                return None

        yield _opened(format, path, target, inputs) if format is ONNX else None, cut


def _opened(format: Format, path: Path, target: Target, inputs: Any) -> Program:
    file = format.open(path, target.used_threads, target.precision)
    run = file.bound(inputs)
    run()
    return Program(run)


def _cut(whole: Any, plan: Plan) -> Any:
    """Return a copy of an ONNX model in which the weights of layers have the shapes that a plan leaves. Weights that are found
    by name are cut. Other constants of a layer, such as those of folded batch norms, are only shortened to fit."""
    from onnx import ModelProto, numpy_helper

    model = ModelProto()
    model.CopyFrom(whole)
    graph = model.graph
    del graph.value_info[:]
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    at = {w.name: i for i, w in enumerate(graph.initializer)}
    done: set[str] = set()

    def put(name: str, value: np.ndarray) -> None:
        graph.initializer[at[name]].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))
        done.add(name)

    for name, axes in plan.kept.items():
        if name in at:
            value = numpy_helper.to_array(graph.initializer[at[name]])
            if value.shape == plan.shapes[name]:
                for axis, index in axes.items():
                    value = value.take(index, axis)
                put(name, value)
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] in at and node.input[1] not in done:
            shape = numpy_helper.to_array(graph.initializer[at[node.input[1]]]).copy()
            if len(shape) > 1 and (shape > 0).all():  # the channel axis: the second, or the third after groups
                shape[2 if len(shape) == 5 else 1] = -1
                put(node.input[1], shape)
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or node.input[1] not in done:
            continue
        sizes = list(graph.initializer[at[node.input[1]]].dims)
        settings = {a.name: a for a in node.attribute}
        axis = 1 if node.op_type == "ConvTranspose" or (node.op_type == "Gemm" and not settings["transB"].i) else 0
        if node.op_type == "Conv" and "group" in settings and settings["group"].i > 1 and sizes[1] == 1:
            settings["group"].i = sizes[0]  # depthwise
        if len(node.input) > 2 and node.input[2] in at and node.input[2] not in done:
            put(node.input[2], numpy_helper.to_array(graph.initializer[at[node.input[2]]])[: sizes[axis]])
    return model
