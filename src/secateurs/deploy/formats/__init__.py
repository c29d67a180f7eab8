"""The formats that a network can be exported to, by suffix: what writes a file, and what runs it."""

from __future__ import annotations

from secateurs.deploy.formats.format import METADATA, ExportedFile, Format, Shapes
from secateurs.deploy.formats.onnx import ONNX
from secateurs.deploy.formats.openvino import OPENVINO
from secateurs.deploy.formats.pt2 import PT2

__all__ = ["FORMATS", "METADATA", "ONNX", "OPENVINO", "PT2", "ExportedFile", "Format", "Shapes"]

FORMATS: dict[str, Format] = {found.suffix: found for found in (ONNX, PT2, OPENVINO)}
