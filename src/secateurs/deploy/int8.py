"""Static quantization of an ONNX file to 8-bit integers, by ONNX Runtime."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from secateurs.data import Data
from secateurs.deploy.formats.onnx import OnnxFile
from secateurs.training.batches import without_labels

IMAGES = 512  # images that the ranges of activations are measured on


def quantize(path: Path, data: Any) -> None:
    """Quantize an ONNX file in place: weights per filter, activations by their range on the first images of the data.

    data: batches of inputs, or of pairs (inputs, targets), or a `Data`.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    file = OnnxFile(path)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Any] = without_labels(Data.of(data).train, IMAGES, seed=0)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else file.fed(batch.inputs)

    prepared = path.with_suffix(".prepared.onnx")
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # it recommends steps that have already been done
    try:
        quant_pre_process(path, prepared, skip_symbolic_shape=True)  # the exporter has inferred the shapes
        quantize_static(
            prepared, path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
    finally:
        root.setLevel(level)
        if prepared.exists():
            os.unlink(prepared)
