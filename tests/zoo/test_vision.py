"""torchvision beside a torch that its C++ operators do not load with."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateurs.errors import SpecError
from secateurs.zoo import build, regions, vision

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
    assert regions.nms(boxes, scores, threshold).tolist() == brute_force(boxes, scores, threshold)


def test_nms_keeps_the_first_of_equal_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [9, 9, 10, 10]])
    assert regions.nms(boxes, torch.tensor([0.5, 0.5, 0.9]), 0.5).tolist() == [2, 0]


def test_nms_of_several_blocks_of_boxes() -> None:
    torch.manual_seed(0)
    corner = torch.rand(1200, 2) * 60
    boxes, scores = torch.cat([corner, corner + 1 + torch.rand(1200, 2) * 12], 1), torch.rand(1200)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():  # a box at a time
        low, high = torch.maximum(boxes[i, :2], boxes[kept, :2]), torch.minimum(boxes[i, 2:], boxes[kept, 2:])
        both = (high - low).clamp(min=0).prod(1)
        if not (both / (area[i] + area[kept] - both) > 0.3).any():
            kept.append(i)
    assert regions.nms(boxes, scores, 0.3).tolist() == kept
    assert len(kept) > 100


def aligned_by_hand(x: Tensor, roi: list[float], scale: float, side: int, samples: int, aligned: bool) -> Tensor:
    """RoI Align by its definition, a sample at a time: (C, side, side)."""
    image, *corners = roi
    x0, y0, x1, y1 = (c * scale - 0.5 * aligned for c in corners)
    sizes = [size if aligned else max(1.0, size) for size in (y1 - y0, x1 - x0)]
    bins = [size / side for size in sizes]
    counts = [samples if samples > 0 else max(1, math.ceil(b)) for b in bins]
    height, width = x.shape[2:]

    def at(down: float, across: float) -> Tensor:
        if down < -1 or down > height or across < -1 or across > width:
            return torch.zeros(x.shape[1])
        down, across = min(max(down, 0), height - 1), min(max(across, 0), width - 1)
        top, left = math.floor(down), math.floor(across)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        p, q, plane = down - top, across - left, x[int(image)]
        upper = (1 - q) * plane[:, top, left] + q * plane[:, top, right]
        return (1 - p) * upper + p * ((1 - q) * plane[:, bottom, left] + q * plane[:, bottom, right])

    out = torch.zeros(x.shape[1], side, side)
    for i in range(side):
        for j in range(side):
            points = [
                at(y0 + (i + (a + 0.5) / counts[0]) * bins[0], x0 + (j + (b + 0.5) / counts[1]) * bins[1])
                for a in range(counts[0]) for b in range(counts[1])
            ]  # fmt: skip
            out[:, i, j] = torch.stack(points).mean(0)
    return out


@pytest.mark.parametrize(("samples", "aligned"), [(2, False), (2, True), (0, False), (-1, True)])
def test_roi_align_is_the_definition(samples: int, aligned: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 7)
    rois = torch.tensor([[1, 0, 0, 24, 20], [0, 3, 5, 11, 22], [1, 10, 2, 10.5, 3], [0, -9, -8, 40, 4]])
    found = regions.roi_align(x, rois, 0.25, 2, 2, samples, aligned)
    for one, roi in zip(found, rois.tolist(), strict=True):
        assert torch.allclose(one, aligned_by_hand(x, roi, 0.25, 2, samples, aligned), atol=1e-5)
    assert regions.roi_align(x, rois[:0], 0.25, 2, 2, samples, aligned).shape == (0, 3, 2, 2)


@needs_torchvision
def test_roi_align_has_a_gradient() -> None:
    """Also as torchvision's operator, where that is ours."""
    vision.torchvision()
    from torchvision.ops import roi_align

    torch.manual_seed(0)
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[1.0, 0, 0, 9, 7], [0, 1, 2, 6, 7], [1, 3, 1, 8, 8]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: roi_align(x, rois, 2, 0.5, 2), (x,))
    (none,) = torch.autograd.grad(roi_align(x, rois[:0], 2, 0.5, 2).sum(), x)
    assert not none.any()


