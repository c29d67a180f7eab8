"""ONNX files and ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.deploy.formats.format import METADATA, Format, Shapes, arrays, called
from secateurs.deploy.inputs import images_of
from secateurs.errors import ExportError
from secateurs.files import shown

LARGEST = 2**31 - 1  # bytes of one protobuf message


def _write(network: nn.Module, path: Path, inputs: Any, shapes: Shapes, outputs: Sequence[str], metadata: str) -> None:
    args, kwargs = called(network, inputs)
    if (images := images_of(inputs)) is not None:
        _write_detector(network, path, images, metadata)
        return
    program = torch.onnx.export(network, args, kwargs=kwargs, dynamo=True, dynamic_shapes=shapes, verbose=False)
    proto = program.model_proto  # type: ignore[union-attr]
    if proto.ByteSize() > LARGEST:
        raise ExportError(f"{shown(path.name)} would have more than 2 GiB, which an ONNX file cannot hold.")
    _name_outputs(proto.graph, outputs)
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA, metadata
    path.write_bytes(proto.SerializeToString())


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Rename the graph's outputs. An intermediate value that already has such a name is renamed. If an input or a weight
    has it, the output gets the suffix `_out`."""
    kept = {value.name for value in (*graph.input, *graph.initializer)}
    inner = {name for node in graph.node for name in node.output}
    if len(graph.output) != len(names) or any(value.name in kept for value in graph.output):
        return  # values that are not tensors, or an input that is returned
    renamed: dict[str, str] = {}
    for value, name in zip(graph.output, names, strict=True):
        while name in kept or name in renamed.values():
            name = f"{name}_out"
        renamed[value.name] = name
    for name in inner & (set(renamed.values()) - renamed.keys()):
        renamed[name] = next(free for i in count() if (free := f"{name}_{i}") not in inner | kept | set(names))
    _rename(graph, renamed)


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Rename values, including those in the graphs of branches and loops."""
    for value in (*graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for used in (node.input, node.output):
            used[:] = [names.get(name, name) for name in used]
        for attribute in node.attribute:
            for inside in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename(inside, names)


def _write_detector(network: nn.Module, path: Path, images: list[Tensor], metadata: str) -> None:
    """Export a detector with the older exporter, which torchvision's detectors are made for. The newer exporter cannot follow
    a number of boxes that depends on the image. Images may have any height and width."""
    import onnx

    names = [f"image{i}" for i in range(len(images))]
    axes = {name: {1: f"height{i}", 2: f"width{i}"} for i, name in enumerate(names)}
    torch.onnx.export(
        network, (images,), path, dynamo=False, opset_version=17, input_names=names, dynamic_axes=axes, verbose=False
    )
    proto = onnx.load(path)
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA, metadata
    path.write_bytes(proto.SerializeToString())


class OnnxFile:
    """An ONNX file in ONNX Runtime."""

    def __init__(self, path: Path, threads: int | None = None, precision: str = "fp32") -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only
        if threads:
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [i.name for i in self.session.get_inputs()]

    def run(self, inputs: Any) -> list[Tensor]:
        return [torch.from_numpy(np.asarray(x)) for x in self.session.run(None, self.fed(inputs))]

    def bound(self, inputs: Any) -> Callable[[], object]:
        fed = self.fed(inputs)
        return lambda: self.session.run(None, fed)

    def metadata(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.session.get_modelmeta().custom_metadata_map.get(METADATA, "{}"))
        return found

    def fed(self, inputs: Any) -> dict[str, np.ndarray]:
        """Return the inputs by their names in the file."""
        return dict(zip(self.inputs, arrays(inputs), strict=True))


ONNX = Format("ONNX", ".onnx", ("onnx", "onnxscript", "onnxruntime"), "export", _write, OnnxFile)
