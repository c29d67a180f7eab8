"""The formats that a network can be exported to, by suffix: how each is written and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateurs.deploy.formats.format import METADATA, ExportedFile, Format, Shapes
from secateurs.deploy.formats.onnx import ONNX
from secateurs.deploy.formats.openvino import OPENVINO
from secateurs.deploy.formats.pt2 import PT2

__all__ = ["FORMATS", "METADATA", "ONNX", "OPENVINO", "PT2", "ExportedFile", "FileModule", "Format", "Shapes"]

FORMATS: dict[str, Format] = {found.suffix: found for found in (ONNX, PT2, OPENVINO)}


class FileModule(nn.Module):
    """An exported file as a module on the CPU, so that it can be evaluated like a network. Returns one tensor or a tuple."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.file = FORMATS[path.suffix].open(path)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        found = self.file.run(kwargs or args)
        return found[0] if len(found) == 1 else tuple(found)
