"""Segmentation as a task: networks, losses, figures, runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import secateurs as sc
from secateurs.cli import main
from secateurs.data.masks import IGNORED
from secateurs.deploy.formats import FORMATS
from secateurs.errors import ConfigError, DataError
from secateurs.recovery.distil import counting, soft_loss
from secateurs.tasks import Segmentation, task
from secateurs.tasks.pictures import figure
from secateurs.tasks.purpose import Purpose
from secateurs.tasks.segmentation import DiceCrossEntropy, dice_loss
from secateurs.training import CrossEntropy, evaluate
from secateurs.training.losses import heads
from tests.tasks.drawn import Small, folder, network

SPEC = f"python:{Small.__module__}:Net"
SETTINGS: dict[str, Any] = {"task": "segmentation", "method": "l2", "budget": sc.Budget(macs=0.6), "device": "cpu"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("set"))


def data(root: Path, **more: Any) -> sc.DataSpec:
    return sc.DataSpec(f"folder:{root}", normalize="0.5/0.25", batch_size=4, **more)


def test_a_run_from_a_folder(root: Path, tmp_path: Path) -> None:
    """Trained first, pruned, recovered with the original as a teacher; measured by mIoU; resumed when finished."""
    recover = [sc.Reconstruct(images=8), sc.Recover(epochs=1)]
    lines: list[str] = []
    run = sc.PruneRun(
        SPEC, data(root), tmp_path / "r", recover=recover, pretrain_epochs=3, log=lines.append, **SETTINGS
    )
    result = run.start()
    for figures in (result.before, result.cut, result.calibrated, result.after):
        assert set(figures.metrics) == {"mIoU", "pixel_accuracy"}
        assert figures.top1 is None
        assert figures.loss is not None
    assert result.before.loss is not None
    assert result.before.loss < 0.9
    assert result.after.macs <= 0.6 * result.before.macs
    trained = result.history[-1]
    assert trained["share"] == 0.9
    assert "val_mIoU" in trained
    card = json.loads((tmp_path / "r" / "card.json").read_text())
    assert card["task"] == {"name": "segmentation", "dice": 0.0, "scale": 0.25, "flip": True}
    assert card["after"]["metrics"] == result.after.metrics
    assert card["signature"]["preprocess"]["mean"] == [0.5, 0.5, 0.5]
    assert (tmp_path / "r" / "predictions.png").read_bytes()[:4] == b"\x89PNG"
    again = run.start(resume=True)
    assert again.after == result.after
    assert again.card()["task"] == card["task"]
    assert sc.card(again.save(tmp_path / "copy")).task == sc.card(tmp_path / "r").task
    other = {**SETTINGS, "task": Segmentation(dice=1)}
    with pytest.raises(ConfigError, match=r"another run: it differs in task.dice \(0 then, 1 now\)"):
        sc.PruneRun(SPEC, data(root), tmp_path / "r", recover=recover, pretrain_epochs=3, **other).start(resume=True)


@pytest.mark.parametrize("side", [None, 20])
def test_how_images_become_inputs(root: Path, side: int | None) -> None:
    """As the loader does it, but for padding."""
    found = data(root, image_size=side).load(0, torch.device("cpu"), Segmentation())
    how = found.preprocess
    assert how is not None
    assert (how.channels, how.mean, how.std) == ("RGB", (0.5,) * 3, (0.25,) * 3)
    pairs = found.val.source
    file = min((root / "val" / "images").iterdir())
    index = next(i for i in range(len(pairs)) if pairs.pair(i)[0][0].endswith(file.name))
    image = found.val.transforms.whole(*pairs.read(index))[0]
    x = how(file)
    assert x.shape[1:] == image.shape
    torch.testing.assert_close(x[0], (image / 255 - 0.5) / 0.25, atol=0.02, rtol=0)


def test_a_trained_network_finds_the_shapes(root: Path) -> None:
    """mIoU is that of the pixels that count, over all images."""
    found = data(root).load(0, torch.device("cpu"), Segmentation())
    net = network()
    purpose = Purpose(Segmentation(), named=True)
    objective = purpose.objective(net, purpose.example(net, found))
    measured = evaluate(net, found.val, objective=objective)
    both, one = torch.zeros(3), torch.zeros(3)
    right = count = 0
    with torch.no_grad():
        for x, y in found.batches("val"):
            guess, counts = net.eval()(x).argmax(1), y != IGNORED
            right, count = right + int((guess == y)[counts].sum()), count + int(counts.sum())
            for kind in range(3):
                both[kind] += ((guess == kind) & (y == kind) & counts).sum()
                one[kind] += (((guess == kind) | (y == kind)) & counts).sum()
    assert measured.metrics["mIoU"] == pytest.approx(float((both / one).mean()), rel=1e-5)
    assert measured.metrics["pixel_accuracy"] == pytest.approx(right / count, rel=1e-5)


@pytest.mark.parametrize("method", ["aofp", "npn", "pff", "onestep"])
def test_methods_that_train(root: Path, tmp_path: Path, method: str) -> None:
    from secateurs.methods import resolve

    given = {**SETTINGS, "method": resolve(method, epochs=1)}
    result = sc.PruneRun(network(), data(root), tmp_path / "r", recover=sc.Recover(epochs=1), **given).start()
    assert result.after.macs <= 0.6 * result.before.macs
    assert result.after.metrics["mIoU"] >= 0


def test_weights_with_an_auxiliary_head() -> None:
    spec = "torchvision:fcn_resnet50"
    assert Segmentation().options(spec, 3, {"aux_classifier.0.weight": torch.ones(1)}) == {
        "num_classes": 3,
        "aux_loss": True,
    }
    assert Segmentation().options(spec, 3, {"classifier.0.weight": torch.ones(1)}) == {"num_classes": 3}
    assert Segmentation().options("python:a:b", None, None) == {}


def test_outputs_of_torchvisions_networks() -> None:
    main_, aux = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    y = torch.randint(0, 3, (2, 4, 4))
    assert heads({"out": main_, "aux": aux}) == (main_, [aux])
    expected = F.cross_entropy(main_, y) + 0.3 * F.cross_entropy(aux, y)
    assert CrossEntropy()({"out": main_, "aux": aux}, y) == expected


def test_a_batch_of_pixels_that_do_not_count() -> None:
    """A random crop may show nothing else: the loss and its gradient are zero, not NaN."""
    for loss in (CrossEntropy(), CrossEntropy(0.1), DiceCrossEntropy(1.0)):
        logits = torch.randn(2, 3, 4, 4, requires_grad=True)
        lost = loss(logits, torch.full((2, 4, 4), IGNORED))
        lost.backward()
        assert logits.grad is not None
        if isinstance(loss, CrossEntropy):
            assert not lost.detach()
        assert bool(logits.grad.eq(0).all())


def test_dice() -> None:
    logits = torch.tensor([[9.0, -9, 9, 9], [-9, 9, -9, -9]])[None, :, None]  # (1, 2, 1, 4)
    y = torch.tensor([[[0, 1, 1, IGNORED]]])
    share = logits.softmax(1)[0, :, 0, :3]
    hot = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    each = [(2 * (share[k] * hot[k]).sum() + 1) / (share[k].sum() + hot[k].sum() + 1) for k in (0, 1)]
    assert dice_loss(logits, y) == pytest.approx(1 - float(sum(each)) / 2, abs=1e-6)
    only = dice_loss(logits, torch.zeros(1, 1, 4, dtype=torch.long))  # class 1 does not occur
    assert float(only) == pytest.approx(
        1 - float((2 * logits.softmax(1)[0, 0].sum() + 1) / (logits.softmax(1)[0, 0].sum() + 5))
    )
    assert float(DiceCrossEntropy(2)(logits, y)) == pytest.approx(
        float(F.cross_entropy(logits, y) + 2 * dice_loss(logits, y)), rel=1e-6
    )


def test_the_teacher_of_pixels() -> None:
    """The mean over pixels, so that its scale is that of cross-entropy for any image size; pixels that are ignored are not
    taught, images without a label are."""
    teacher, student = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    p, q = (z.movedim(1, -1).reshape(-1, 3) for z in (teacher, student))
    every = soft_loss(p, q, 3)
    assert torch.allclose(soft_loss(teacher, student, 3), every)
    tiled = [z.repeat(1, 1, 3, 3) for z in (teacher, student)]
    assert torch.allclose(soft_loss(*tiled, 3), every)
    y = torch.randint(0, 3, (2, 4, 5))
    y[0, :2] = IGNORED
    counts = counting(y, student)
    assert counts is not None
    kept = (y != IGNORED).reshape(-1)
    assert torch.allclose(soft_loss(teacher, student, 3, counts), soft_loss(p[kept], q[kept], 3))
    y[0] = IGNORED  # no label at all
    assert counting(y, student) is not None
    assert bool(counting(y, student).all())  # type: ignore[union-attr]
    assert counting(torch.tensor([0, IGNORED]), student[..., 0, 0]) is None  # classes of images
    assert counting(None, student) is None


def test_padding_does_not_reach_the_teacher() -> None:
    """Two batches that differ in what is ignored only, train to the same network."""
    net, results = network(), []
    x, y = torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4, 8, 8))
    y[:, :, 6:] = IGNORED

    class Told(nn.Module):
        """What the head gives at ignored pixels is of no account."""

        def __init__(self, noise: float) -> None:
            super().__init__()
            self.net, self.noise = network(), noise

        def forward(self, x: Tensor) -> Tensor:
            out = self.net(x)
            return torch.cat([out[..., :6], out[..., 6:] * self.noise], -1)

    for noise in (1.0, 0.0):
        model = Told(noise)
        model.net.load_state_dict(net.state_dict())
        recover = sc.Recover(epochs=2, lr=0.05, share=0.9)
        result = sc.prune(model, x[:1], "l2", sc.Budget(macs=0.6), [(x, y)], recover, progress="silent", device="cpu")
        results.append(result.model.state_dict())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*(r.values() for r in results), strict=True))


@pytest.mark.parametrize(
    ("spec", "more", "message"),
    [
        (f"python:{Small.__module__}:Small", {}, r"returns \(1, 3, 16, 16\).*Segmentation needs logits of shape"),
        ("zoo:small_cnn", {}, r"returns \(1, 3\) float32 for images"),
        (SPEC, {"num_classes": 2}, "12 of 12 masks have a class index above 1"),
    ],
)
def test_networks_that_do_not_fit(root: Path, tmp_path: Path, spec: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sc.PruneRun(spec, data(root), tmp_path / "r", pretrain_epochs=1, **SETTINGS, **more).start()
    assert not (tmp_path / "r").exists()


def test_fewer_outputs_than_classes(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 2 outputs and the data 3 classes"):
        sc.PruneRun(network(2), data(root), tmp_path / "r", **SETTINGS).check()
    sc.PruneRun(network(5), data(root), tmp_path / "r", **SETTINGS).check()  # more than occur in the masks


def test_one_channel(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"channels=1 reads them with one channel") as caught:
        sc.PruneRun(network(inside=1), data(root), tmp_path / "r", **SETTINGS).check()
    assert "image_size" not in str(caught.value)
    sc.PruneRun(network(inside=1), data(root, channels=1), tmp_path / "r", **SETTINGS).start()
    card = json.loads((tmp_path / "r" / "card.json").read_text())
    assert card["data"]["channels"] == 1


def test_without_torchmetrics(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(task, "import_module", missing)
    with pytest.raises(ConfigError, match=r"segmentation need torchmetrics.*secateurs\[metrics\]"):
        sc.PruneRun(network(), data(root), tmp_path / "r", **SETTINGS).check()


def test_without_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="segmentation needs data"):
        sc.PruneRun(network(), sc.DataSpec(), tmp_path / "r", **SETTINGS).check()


def test_on_the_command_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = ["--task", "segmentation", "--data", f"folder:{root}", "--normalize", "none", "--batch-size", "4"]
    out = str(tmp_path / "r")
    args = ["prune", SPEC, *how, "--task-set", "dice=1", "--method", "l2", "--macs", "0.6", "--device", "cpu"]
    assert main([*args, "--pretrain-epochs", "1", "--recover-epochs", "1", "--out", out]) == 0
    table = capsys.readouterr().out
    assert "mIoU" in table
    assert "top-1" not in table
    assert main(["evaluate", out, "--trust-code", "--device", "cpu"]) == 0  # the card knows the task and the data
    shown = capsys.readouterr().out
    now, card = (line.split()[-3:] for line in shown.splitlines() if line.startswith(("measured", "on the card")))
    assert now == card
    assert main(["evaluate", out, "--trust-code", "--json"]) == 0
    assert "mIoU" in json.loads(capsys.readouterr().out)["measured"]["metrics"]
    assert main(["inspect", out, "--trust-code", "--input", "3,32,32"]) == 0
    assert main([*args, "--task-set", "dice=2", "--out", out]) == 2
    assert "--task-set dice=1 and --task-set dice=2 both set dice" in capsys.readouterr().err
    assert main(["prune", SPEC, *how, "--task-set", "dice=-1", "--macs", "0.6", "--out", out]) == 2
    assert "--task-set dice=-1: must be greater" in capsys.readouterr().err
    assert main(["prune", SPEC, "--task", "segment", "--macs", "0.6", "--out", out]) == 2
    assert "There is no task 'segment'. Did you mean segmentation?" in capsys.readouterr().err


def test_redesign(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = sc.RedesignTraining(epochs=0.5, recover_epochs=0.5)
    found = sc.RedesignRun(
        SPEC, data(root), tmp_path / "r", method="l2", task="segmentation", train=train, device="cpu"
    ).start()
    assert all(set(row.metrics) == {"mIoU", "pixel_accuracy"} for row in found.rows.values())
    card = json.loads((tmp_path / "r" / "pruned" / "card.json").read_text())
    assert card["task"]["name"] == "segmentation"


@pytest.mark.skipif(
    torch.__version__.startswith("2.6.") or FORMATS[".onnx"].missing is not None,
    reason="ONNX is not installed, or PyTorch 2.6",
)
def test_int8_is_measured_as_segmentation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "set", ((32, 32),))
    sc.PruneRun(SPEC, data(root), tmp_path / "r", pretrain_epochs=0, **SETTINGS).start()
    assert main(["export", str(tmp_path / "r"), "--trust-code", "--int8"]) == 0
    shown = capsys.readouterr().out
    assert "mIoU" in shown
    assert "top-1" not in shown


def test_criteria_are_compared_by_iou(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(network().state_dict(), tmp_path / "w.safetensors")
    args = ["compare-criteria", SPEC, "--task", "segmentation", "--weights", str(tmp_path / "w.safetensors"), "--device", "cpu",
            "--data", f"folder:{root}", "--normalize", "none", "--batch-size", "4", "--layer", "middle.0", "--examples", "4",
            "--val-examples", "3", "--criteria", "l1,taylor", "--out", str(tmp_path / "r")]  # fmt: skip
    assert main(args) == 0
    shown = capsys.readouterr().out
    assert "8 channels, mIoU 0." in shown
    curves = json.loads((tmp_path / "r" / "curves.json").read_text())["curves"]
    for curve in curves.values():
        assert curve["figure"] == "mIoU"
        assert curve["top1"] is None
        assert len(curve["metrics"]["mIoU"]) == len(curve["loss"]) == 8
        assert curve["area"] == pytest.approx(sum(curve["metrics"]["mIoU"]) / 8)
    more = [*args, "--resume"]
    more[more.index("l1,taylor")] = "l1,l2"
    assert main(more) == 0
    assert "mIoU" in capsys.readouterr().out
    assert main([*more, "--task-set", "dice=1"]) == 2
    assert "belongs to another comparison: it differs in task" in capsys.readouterr().err


def test_prune_by_the_name_of_the_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    random = torch.Generator().manual_seed(0)
    batches = [(torch.randn(2, 3, 16, 16, generator=random), torch.randint(3, (2, 16, 16), generator=random))]
    how: dict[str, Any] = {"budget": sc.Budget(macs=0.6), "data": sc.Data(batches, batches), "device": "cpu"}
    plain = sc.prune(network(), batches[0][0], "l2", **how)
    assert "only the loss is measured: task='segmentation' measures mIoU" in caplog.text
    assert f"loss {plain.before.loss:.3f} → {plain.after.loss:.3f}" in repr(plain)
    caplog.clear()
    result = sc.prune(network(), batches[0][0], "l2", task="segmentation", **how)
    assert not caplog.text
    assert set(result.before.metrics) == set(result.after.metrics) == {"mIoU", "pixel_accuracy"}
    assert result.after.loss == plain.after.loss
    shown = (result.before.metrics["mIoU"], result.after.metrics["mIoU"])
    assert "mIoU {:.4f} → {:.4f}".format(*shown) in repr(result)
    card = sc.card(result.save(tmp_path / "r"))
    assert card.task is not None
    assert card.task.name == "segmentation"
    dice = sc.prune(network(), batches[0][0], "l2", task=Segmentation(dice=1), metrics={"own": one}, **how)
    assert dice.before.loss is not None
    assert dice.before.loss > (plain.before.loss or 0)
    assert dice.before.metrics == {"own": 1.0}
    assert not sc.prune(network(), batches[0][0], "l2", sc.Budget(macs=0.6), task="segmentation").before.metrics
    with pytest.raises(ConfigError, match=r"There is no task 'segmentatoin'. Did you mean segmentation\?"):
        sc.prune(network(), batches[0][0], "l2", task="segmentatoin", **how)
    with pytest.raises(DataError, match="Segmentation needs logits of shape"):
        sc.prune(Small(), batches[0][0], "l2", task="segmentation", **how)


def one(outputs: Any, targets: Any) -> float:
    return 1.0


def test_predictions_have_a_legend_of_the_classes_that_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_figures = pytest.importorskip("matplotlib.figure")
    legends: list[list[str]] = []
    monkeypatch.setattr(
        drawn_figures.Figure,
        "legend",
        lambda self, handles, **options: legends.append([h.get_label() for h in handles]),
    )
    mask = np.ma.masked_array([[0, 2], [2, 5]], [[False, False], [False, True]])  # 5 does not count
    figure(tmp_path / "p.png", ["image", "mask"], [[np.zeros((2, 2, 3)), mask]], ("ground", "dark", "light"))
    figure(tmp_path / "p.png", ["mask"], [[np.ma.masked_array(np.arange(30).reshape(5, 6), False)]], None)
    figure(tmp_path / "p.png", ["image"], [[np.zeros((2, 2, 3))]])
    assert legends[0] == ["0 ground", "2 light"]
    assert legends[1][:2] == ["class 0", "class 1"]
    assert (len(legends[1]), legends[1][-1]) == (24, "+7 more")
    assert len(legends) == 2
