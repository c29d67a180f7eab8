"""Programs of torch.export."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.deploy.formats.format import METADATA, Format, Shapes, called, dims
from secateurs.graph.inputs import call, tensors

_EXTRA = f"{METADATA}.json"


def _write(network: nn.Module, path: Path, inputs: Any, shapes: Shapes, outputs: Sequence[str], metadata: str) -> None:
    args, kwargs = called(network, inputs)
    program = torch.export.export(network, args, kwargs, dynamic_shapes=dims(shapes))
    torch.export.save(program, path, extra_files={_EXTRA: metadata})


class ProgramFile:
    """A program of torch.export, run op by op."""

    def __init__(self, path: Path, threads: int | None = None, precision: str = "fp32") -> None:
        extra = {_EXTRA: ""}
        self.module = torch.export.load(path, extra_files=extra).module()
        self.text = extra[_EXTRA]

    def run(self, inputs: Any) -> list[Tensor]:
        with torch.no_grad():
            return [x.detach() for x in tensors(call(self.module, inputs))]  # an output may be a parameter

    def bound(self, inputs: Any) -> Callable[[], object]:
        return lambda: self.run(inputs)

    def metadata(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text or "{}")
        return found


PT2 = Format("torch.export", ".pt2", (), "", _write, ProgramFile, structured=True)
