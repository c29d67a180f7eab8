"""Ultralytics' own trainer trains the pruned network, not one that it builds from the YAML file."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

import secateurs as sc

try:
    from secateurs.integrations.ultralytics import align, trainer
except sc.ConfigError as error:
    pytest.skip(str(error), allow_module_level=True)

import ultralytics
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER

pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "prune_yolo.py"
X = torch.zeros(1, 3, 64, 64)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runpy.run_path(str(EXAMPLE))["dataset"](tmp_path_factory.mktemp("shapes"), images=8, size=64)


@pytest.fixture
def options(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(LOGGER, "level", 40)
    return {
        "data": str(data), "imgsz": 64, "epochs": 1, "batch": 8, "project": str(tmp_path), "device": "cpu", "amp": False,
        "plots": False, "workers": 0, "exist_ok": True, "optimizer": "SGD",
    }  # fmt: skip


def pruned(classes: int = 3) -> Any:
    torch.manual_seed(0)
    yolo = ultralytics.YOLO("yolov8n.yaml")
    yolo.model = DetectionModel("yolov8n.yaml", nc=classes, verbose=False)
    yolo.model = sc.prune(yolo.model, X, "l1", sc.Budget(macs=0.5)).model
    return yolo


def test_the_pruned_network_is_trained(options: dict[str, Any], tmp_path: Path) -> None:
    yolo = pruned()
    small, before = yolo.model, {k: v.clone() for k, v in yolo.model.state_dict().items()}
    yolo.train(trainer=trainer(yolo), **options)  # built from YAML, never trained
    assert sc.count(yolo.model, X) == sc.count(small, X)
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())  # a copy was trained
    moved = [k for k, v in yolo.model.state_dict().items() if not torch.equal(v, before[k])]
    assert any(k.endswith("conv.weight") for k in moved)

    yolo.train(trainer=trainer(yolo), **options)  # from the checkpoint now
    again = ultralytics.YOLO(tmp_path / "train" / "weights" / "best.pt")
    assert sc.count(again.model, X) == sc.count(yolo.model, X) == sc.count(small, X)


def test_training_is_resumed_with_the_network_of_the_checkpoint(options: dict[str, Any], tmp_path: Path) -> None:
    yolo = pruned()
    small = sc.count(yolo.model, X)
    options["epochs"] = 2
    yolo.add_callback("on_model_save", stop)
    with pytest.raises(KeyboardInterrupt):
        yolo.train(trainer=trainer(yolo), **options)
    again = ultralytics.YOLO(tmp_path / "train" / "weights" / "last.pt")
    started = []
    again.add_callback("on_train_start", lambda run: started.append((run.start_epoch, sc.count(run.model, X))))
    again.train(trainer=trainer(again), resume=True)
    assert started == [(1, small)]
    assert sc.count(again.model, X) == small


def stop(run: Any) -> None:
    raise KeyboardInterrupt


def test_other_classes_are_refused(options: dict[str, Any]) -> None:
    yolo = pruned(classes=5)
    with pytest.raises(sc.ConfigError, match=r"has 5 classes, and the data has 3\. Train the whole network"):
        yolo.train(trainer=trainer(yolo), **options)


def test_other_weights_are_refused(options: dict[str, Any]) -> None:
    yolo = pruned()
    with pytest.raises(sc.ConfigError, match="pretrained=False asks for other weights"):
        yolo.train(trainer=trainer(yolo), pretrained=False, **options)


def test_exports_split_where_inference_does() -> None:
    network = align(pruned().model).eval()
    blocks = [m for m in network.modules() if hasattr(m, "forward_split")]
    assert len({b.c for b in blocks}) > 2
    with torch.no_grad():
        due = network(X)[0]
        for block in blocks:
            block.forward = block.forward_split  # as the exporter does
        assert torch.equal(network(X)[0], due)


def test_only_networks_of_ultralytics() -> None:
    with pytest.raises(sc.ConfigError, match="is not a network of Ultralytics"):
        trainer(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
