"""The networks of `coverage.py`, by family: how each is built, with random weights, and what it is run on.

Nothing is downloaded. A family whose package is missing raises ImportError or SpecError when it is listed.
"""

from __future__ import annotations

from collections.abc import Callable

from coverage_networks.configured import diffusers, monai, transformers
from coverage_networks.network import Network
from coverage_networks.signals import audio, superres
from coverage_networks.vision import smp, timm, torchvision, ultralytics

__all__ = ["FAMILIES", "QUICK", "Network"]

FAMILIES: dict[str, Callable[[], list[Network]]] = {
    "torchvision": torchvision,
    "ultralytics": ultralytics,
    "smp": smp,
    "transformers": transformers,
    "monai": monai,
    "diffusers": diffusers,
    "audio": audio,
    "superres": superres,
    "timm": timm,
}
QUICK = {
    "torchvision": ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"],
    "ultralytics": ["yolov8n", "yolo11n"],
    "superres": ["EDSR"],
    "audio": ["CRNN"],
}
