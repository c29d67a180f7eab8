"""Exports of detectors: what can be exported, and that it finds the same boxes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import secateurs as sc
from secateurs.deploy import detectors
from secateurs.deploy.detectors import matched
from secateurs.deploy.formats import FORMATS

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is absent", allow_module_level=True)

from secateurs.zoo.vision import operators
from tests.tasks.detectors import faster_rcnn

IMAGE = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("suffix", [s for s in FORMATS if s != ".onnx" and FORMATS[s].missing is None])
def test_formats_that_cannot_hold_a_detector(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(
        sc.ConfigError, match=r"FasterRCNN takes a list of images .*Export it to \.onnx, or its backbone"
    ):
        sc.export(faster_rcnn().eval(), tmp_path / f"x{suffix}", ([IMAGE],))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(FORMATS[".onnx"].missing is not None, reason="ONNX is not installed")
def test_without_torchvisions_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "operators", lambda: False)
    with pytest.raises(
        sc.ConfigError, match=r"the C\+\+ operators of this torchvision do not load with torch .*backbone"
    ):
        sc.export(faster_rcnn().eval(), tmp_path / "x.onnx", ([IMAGE],))


@pytest.mark.skipif(
    FORMATS[".onnx"].missing is not None or not operators(), reason="ONNX, or torchvision's operators, are not there"
)
@pytest.mark.parametrize("count", [1, 2])
def test_a_detector_as_onnx(count: int, tmp_path: Path) -> None:
    images = [IMAGE, IMAGE[:, :40].flip(2)][:count]
    small = sc.prune(faster_rcnn(), (images,), "l2", sc.Budget(macs=0.7)).model.eval()
    done = sc.export(small, tmp_path / "x.onnx", (images,), metadata={"classes": ["a"]})
    assert done.error < 1e-4
    assert not done.dynamic_batch
    file = FORMATS[".onnx"].open(done.path)
    assert file.metadata() == {"classes": ["a"]}
    other = [torch.nn.functional.interpolate(x[None], scale_factor=1.5)[0] for x in images]
    with torch.no_grad():
        due = [x for one in small(other) for x in one.values()]
    assert [x.shape for x in file.run((other,))] == [x.shape for x in due]


def test_boxes_in_another_order() -> None:
    boxes = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    labels, scores = torch.tensor([1, 2, 1, 1, 2]), torch.tensor([0.9, 0.8, 0.8, 0.8, 0.1])
    order = torch.tensor([0, 2, 3, 1, 4])
    due, found = [boxes, labels, scores], [x[order] for x in (boxes, labels, scores)]
    assert all(torch.equal(a, b) for a, b in zip(matched(found, due, 1), due, strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(matched([*found, *due], [*due, *found], 2), [*due, *found], strict=True)
    )
    wrong = [boxes.roll(1, 0), labels, scores]
    assert not torch.equal(matched(wrong, due, 1)[0], boxes)  # boxes with another's score are not the same
    none = [torch.zeros(0, 4), torch.zeros(0), torch.zeros(0)]
    assert [x.shape for x in matched(none, none, 1)] == [x.shape for x in none]
