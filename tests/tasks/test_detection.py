"""Detection: from annotations to figures."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs import cutting
from secateurs.artifact.provenance import source_of
from secateurs.cli import main
from secateurs.data.masks import IGNORED
from secateurs.errors import ConfigError, DataError, SpecError
from secateurs.plans import trace
from secateurs.recovery.calibrate import _apart
from secateurs.runs import redesign
from secateurs.tasks import Detection, Reading
from secateurs.tasks.purpose import Purpose
from secateurs.widening import grow
from secateurs.zoo.vision import torchvision
from tests.tasks import drawn
from tests.tasks.detectors import faster_rcnn, shapes

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is absent", allow_module_level=True)
torchvision()
pytest.importorskip("torchmetrics")
pytest.importorskip("faster_coco_eval")

READING = Reading(batch_size=4, normalize="none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes(tmp_path_factory.mktemp("shapes"))


def test_batches_are_lists_that_a_resumed_epoch_repeats(folder: Path) -> None:
    data = Detection().load(f"coco:{folder}", READING)
    assert data.classes == ("disk", "square", "triangle")
    assert data.preprocess is not None
    assert (data.preprocess.size, data.preprocess.mean) == (None, (0.0, 0.0, 0.0))
    assert len(data.train) == 2
    assert len(data.val) == 1
    first = list(data.train)
    for images, targets in first:
        assert [image.shape[0] for image in images] == [3] * 4
        assert all(image.min() >= 0 and image.max() <= 1 for image in images)
        assert all(set(target) == {"boxes", "labels"} for target in targets)
    assert len({image.shape for images, _ in first for image in images}) > 1
    again = list(data.train.iter_from(1))
    for one, other in zip(first[1][0], again[0][0], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(first[1][1], again[0][1], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    data.train.set_epoch(1)
    other = next(iter(data.train))[0][0]
    assert other.shape != first[0][0][0].shape or not torch.equal(other, first[0][0][0])


def marked() -> tuple[Tensor, dict[str, Tensor]]:
    """A gray image whose objects are white, exactly their boxes."""
    image = torch.full((3, 60, 80), 90, dtype=torch.uint8)
    boxes = torch.tensor([[4.0, 6, 24, 26], [40, 30, 70, 50]])
    for x0, y0, x1, y1 in boxes.int().tolist():
        image[:, y0:y1, x0:x1] = 255
    return image, {"boxes": boxes, "labels": torch.tensor([1, 2]), "area": torch.tensor([400.0, 600]),
                   "iscrowd": torch.zeros(2, dtype=torch.long)}  # fmt: skip


@pytest.mark.parametrize("side", [None, 30, 90])
def test_boxes_follow_the_image(side: int | None) -> None:
    from secateurs.tasks.boxes import Boxed

    transforms = Boxed(side, flip=True, photometric=False, jitter=1.6)
    shown = 0
    for seed in range(20):
        torch.manual_seed(seed)
        image, target = transforms.train(*marked())
        assert type(image) is type(target["boxes"]) is Tensor
        height, width = image.shape[-2:]
        assert min(height, width) == (side or 60)
        white = image[0] > 180
        mask = torch.zeros_like(white)
        for x0, y0, x1, y1 in target["boxes"].round().int().tolist():
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
            mask[y0:y1, x0:x1] = True
        if len(target["boxes"]) == 2:
            shown += 1
            assert (mask & white).sum() > 0.75 * (mask | white).sum()  # edges are blurred
    assert shown > 10


def test_whole_images_keep_what_evaluation_reads() -> None:
    from secateurs.tasks.boxes import Boxed

    image, target = Boxed(30, True, True, 2.0).whole(*marked())
    assert image.shape == (3, 30, 40)
    assert torch.allclose(target["boxes"], marked()[1]["boxes"] / 2)
    assert target["area"].tolist() == [100, 150]
    assert target["iscrowd"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("spec", "options", "expected"),
    [
        ("torchvision:fasterrcnn_resnet50_fpn", {"min_size": 320}, {"num_classes": 4, "min_size": 320}),
        ("torchvision:fcos_resnet50_fpn", {"max_size": 400}, {"num_classes": 4, "max_size": 400}),
        ("torchvision:ssdlite320_mobilenet_v3_large", {}, {"num_classes": 4}),
        ("python:mine:detector", {}, {"num_classes": 4}),
    ],
)
def test_options_of_constructors(spec: str, options: dict[str, int], expected: dict[str, int]) -> None:
    assert Detection(**options).options(spec, 3, None) == expected


@pytest.mark.parametrize(
    "spec", ["torchvision:ssdlite320_mobilenet_v3_large", "python:mine:detector", "torchvision:resnet18"]
)
def test_sizes_are_for_those_that_resize(spec: str) -> None:
    with pytest.raises(
        ConfigError,
        match=r"Detection\(min_size=320\) is for torchvision's detectors that resize images, and .* is none",
    ):
        Detection(min_size=320).options(spec, 3, None)


def test_what_is_no_detector(folder: Path) -> None:
    task = Detection()
    with pytest.raises(DataError, match="returns a Tensor, and a detector must return a list of dicts of boxes"):
        task.check(torch.zeros(1, 4), None, 3, "net", ())
    found = [{"boxes": torch.zeros(1, 4), "labels": torch.tensor([5]), "scores": torch.ones(1)}]
    with pytest.raises(DataError, match="net found a class 5, and the data has 3 classes: pass num_classes"):
        task.check(found, None, 3, "net", ("pass num_classes.",))
    with pytest.raises(SpecError, match="not valid data for detection"):
        task.load(f"folder:{folder}", READING)


@pytest.mark.parametrize(("spec", "task", "message"), [
    ("zoo:small_cnn", "detection", r"takes a list of images, and this network a tensor.*did you mean --task classification\?"),
    ("python:tests.tasks.drawn:Net", "detection", r"did you mean --task segmentation\?"),
    ("python:tests.tasks.detectors:faster_rcnn", "segmentation", r"did you mean --task detection\?"),
    ("zoo:small_cnn", "segmentation", r"did you mean --task classification\?"),
])  # fmt: skip
def test_networks_of_another_task_are_told_apart(
    spec: str, task: str, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"coco:{folder}" if task == "detection" else f"folder:{drawn.folder(tmp_path / 'masks')}"
    args = [
        "prune",
        spec,
        "--task",
        task,
        "--data",
        data,
        "--method",
        "l2",
        "--macs",
        "0.7",
        "--out",
        str(tmp_path / "r"),
    ]
    assert main(args) in (1, 2)
    assert re.search(message, capsys.readouterr().err)


def test_average_precision_of_three_figures() -> None:
    metric = Detection().metrics(None, IGNORED)["mAP"]
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    truth = {"boxes": boxes, "labels": torch.tensor([1, 2]), "iscrowd": torch.zeros(2, dtype=torch.long),
             "area": torch.tensor([100.0, 400])}  # fmt: skip
    metric.update([{"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": torch.ones(2)}], [truth])
    assert {name: float(value) for name, value in metric.compute().items()} == {"map": 1, "map_50": 1, "map_75": 1}


def test_targets_of_a_trace(folder: Path) -> None:
    """What torchvision's detectors do in training is followed: the step's own call has the targets."""
    data = Detection().load(f"coco:{folder}", READING)
    network, purpose = faster_rcnn(), Purpose.of("detection")
    (images,) = purpose.example(network, data)
    assert len(images) == 1
    (targets,) = purpose.example_targets(network, data)
    assert len(targets) == 1
    assert {"boxes", "labels"} <= set(targets[0])
    graph = sc.trace(network, (images,), example_targets=(targets,))
    assert not graph.warnings
    assert sum(group.prunable for group in graph.groups) >= 4
    assert Purpose().example_targets(nn.Conv2d(3, 4, 1), sc.Data([(torch.zeros(2, 3, 4, 4), torch.zeros(2))])) is None


@pytest.mark.parametrize("kind", ["rounds", "redesign"])
def test_every_trace_of_a_run_has_the_targets(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    seen: list[Any] = []

    def told(*args: Any, example_targets: Any = None, **options: Any) -> Any:
        seen.append(example_targets)
        return trace(*args, example_targets=example_targets, **options)

    for module in (cutting, grow, redesign):
        monkeypatch.setattr(module, "trace", told)
    model, data = "python:tests.tasks.detectors:faster_rcnn", sc.DataSpec(f"coco:{folder}", batch_size=4)
    if kind == "rounds":
        given: dict[str, Any] = {"pretrain_epochs": 0, "recover": None, "budget": sc.Budget(macs=0.7), "rounds": 2}
        sc.PruneRun(model, data, tmp_path / "r", method="l2", task="detection", device="cpu", **given).start()
        assert len(seen) == 1  # of the second round
    else:
        sc.RedesignRun(
            model, data, tmp_path / "r", method="l2", task="detection", device="cpu", widen=1.25, exclude=["rpn.*"]
        ).check()
        assert len(seen) == 3
    assert all({"boxes", "labels"} <= set(targets[0]) for (targets,) in seen)


def test_networks_of_the_users_own_in_python(folder: Path) -> None:
    task = Detection(jitter=1)
    data = task.load(f"coco:{folder}", READING)
    image = next(iter(data.val))[0][0]
    result = sc.prune(
        faster_rcnn(), ([image],), sc.NPN(epochs=1), sc.Budget(macs=0.7), data, sc.Recover(epochs=1, lr=0.01),
        progress="silent", task="detection",
    )  # fmt: skip
    # The trace had targets, from the data: only NPN has something to say, of its one step.
    assert all(line.startswith("npn: after its search of 1 step") for line in result.warnings)
    assert result.card()["task"]["name"] == "detection"
    assert result.error < 1e-5
    assert result.after.macs <= 0.7 * result.before.macs
    assert set(result.after.metrics) == {"mAP.map", "mAP.map_50", "mAP.map_75"}
    losses = [record["loss"] for record in result.history if record.get("phase") == "recover" or "loss" in record]
    assert all(torch.isfinite(torch.tensor(losses)))


def test_a_source_that_a_forward_leaves_alone() -> None:
    """torchvision's RoI pooling keeps scales that it found in its first run: nobody edited the network."""
    model = sc.build("python:tests.tasks.detectors:faster_rcnn", num_classes=4)
    given = source_of(model)
    assert given is not None
    assert model.roi_heads.box_roi_pool.scales is None
    model.eval()([torch.rand(3, 48, 48)])
    assert model.roi_heads.box_roi_pool.scales is not None
    assert source_of(model) == given
    model.roi_heads.score_thresh = 0.5
    assert source_of(model) is None


def test_calibration_where_the_number_of_boxes_differs() -> None:
    two, three = torch.ones(2, 4), torch.ones(3, 4)
    assert _apart(two, three, 2).sum() == _apart(three, two, 2).sum() == 4
    assert _apart(two, two, 2).sum() == 0
    assert _apart(torch.tensor(1.0), torch.tensor(3.0), 2).sum() == 4
