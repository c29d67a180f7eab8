"""torchvision beside a torch that its C++ operators do not load with."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateurs.errors import SpecError
from secateurs.zoo import build, vision

needs_torchvision = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is absent")


def brute_force(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """Non-maximum suppression by its definition, a pair of boxes at a time."""

    def iou(a: list[float], b: list[float]) -> float:
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
        return width * height / union if union else 0.0

    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i].item()):
        if all(iou(boxes[i].tolist(), boxes[j].tolist()) <= threshold for j in kept):
            kept.append(i)
    return kept


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 25), st.sampled_from([0.05, 0.31, 0.52, 0.77]), st.integers(0, 10_000))
def test_nms_is_the_definition(count: int, threshold: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 12, (count, 2), generator=generator).float()
    size = torch.randint(0, 9, (count, 2), generator=generator).float()
    boxes = torch.cat([corner, corner + size], dim=1)
    scores = torch.rand(count, generator=generator)
    assert vision.nms(boxes, scores, threshold).tolist() == brute_force(boxes, scores, threshold)


def test_nms_keeps_the_first_of_equal_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [9, 9, 10, 10]])
    assert vision.nms(boxes, torch.tensor([0.5, 0.5, 0.9]), 0.5).tolist() == [2, 0]


@needs_torchvision
def test_imports_in_a_fresh_process() -> None:
    code = (
        "import torch; from secateurs.zoo import vision; tv = vision.torchvision(); vision.timm(); "
        "b = torch.tensor([[0., 0, 4, 4], [0, 0, 4, 5], [8, 8, 9, 9]]); "
        "print(tv.ops.nms(b, torch.tensor([.1, .9, .5]), 0.5).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[1, 2]", done.stderr


@needs_torchvision
def test_detection_runs() -> None:
    model = build("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=4, min_size=64, max_size=64).eval()
    with torch.no_grad():
        (found,) = model(torch.rand(1, 3, 64, 64))
    assert found["boxes"].shape[1:] == (4,)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    for door in (vision.torchvision, vision.timm):
        with pytest.raises(SpecError, match=r"pip install 'secateurs\[vision\]'"):
            door.__wrapped__()
