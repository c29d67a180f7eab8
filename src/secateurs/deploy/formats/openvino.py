"""OpenVINO models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.graph_signature import ConstantArgument

from secateurs.deploy.formats.format import METADATA, Format, Shapes, arrays, called, dims
from secateurs.graph.inputs import call, map_tensors
from secateurs.importing import openvino

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def _write(network: nn.Module, path: Path, inputs: Any, shapes: Shapes, outputs: Sequence[str], metadata: str) -> None:
    ov = openvino()
    args, kwargs = called(network, inputs)
    with _distinct(network, inputs):
        program = torch.export.export(network, args, kwargs, dynamic_shapes=dims(shapes))
    model = ov.convert_model(program)
    fixed = {x.arg.name for x in program.graph_signature.input_specs if isinstance(x.arg, ConstantArgument)}
    for parameter in model.get_parameters():
        if parameter.get_friendly_name() in fixed:  # an argument that is no tensor; the runtime would ask for its value
            model.remove_parameter(parameter)
    if len(model.outputs) == len(outputs):
        for output, name in zip(model.outputs, outputs, strict=True):
            output.get_tensor().set_names({name})
    model.set_rt_info(metadata, [METADATA])
    ov.save_model(model, path, compress_to_fp16=False)


@contextmanager
def _distinct(network: nn.Module, inputs: Any) -> Iterator[None]:
    """Context in which outputs that equal an earlier one are views of their own: the converter fails on one tensor under two
    names, and takes copies of a tensor for that tensor."""
    seen: list[Tensor] = []
    with torch.no_grad():
        map_tensors(lambda x: seen.append(x) or x, call(network, inputs))  # type: ignore[func-returns-value]
    again = {i for i, x in enumerate(seen) if any(x.dtype == y.dtype and torch.equal(x, y) for y in seen[:i])}

    def apart(module: nn.Module, args: Any, outputs: Any) -> Any:
        position = count()
        return map_tensors(lambda x: x.view(x.shape) if next(position) in again else x, outputs)

    handle = network.register_forward_hook(apart) if again else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


class OpenVinoFile:
    """A model on the CPU."""

    def __init__(self, path: Path, threads: int | None = None, precision: str = "fp32") -> None:
        core = openvino().Core()
        # by default it would compute in bfloat16 where the processor can
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision], "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        self.model = core.read_model(path)
        self.request = core.compile_model(self.model, "CPU", options).create_infer_request()

    def run(self, inputs: Any) -> list[Tensor]:
        found = self.request.infer(arrays(inputs), share_inputs=True)
        return [torch.from_numpy(np.array(x)) for x in found.values()]

    def bound(self, inputs: Any) -> Callable[[], object]:
        fed = arrays(inputs)
        return lambda: self.request.infer(fed, share_inputs=True, share_outputs=True)

    def metadata(self) -> dict[str, Any]:
        if not self.model.has_rt_info([METADATA]):
            return {}
        found: dict[str, Any] = json.loads(self.model.get_rt_info([METADATA]).value)
        return found


OPENVINO = Format("OpenVINO", ".xml", ("openvino",), "openvino", _write, OpenVinoFile, ".bin")
