"""What a card says of how a network is called: inputs, class names, preprocessing."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.artifact import CARD, Signature
from secateurs.cli import main

Pair = namedtuple("Pair", "a b")
PREPROCESS = sc.Preprocess(size=(12, 10), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def batches(n: int = 4) -> list[Any]:
    return [(torch.randn(n, 3, 12, 10, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 3)]


def picture(path: Path, size: tuple[int, int] = (20, 30)) -> Path:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("run") / "digits"
    data = sc.DataSpec("digits", normalize="cifar10", image_size=16)
    sc.PruneRun("zoo:small_cnn", data, folder, method="l1", budget=sc.Budget(macs=0.5), pretrain_epochs=0).start()
    return folder


class TestInputs:
    @pytest.mark.parametrize(
        ("inputs", "records"),
        [
            (torch.zeros(2, 3, 8, 8), [("0", [2, 3, 8, 8], "float32")]),
            ((torch.zeros(1, 4).half(), torch.zeros(1, dtype=torch.int64)), [("0", [1, 4], "float16"), ("1", [1], "int64")]),
            ({"x": torch.zeros(1, 2), "mask": torch.ones(1, 2) > 0}, [("x", [1, 2], "float32"), ("mask", [1, 2], "bool")]),
            (([torch.zeros(3, 4)], 2.0), [("0.0", [3, 4], "float32")]),
            (Pair(torch.zeros(1), {"c": torch.zeros(2)}), [("0", [1], "float32"), ("1.c", [2], "float32")]),
        ],
    )  # fmt: skip
    def test_are_recorded(self, inputs: Any, records: Any) -> None:
        assert [(x.name, x.shape, x.dtype) for x in Signature.of(inputs).inputs] == records

    @pytest.mark.parametrize(
        "inputs",
        [
            torch.zeros(2, 3),
            (torch.zeros(1), torch.zeros(2, dtype=torch.int8)),
            {"x": torch.zeros(1, 2).to(torch.bfloat16)},
            ([torch.zeros(3, 4), torch.zeros(3, 5)],),
            (torch.zeros(1), {"c": torch.zeros(2), "d": [torch.zeros(3)]}),
            {"x": [torch.zeros(1)] * 11},
        ],
    )
    def test_examples_are_like_them(self, inputs: Any) -> None:
        found = Signature.of(inputs).examples()
        given = inputs if isinstance(inputs, tuple | dict) else (inputs,)
        torch.testing.assert_close(found, given, rtol=0, atol=0)

    @pytest.mark.parametrize("inputs", [3, ([2.0, torch.zeros(1)],), {"x y": torch.zeros(1)}])
    def test_others_make_no_examples(self, inputs: Any) -> None:
        with pytest.raises(sc.ArtifactError, match="does not record inputs"):
            Signature.of(inputs).examples()

    @pytest.mark.parametrize("shape", [(2**31 + 1,), (2**20, 2**20), (1,) * 64])
    def test_of_any_size_are_recorded_and_read(self, shape: tuple[int, ...]) -> None:
        """Only examples, which take the memory, are limited: a card may be from anyone."""
        signature = Signature.of(torch.zeros(1).expand(shape))
        assert Signature.model_validate_json(signature.model_dump_json()) == signature
        if len(shape) == 64:
            assert signature.examples()[0].shape == shape
        else:
            with pytest.raises(
                sc.ArtifactError, match=r"records an input of .* elements, too large to make an example"
            ):
                signature.examples()

    @pytest.mark.parametrize("names", [["0", "0.0"], ["0.0", "0"], ["0", "0"], ["0", "x"], [".".join("0" * 400)]])
    def test_names_that_are_no_paths_of_a_structure(self, names: list[str]) -> None:
        records = [{"name": name, "shape": [1], "dtype": "float32"} for name in names]
        with pytest.raises(sc.ArtifactError, match="does not record inputs"):
            Signature.model_validate({"inputs": records}).examples()

    def test_deploy_says_what_to_do(self) -> None:
        result = sc.prune(net(), torch.randn(1, 3, 12, 10), "l1", sc.Budget(macs=0.6))
        with pytest.raises(sc.ArtifactError, match="Pass example_inputs="):
            replace(result, signature=None).deploy()

    def test_of_the_call_not_of_the_work(self) -> None:
        """A network in half precision is pruned in float32, and called in half precision."""
        result = sc.prune(net().half(), torch.randn(1, 3, 12, 10).half(), "l1", sc.Budget(macs=0.6))
        assert result.signature is not None
        assert str(result.signature.inputs[0]) == "1x3x12x10 float16"


@dataclass
class Views:
    left: Tensor
    right: Tensor


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, views: Views) -> Tensor:
        return self.b(torch.relu(self.a(views.left) + self.a(views.right)))


def test_a_dataclass_as_example_inputs(tmp_path: Path) -> None:
    """In the working dtype, on meta tensors, in twins and in batches alike: structures are mapped in one place."""
    views = Views(torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8))
    for model, inputs in ((Both(), views), (Both().half(), Views(views.left.half(), views.right.half()))):
        result = sc.prune(model, inputs, "l1", sc.Budget(macs=0.6), scope="all")
        assert result.error < 1e-5
        assert sc.count(result.model, inputs) == sc.Cost(result.after.macs, result.after.params)
        assert result.signature is not None
        assert [x.name for x in result.signature.inputs] == ["0.left", "0.right"]


class TestCard:
    def test_of_python(self, tmp_path: Path) -> None:
        data = sc.Data(batches(), batches(), classes=("cat", "dog", "line\nbreak"), preprocess=PREPROCESS)
        result = sc.prune(net(), batches()[0][0][:1], "l1", sc.Budget(macs=0.6), data=data)
        card = sc.card(result.save(tmp_path / "run"))
        assert card.signature == result.signature
        assert card.signature is not None
        assert card.signature.classes == ["cat", "dog", r"line\nbreak"]
        assert card.signature.preprocess == PREPROCESS
        assert card.signature.examples()[0].shape == (1, 3, 12, 10)
        model = sc.load(tmp_path / "run", model=net())
        file = picture(tmp_path / "x.png")
        assert model(card.signature.preprocess(file)).shape == (1, 3)

    def test_without_data(self, tmp_path: Path) -> None:
        result = sc.prune(net(), batches()[0][0], "l1", sc.Budget(macs=0.6))
        signature = sc.card(result.save(tmp_path / "run")).signature
        assert signature is not None
        assert (signature.inputs[0].shape, signature.classes, signature.preprocess) == ([4, 3, 12, 10], None, None)

    def test_of_a_run(self, digits_run: Path) -> None:
        signature = sc.card(digits_run).signature
        assert signature is not None
        assert signature.inputs[0].shape == [1, 3, 16, 16]
        assert signature.classes == list("0123456789")
        assert signature.preprocess is not None
        assert signature.preprocess.size == (16, 16)
        assert signature.preprocess.mean == (0.4914, 0.4822, 0.4465)

    def test_of_a_finished_run_that_is_read_again(self, digits_run: Path) -> None:
        data = sc.DataSpec("digits", normalize="cifar10", image_size=16)
        run = sc.PruneRun("zoo:small_cnn", data, digits_run, method="l1", budget=sc.Budget(macs=0.5), pretrain_epochs=0)
        assert run.start(resume=True).signature == sc.card(digits_run).signature

    def test_an_older_card(self, digits_run: Path) -> None:
        text = (digits_run / CARD).read_text()
        card = json.loads(text)
        del card["signature"]
        try:
            (digits_run / CARD).write_text(json.dumps(card))
            assert sc.card(digits_run).signature is None
            assert main(["inspect", str(digits_run)]) == 0
        finally:
            (digits_run / CARD).write_text(text)

    @pytest.mark.parametrize(
        ("field", "value"),
        [("classes", "cat"), ("classes", 3), ("preprocess", {"mean": 0}), ("preprocess", "imagenet")],
    )
    def test_data_that_says_something_else(self, field: str, value: Any) -> None:
        with pytest.raises(sc.DataError, match=f"{field}.* must be a"):
            sc.Data(batches(), **{field: value})

    @pytest.mark.parametrize(
        "signature",
        [
            {"inputs": [{"name": "0", "shape": [2**63], "dtype": "float32"}]},
            {"inputs": [{"name": "0", "shape": [1] * 65, "dtype": "float32"}]},
            {"inputs": [{"name": "0", "shape": [-1], "dtype": "float32"}]},
            {"inputs": [{"name": "0", "shape": [1], "dtype": "load"}]},
            {"inputs": [{"name": "\x1b[2J", "shape": [1], "dtype": "int8"}]},
            {"classes": ["\x1b[2J"]},
            {"preprocess": {"size": [2**30, 2**30]}},
            {"preprocess": {"size": [8, 8], "std": [0, 1, 1]}},
            {"preprocess": {"size": [8, 8], "channels": "CMYK"}},
        ],
    )
    def test_a_hostile_one(self, signature: Any, digits_run: Path) -> None:
        text = (digits_run / CARD).read_text()
        try:
            (digits_run / CARD).write_text(json.dumps({**json.loads(text), "signature": signature}))
            with pytest.raises(sc.ArtifactError, match=r"card\.json is not valid: field 'signature"):
                sc.card(digits_run)
        finally:
            (digits_run / CARD).write_text(text)


class TestPreprocess:
    @pytest.mark.parametrize("image_size", [None, 16])
    def test_as_the_data_does_it(self, tmp_path: Path, image_size: int | None) -> None:
        """What the card says makes of a file exactly what the loader made of it."""
        for split in ("train", "val"):
            for name in ("cat", "dog"):
                (tmp_path / split / name).mkdir(parents=True)
                picture(tmp_path / split / name / "1.png")
        from secateurs.data import load

        data = load(f"folder:{tmp_path}", image_size=image_size)
        assert data.preprocess is not None
        assert data.preprocess.resize == (None if image_size is None else "shorter-side")
        inputs: Tensor = next(iter(data.val))[0]
        found = data.preprocess(tmp_path / "val" / "cat" / "1.png")
        assert torch.equal(found, inputs[:1])
        assert torch.equal(data.preprocess((tmp_path / "val" / "cat" / "1.png").read_bytes()), found)

    def test_what_cannot_be_read(self, tmp_path: Path) -> None:
        pytest.importorskip("PIL")
        (tmp_path / "x.png").write_bytes(b"no image")
        with pytest.raises(sc.DataError, match=r"x\.png cannot be read: it is not an image"):
            PREPROCESS(tmp_path / "x.png")
        with pytest.raises(sc.DataError, match="20x30, but"):
            PREPROCESS.model_copy(update={"resize": None})(picture(tmp_path / "y.png"))


class TestCommands:
    def test_inspect_uses_the_recorded_inputs(self, digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["inspect", str(digits_run)]) == 0
        shown = capsys.readouterr().out
        card = sc.card(digits_run)
        assert f"on 3x16x16: {card.after.macs:,} MACs" in shown
        assert "input 1x3x16x16 float32\n10 classes: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more\n" in shown
        assert (
            "RGB images resized and cropped to 16x16, in [0, 1], minus 0.4914, 0.4822, 0.4465, divided by 0.247,"
            in shown
        )
        assert main(["inspect", str(digits_run), "--input", "3,32,32"]) == 0
        assert "on 3x32x32: " in capsys.readouterr().out

    def test_inspect_json(self, digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["inspect", str(digits_run), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["input"] == [3, 16, 16]
        assert found["signature"]["preprocess"]["size"] == [16, 16]

    def test_inspect_of_inputs_that_are_no_image(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model = sc.build("zoo:small_cnn")
        sc.prune(model, torch.randn(2, 3, 16, 8), "l1", sc.Budget(macs=0.6)).save(tmp_path / "run")
        assert main(["inspect", str(tmp_path / "run")]) == 0
        assert f"on 2x3x16x8: {sc.card(tmp_path / 'run').cut.macs:,} MACs" in capsys.readouterr().out

    def test_evaluate_shows_it(self, digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["evaluate", str(digits_run)]) == 0
        assert "10 classes: 0, 1" in capsys.readouterr().out
        assert main(["evaluate", str(digits_run), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["signature"]["classes"] == list("0123456789")

    def test_evaluate_warns_of_other_classes(self, digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = (digits_run / CARD).read_text()
        card = json.loads(text)
        card["signature"]["classes"][3] = "three"
        try:
            (digits_run / CARD).write_text(json.dumps(card))
            assert main(["evaluate", str(digits_run)]) == 0
        finally:
            (digits_run / CARD).write_text(text)
        assert "warning: the classes of this data are not those on the card: 3 where the card has three." in (
            capsys.readouterr().err
        )

    def test_evaluate_normalizes_as_a_network_of_python_needs_it(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("sklearn")
        from secateurs.data import load

        data = load("digits", image_size=16, normalize=((0.1, 0.2, 0.3), (0.3, 0.3, 0.4)))
        result = sc.prune(sc.build("zoo:small_cnn"), torch.zeros(1, 3, 16, 16), "l1", sc.Budget(macs=0.6), data=data)
        assert main(["evaluate", str(result.save(tmp_path / "run")), "--data", "digits", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["measured"]["loss"] == pytest.approx(result.after.loss, rel=1e-6)
        assert found["measured"]["top1"] == result.after.top1