FIRST = """
try:
    import torchvision
except RuntimeError as error:
    assert str(error) == "operator torchvision::nms does not exist"
"""
NETWORKS = """
import secateurs as sc, torch
from secateurs.zoo import vision
sc.build("timm:resnet18"), sc.build("torchvision:resnet18")
import timm, torchvision
assert torchvision is vision.torchvision() and timm is vision.timm()
boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [8, 8, 9, 9]])
print(torchvision.ops.nms(boxes, torch.tensor([0.1, 0.9, 0.5]), 0.5).tolist(), torchvision.__file__)
"""


def in_a_fresh_process(code: str, *path: Path) -> str:
    """What it prints. An aborted process is a failure, as is any other with a status."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, *sys.path]))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_torchvision
@pytest.mark.parametrize(
    ("extension", "first"),
    [("installed", ""), ("installed", FIRST), ("absent", ""), ("junk", FIRST)],
    ids=["installed", "installed-imported-before", "absent", "junk-imported-before"],
)
def test_networks_in_a_fresh_process(extension: str, first: str, tmp_path: Path) -> None:
    """With torchvision's operators as they are installed, and where they cannot be loaded."""
    if extension == "installed":
        assert in_a_fresh_process(first + NETWORKS).startswith("[1, 2]")
        return
    installed = Path(str(importlib.util.find_spec("torchvision").origin)).parent  # type: ignore[union-attr]
    (tmp_path / "torchvision").mkdir()
    for file in installed.iterdir():
        if not file.name.startswith("_C"):
            (tmp_path / "torchvision" / file.name).symlink_to(file)
        elif extension == "junk":
            (tmp_path / "torchvision" / file.name).write_text("no library")
    out = in_a_fresh_process(first + NETWORKS, tmp_path)
    assert out.startswith("[1, 2]")
    assert str(tmp_path) in out


@needs_torchvision
def test_operators_that_somebody_else_declared() -> None:
    """The extension is not loaded on top of them: that would end the process."""
    declared = "import torch; own = torch.library.Library('torchvision', 'FRAGMENT')\n"
    declared += "own.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
    in_a_fresh_process(declared + "import secateurs as sc; sc.build('torchvision:resnet18')")


EXTENSION = """
import torch
library = torch.library.Library("torchvision", "FRAGMENT")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # raises where it is declared already
"""


@pytest.mark.parametrize("name", ["_C_stable", "anything"])
def test_what_torchvision_declares_itself_is_left_to_it(name: str, tmp_path: Path) -> None:
    """Whatever the file is called that its operators are in."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(f"from torchvision import {name}")
    (tmp_path / "torchvision" / f"{name}.py").write_text(EXTENSION)
    code = "from secateurs.zoo import vision; print(vision.torchvision().__file__)"
    assert str(tmp_path) in in_a_fresh_process(code, tmp_path)


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_package_that_cannot_be_imported(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("Compiled with different CUDA major versions.\nReinstall.")

    if package == "timm":
        monkeypatch.setattr(vision, "torchvision", lambda: None)
    monkeypatch.setattr(vision.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(vision, "_imported", fail)
    monkeypatch.delitem(sys.modules, package, raising=False)
    with pytest.raises(SpecError, match=rf"^{package} .* different CUDA major versions\. .*`secateurs env`"):
        getattr(vision, package).__wrapped__()


@needs_torchvision
def test_detection_runs() -> None:
    model = build("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=4, min_size=64, max_size=64).eval()
    with torch.no_grad():
        (found,) = model(torch.rand(1, 3, 64, 64))
    assert found["boxes"].shape[1:] == (4,)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision.importlib.util, "find_spec", lambda name: None)
    for name in ("torchvision", "timm"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for door in (vision.torchvision, vision.timm):
        with pytest.raises(SpecError, match=r"pip install 'secateurs\[vision\]'"):
            door.__wrapped__()
