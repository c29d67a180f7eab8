"""What a newcomer meets first: an error says what was wrong, where, and what to do."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.cli import main
from secateurs.training import Engine, Recipe

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 4
MASKS = torch.randint(0, 4, (6, 8, 8), generator=torch.Generator().manual_seed(0))


def classifier(outputs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs))


def segmenter(outputs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, outputs, 1))


def prune(model: nn.Module, inputs: Tensor = X, targets: Any = Y, **options: Any) -> sc.Result:
    data = sc.Data([(inputs, targets)], [(inputs, targets)])
    return sc.prune(model, X[:1], "l1", sc.Budget(macs=0.7), data=data, calibrate=False, **options)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data4" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "tables").mkdir()
    for name in ("tables/x.parquet", "net.safetensors", "mine.py", "notes.txt"):
        (tmp_path / name).write_text("")
    sc.prune(classifier(), X, "l1", sc.Budget(macs=0.7)).save(tmp_path / "runs" / "one")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestSpecs:
    @pytest.mark.parametrize(
        ("spec", "hint"),
        [
            ("data4", "There is a folder of that name: did you mean folder:data4?"),
            ("./data4", "did you mean folder:./data4?"),
            ("tables", "did you mean hf:tables?"),
            ("tables/x.parquet", "Did you mean hf:tables/x.parquet?"),
            ("train.tar", "Did you mean wds:train.tar?"),
            ("notes.txt", "It is a file, and data is a folder of images, a Parquet file or shards"),
            ("folder:", "Did you mean folder:PATH?"),
        ],
    )
    def test_data(self, folder: Path, spec: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["prune", "zoo:small_cnn", "--data", spec, "--macs", "0.5", "--out", "out"]) != 0
        assert hint in capsys.readouterr().err.replace("\n", " ")

    @pytest.mark.parametrize(
        ("spec", "hint"),
        [
            ("resnet56", "Did you mean zoo:resnet56?"),
            ("net.safetensors", "pass the file as --weights net.safetensors."),
            ("mine.py", "For a network of your own write python:mine:FACTORY"),
            ("mine:make", "Did you mean python:mine:make?"),
            ("data4", "If it is data, it is called folder:data4."),
            ("runs", "It holds an artifact: runs/one."),
            (
                "runs/nope",
                "There is no folder runs/nope: a model is FAMILY:NAME, such as zoo:resnet56, or an artifact's folder.",
            ),
            ("./nope", "There is no folder ./nope"),
            ("nope/net.pt", "pass the file as --weights nope/net.pt."),
        ],
    )
    def test_models(self, folder: Path, spec: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["inspect", spec]) != 0
        assert hint in capsys.readouterr().err.replace("\n", " ")

    def test_a_model_of_another_package(self) -> None:
        if importlib.util.find_spec("timm") is None:
            pytest.skip("timm is not installed")
        with pytest.raises(sc.SpecError, match=r"Did you mean torchvision:resnet50 or timm:resnet50\?"):
            sc.build("resnet50")

    def test_weights(self, folder: Path) -> None:
        with pytest.raises(sc.ArtifactError, match=r"runs/one cannot be read: it is a folder.* pass it as the model"):
            sc.build("zoo:small_cnn", weights="runs/one")
        with pytest.raises(sc.ArtifactError, match=r"data4 cannot be read: it is a folder.* Name a file of weights"):
            sc.build("zoo:small_cnn", weights="data4")

    def test_evaluate_of_a_spec(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["evaluate", "zoo:small_cnn"]) != 0
        assert "a model spec is given as --model" in capsys.readouterr().err
        assert main(["evaluate", "net.safetensors"]) != 0
        assert "it is a file, and an artifact is a folder" in capsys.readouterr().err


class TestArguments:
    @pytest.mark.parametrize(
        ("method", "hint"),
        [
            (
                {"0": 0.5},
                r"to keep a share of single layers pass ratios=.* budget=sc\.Budget",
            ),
            ({"macs": 0.5}, r"pass the budget by name, budget=sc\.Budget"),
            (sc.Budget(macs=0.5), r"pass it by name, budget=Budget\(macs=0\.5"),
            (0.5, r"for a budget pass budget=sc\.Budget\(macs=0\.5\)"),
            (None, "pass a name, one of .*epruner"),
        ],
        ids=str,
    )
    def test_what_is_no_method(self, method: Any, hint: str) -> None:
        with pytest.raises(sc.ConfigError, match=f"is not a method: {hint}"):
            sc.prune(classifier(), X, method)

    def test_what_is_no_budget(self) -> None:
        with pytest.raises(sc.ConfigError, match=r"the shares to keep of single layers are ratios=\{layer: share\}"):
            sc.prune(classifier(), X, "l1", {"0": 0.5})  # type: ignore[arg-type]
        with pytest.raises(sc.ConfigError, match=r"did you mean Budget\(macs=0\.3\)\?"):
            sc.prune(classifier(), X, "l1", {"macs": 0.3})  # type: ignore[arg-type]


def _takers(model: nn.Module, inputs: Any, folder: Path) -> list[Callable[[], Any]]:
    """A call of every function that takes example inputs."""
    plan = sc.trace(model, X).plan({})
    return [
        lambda: sc.trace(model, inputs),
        lambda: sc.count(model, inputs),
        lambda: sc.prune(model, inputs, "l1", sc.Budget(macs=0.5)),
        lambda: sc.verify(model, plan, inputs),
        lambda: sc.bench(model, model, inputs),
        lambda: sc.export(model, folder / "x.pt2", inputs),
    ]


class TestInputs:
    @pytest.mark.parametrize(
        ("inputs", "hint"),
        [
            ((1, 3, 8, 8), r"\(1, 3, 8, 8\) is a shape: pass a tensor, such as torch\.randn\(1, 3, 8, 8\)"),
            (X.numpy(), r"It is a numpy\.ndarray: pass a tensor, for example torch\.from_numpy"),
            ([(X, Y)], "It is a list of pairs: pass the inputs of one batch alone"),
            ((X, Y), "If the second is the targets, pass the inputs alone"),
            (torch.utils.data.DataLoader([X[0]]), r"It is a DataLoader: pass the inputs of one batch"),
            (X[0], r"\(3, 8, 8\) float32 has no batch axis: pass x\[None\]"),
            (["zoo"], "It is a list without a tensor"),
            (X.permute(0, 2, 3, 1), r"expects \(N, 3, H, W\) but gets .*Channels come first: x\.permute\(0, 3, 1, 2\)"),
            (
                X.byte(),
                r"it gets bytes \(uint8\)\. Scale them as in its training, such as by x\.float\(\) / 255",
            ),
            (X.long(), r"it computes in float32\. Convert them as in its training, for example with x\.float\(\)\."),
            (X[:, :1], r"layer '0' \(Conv2d\) expects \(N, 3, H, W\) but gets \(6, 1, 8, 8\)"),
        ],
        ids=lambda x: type(x).__name__,
    )
    def test_that_the_model_does_not_take(self, inputs: Any, hint: str) -> None:
        with pytest.raises(sc.TraceError, match=f"does not run on these example inputs: .*{hint}"):
            sc.trace(classifier(), inputs)

    @pytest.mark.parametrize("inputs", ["cat.jpg", None, 3, Path("cat.jpg"), b"x"])
    def test_what_are_no_inputs(self, inputs: Any, tmp_path: Path) -> None:
        """Every function that takes example inputs says it, and in the same words."""
        for function in _takers(classifier(), inputs, tmp_path):
            with pytest.raises(
                sc.TraceError, match=r"^The example inputs are .*: pass a tensor of the shape that the net"
            ):
                function()

    def test_without_values(self, tmp_path: Path) -> None:
        model, inputs = classifier(), X.to("meta")
        for function in _takers(model, inputs, tmp_path):
            with pytest.raises(
                sc.ConfigError, match=r"^The example inputs are on the meta .* such as torch\.randn\(6, 3, 8, 8\)\."
            ):
                function()
        assert sc.count(model.to("meta"), inputs).macs  # shapes are all that it takes

    @pytest.mark.parametrize("scale", [1.0, 1 / 255, 0.9])
    def test_images_as_files_have_them(self, scale: float, caplog: pytest.LogCaptureFixture) -> None:
        """Said once, and not refused: networks are trained so, too."""
        images = (X.abs() * 100).clamp(0, 255).round() * scale
        with caplog.at_level(logging.WARNING, "secateurs"):
            prune(classifier(), images, recover=sc.Recover(epochs=1), progress=False)
        said = [record.message for record in caplog.records if "values from 0 to 255" in record.message]
        assert len(said) == (scale == 1.0)


class TestTargets:
    @pytest.mark.parametrize("targets", [Y * 0, Y % 2, (Y % 2).float(), (Y % 2).float()[:, None], torch.ones(6, 1)])
    def test_a_network_with_one_logit(self, targets: Tensor) -> None:
        with pytest.raises(sc.DataError, match=r"single output for each image.*is always 0.*binary_cross_entropy"):
            prune(classifier(1), targets=targets)

    @pytest.mark.parametrize("shape", [(6, 8, 8), (6, 1, 8, 8)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool, torch.uint8])
    def test_masks_for_one_class(self, shape: Any, dtype: torch.dtype) -> None:
        """Trained silently before, as a cross-entropy over one class."""
        for masks in ((MASKS > 1).view(shape).to(dtype), torch.ones(shape, dtype=dtype)):
            with pytest.raises(
                sc.DataError, match=r"single output for each position, of shape \(6, 1, 8, 8\).*always 0"
            ):
                prune(segmenter(1), targets=masks)

    def test_it_trains_with_the_loss_that_is_named(self) -> None:
        result = prune(
            segmenter(1), targets=(MASKS > 1).float()[:, None], loss=nn.functional.binary_cross_entropy_with_logits,
            recover=sc.Recover(epochs=1, share=0), progress=False,
        )  # fmt: skip
        assert result.after.loss is not None
        assert result.after.loss > 0.1

    @pytest.mark.parametrize(
        ("targets", "hint"),
        [
            (Y.float(), r"pass class indices as integers, targets\.long\(\)"),
            (Y.float()[:, None], r"pass class indices as integers, of shape \(6,\), targets\.long\(\)"),
            (Y[:, None], r"Use targets\.squeeze\(-1\)"),
            (nn.functional.one_hot(Y, 4), r"For one-hot rows use targets\.argmax\(1\)"),
            ((X[:, 0, 0, :4] > 0).float(), "For several labels for each image .*binary_cross_entropy_with_logits"),
            (X[:, 0, 0, :4] * 9, "For regression and other tasks .*mse_loss"),
            (Y + 1, "has a label 4, .* if labels are counted from 1, subtract 1"),
            (Y + 5, "has a label 8, .* build it for the data's number of classes"),
            (Y - 1, "if -1 marks what is to be ignored, set it to -100"),
        ],
    )
    def test_of_a_classifier(self, targets: Tensor, hint: str) -> None:
        with pytest.raises(sc.DataError, match=f"Batch 0 of train.*{hint}"):
            prune(classifier(), targets=targets)

    @pytest.mark.parametrize(
        ("masks", "hint"),
        [
            (MASKS.float(), r"pass class indices as integers, targets\.long\(\)"),
            (MASKS[:, None], r"must have shape \(6, 8, 8\)\. Use targets\.squeeze\(1\)"),
            (MASKS[..., None], r"Use targets\.squeeze\(-1\)"),
            (nn.functional.one_hot(MASKS, 4), r"For one-hot masks use targets\.argmax\(-1\)"),
            (nn.functional.one_hot(MASKS, 4).movedim(-1, 1), r"use targets\.argmax\(1\)"),
            (MASKS[:, :4, :4], "Resize the outputs to the masks, or the masks to the outputs"),
            (
                torch.where(MASKS == 3, 255, MASKS),
                r"if 255 marks what is to be ignored.*CrossEntropyLoss\(ignore_index=255\)",
            ),
            (torch.where(MASKS == 3, 255, MASKS).byte(), r"has a label 255.*set it to -100"),
        ],
    )
    def test_of_a_segmenter(self, masks: Tensor, hint: str) -> None:
        with pytest.raises(sc.DataError, match=f"Batch 0 of train.*{hint}"):
            prune(segmenter(), targets=masks)

    @pytest.mark.parametrize("masks", [torch.where(MASKS == 3, -100, MASKS), MASKS.byte(), MASKS > 0])
    def test_that_fit(self, masks: Tensor) -> None:
        assert prune(segmenter(), targets=masks).after.loss is not None

    def test_255_is_ignored_by_the_loss_that_is_named(self) -> None:
        masks = torch.where(MASKS == 3, 255, MASKS)
        assert prune(segmenter(), targets=masks, loss=nn.CrossEntropyLoss(ignore_index=255)).after.loss is not None


class TestNetworks:
    @pytest.mark.parametrize(
        "call",
        [
            lambda r, _: sc.bench(r, r.model, X),
            lambda r, _: sc.bench(r.model, r, X),
            lambda r, p: sc.export(r, p / "a.pt2", X),
            lambda r, _: sc.count(r, X),
            lambda r, _: sc.trace(r, X),
            lambda r, _: sc.prune(r, X, "l1", sc.Budget(macs=0.7)),
            lambda r, _: sc.apply(r, r.plan),
            lambda r, _: sc.calibrate(r, [X]),
            lambda r, _: sc.sensitivity(r, X, data=sc.Data([(X, Y)], [(X, Y)])),
            lambda r, _: sc.compare(r, X, ["l1"], data=sc.Data([(X, Y)], [(X, Y)])),
            lambda r, _: sc.tune(r, X),
            lambda r, _: sc.reinitialize(r),
        ],
    )
    def test_what_prune_returns_is_not_a_network(self, call: Any, tmp_path: Path) -> None:
        with pytest.raises(sc.TraceError, match=r"not a Result: pass its network, result\.model"):
            call(prune(classifier()), tmp_path)

    @pytest.mark.parametrize(
        "call", [sc.apply, sc.cut_, sc.mask, lambda m, p: sc.verify(m, p, X)], ids=["apply", "cut_", "mask", "verify"]
    )
    def test_what_takes_a_plan(self, call: Any) -> None:
        result = prune(classifier())
        with pytest.raises(sc.PlanError, match=r"^a Result is not a plan: pass its plan, result\.plan\.$"):
            call(classifier(), result)
        with pytest.raises(sc.TraceError, match=r"not a Plan: the model comes first, and then the plan\.$"):
            call(result.plan, classifier())

    @pytest.mark.parametrize(
        "call",
        [
            lambda m, p: sc.bench(m, m, X),
            lambda m, p: sc.export(m, p / "a.pt2", X),
            lambda m, p: sc.sensitivity(m, X, data=sc.Data([(X, Y)], [(X, Y)])),
        ],
    )
    def test_without_values(self, call: Any, tmp_path: Path) -> None:
        model = classifier()
        model[4].to("meta")
        with pytest.raises(sc.ConfigError, match="is on the meta device and has no values"):
            call(model, tmp_path)

    def test_frozen_networks_are_cut_and_not_trained(self) -> None:
        model = classifier().requires_grad_(False)
        assert not any(p.requires_grad for p in prune(model).model.parameters())
        with pytest.raises(
            sc.ConfigError, match=r"all of its parameters have requires_grad=False: call requires_grad_\(True\)"
        ):
            prune(model, recover=sc.Recover(epochs=1))
        with pytest.raises(
            sc.ConfigError, match=r"The loss depends on no parameter that is trained: call requires_grad_\(True\)"
        ):
            Engine(model, [(X, Y)], Recipe(epochs=1)).fit()

    def test_a_detached_loss(self) -> None:
        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            return nn.functional.cross_entropy(outputs.detach(), targets)

        with pytest.raises(
            sc.ConfigError, match=r"The loss depends on no parameter that is trained.*without detach\(\)"
        ):
            prune(classifier(), recover=sc.Recover(epochs=1, share=0), loss=loss)

    def test_the_folder_of_an_artifact_as_a_path(self, tmp_path: Path) -> None:
        sc.prune(sc.build("zoo:small_cnn"), torch.randn(1, 3, 32, 32), "l1", sc.Budget(macs=0.7)).save(tmp_path / "one")
        assert sc.count(sc.build(tmp_path / "one"), torch.randn(1, 3, 32, 32)).macs


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sc.Target("torch-cpu", bach=3), "Target has no bach. Did you mean batch?"),  # type: ignore[call-arg]
        (lambda: sc.bench(classifier(), classifier(), X, seconds="1"), "seconds='1' must be positive"),  # type: ignore[arg-type]
        (
            lambda: sc.bench(classifier(), classifier(), X, seconds=float("inf")),
            "seconds=inf must be positive",
        ),
    ],
)
def test_settings_of_a_measurement(call: Any, message: str) -> None:
    with pytest.raises(sc.ConfigError) as error:
        call()
    assert message in str(error.value)


def test_one_batch_size() -> None:
    found = sc.bench(classifier(), classifier(), X, batches=3, seconds=0.01)
    assert [row.batch for row in found.rows] == [3]
