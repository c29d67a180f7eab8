"""`secateurs bench` and `secateurs export`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import secateurs as sc
from secateurs.deploy.formats import FORMATS
from tests.networks import conv

absent = torch.__version__.startswith("2.6.") or FORMATS[".onnx"].missing is not None
needs_onnx = pytest.mark.skipif(absent, reason="ONNX is not installed, or PyTorch 2.6")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    result = sc.prune(sc.build("zoo:small_cnn", num_classes=2), torch.randn(1, 3, 32, 32), "l1", sc.Budget(macs=0.5))
    return result.save(tmp_path_factory.mktemp("artifact") / "a")


def test_bench_prints_a_table(run, artifact, tmp_path):
    ran = run("bench", artifact, "--target", "torch-cpu", "--batch", 1, "--batch", 2, "--seconds", 0.01,
              "--plot", tmp_path / "new" / "p.svg")  # fmt: skip
    assert ran.status == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0].split()[:4] == ["target", "batch", "original", "pruned"]
    assert [line.split()[:2] for line in lines[2:4]] == [["torch-cpu", "1"], ["torch-cpu", "2"]]
    assert "× if time followed them" in ran.out
    assert b"<svg" in (tmp_path / "new" / "p.svg").read_bytes()


def test_times_are_kept_if_the_plot_cannot_be_drawn(run, artifact, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    copy = shutil.copytree(artifact, tmp_path / "a")
    monkeypatch.setattr("secateurs.report.curves.plot", full)
    ran = run("bench", copy, "--target", "torch-cpu", "--seconds", 0.01, "--plot", tmp_path / "p.svg", "--save")
    assert ran.status == 2
    assert "cannot be written: No space left on device" in ran.err
    assert (copy / "bench.json").exists()


def test_an_artifact_in_half_precision_is_measured_beside_its_original(run, tmp_path):
    """Both in half precision: the spec of the original builds float32."""
    model = sc.build("zoo:small_cnn", num_classes=2).half()
    folder = sc.prune(model, torch.randn(1, 3, 32, 32).half(), "l1", sc.Budget(macs=0.5)).save(tmp_path / "a")
    ran = run("bench", folder, "--target", "torch-cpu", "--seconds", 0.01, "--json")
    assert ran.status == 0, ran.err
    assert [row["target"]["precision"] for row in json.loads(ran.out)["rows"]] == ["fp16"]


def test_bench_as_json(run, artifact):
    ran = run("bench", artifact, "--target", "torch-cpu", "--seconds", 0.01, "--input", "3,16,16", "--json")
    found = json.loads(ran.out)
    assert [row["target"]["runtime"] for row in found["rows"]] == ["torch-cpu"]
    assert found["rows"][0]["batch"] == 1
    assert found["pruned"]["macs"] < found["original"]["macs"]
    assert (
        found["original"]["macs"] == sc.count(sc.build("zoo:small_cnn", num_classes=2), torch.zeros(1, 3, 16, 16)).macs
    )


def test_a_network_that_is_not_faster_is_said_to_be(run, artifact, monkeypatch):
    times = {"original": [1.0] * 7, "pruned": [1.5] * 7}
    monkeypatch.setitem(sc.bench.__globals__, "in_turn", lambda programs, seconds: times)
    ran = run("bench", artifact, "--target", "torch-cpu")
    assert "warning: on torch-cpu the pruned network is slower at a batch of 1" in ran.out


@needs_onnx
def test_export(run, artifact, tmp_path):
    path = tmp_path / "small.onnx"
    ran = run("export", artifact, "--out", path)
    assert ran.status == 0, ran.err
    assert ran.out.startswith(f"{path}: ")
    assert "any batch size; agrees with the network to" in ran.out
    stored = FORMATS[".onnx"].open(path).metadata()
    assert stored["method"] == "l1"
    assert stored["figures"]["macs"] == sc.count(sc.load(artifact), torch.zeros(1, 3, 32, 32)).macs
    ran = run("export", artifact, "--out", path)
    assert ran.status == 2
    assert "already exists: --force replaces it" in ran.err
    assert run("export", artifact, "--out", path, "--force").status == 0


def test_a_file_says_which_inputs_it_takes(run, tmp_path):
    """Not those that the network was pruned on: it is exported in float32, and in the size that is asked for."""
    model = sc.build("zoo:small_cnn", num_classes=2).half()
    folder = sc.prune(model, torch.randn(1, 3, 32, 32).half(), "l1", sc.Budget(macs=0.5)).save(tmp_path / "a")
    ran = run("export", folder, "--to", "pt2", "--input", "3,16,16")
    assert ran.status == 0, ran.err
    found = FORMATS[".pt2"].open(folder / "model.pt2").metadata()
    assert found["inputs"] == [{"name": "0", "shape": [1, 3, 16, 16], "dtype": "float32"}]


@needs_onnx
def test_int8_is_measured(run, artifact, images, tmp_path):
    ran = run("export", artifact, "--out", tmp_path / "q.onnx", "--int8", "--data", f"folder:{images}")
    assert ran.status == 0, ran.err
    assert "8-bit integers; outputs for noise differ from the network's by up to" in ran.out
    assert [line.split()[0] for line in ran.out.splitlines()[-2:]] == ["network", "int8"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("export", "--out", "a.pt2"), "--out a.pt2: the suffix for --to onnx is .onnx"),
        (("export", "--int8", "--fixed-batch", "--out", "a.onnx"), "omit --fixed-batch"),
        (("bench", "--target", "tensorrt"), "--target tensorrt does not exist. Known: onnxruntime"),
        (("bench", "--target", "onnxruntime", "--channels-last"), "--channels-last is a setting of PyTorch"),
        (("bench", "--plot", "a.mov"), "a.mov: a picture cannot be saved as .mov. Use .png, .svg or .pdf."),
        (("bench", "--input", "a"), "--input a: write the shape of one input"),
    ],
)
def test_what_is_not_valid(options, message, run, artifact):
    ran = run(options[0], artifact, *options[1:])
    assert ran.status == 2
    assert message in ran.err


def test_a_network_of_the_users_own(run, tmp_path):
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 8), conv(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    sc.prune(Own(), torch.randn(1, 3, 8, 8), "l1", sc.Budget(macs=0.5)).save(tmp_path / "own")
    ran = run("bench", tmp_path / "own", "--target", "torch-cpu")
    assert ran.status == 2
    assert "does not say how to build its network: give --model" in ran.err


class Listed(torch.nn.Module):
    """Takes a list of images, as detectors do."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, num_classes)

    def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.b(self.a(x[None])) for x in images]


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = sc.build("python:tests.cli.test_deploy:Listed", trust_code=True)
    folder = sc.prune(model, ([torch.randn(3, 8, 8)],), "l1", sc.Budget(macs=0.6)).save(
        tmp_path_factory.mktemp("listed") / "a"
    )
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "task": {"name": "detection"}}))
    return folder


@pytest.mark.parametrize("options", [(), ("--input", "3,16,16")])
def test_a_list_of_images_is_measured_as_it_is(run, listed, options):
    ran = run("bench", listed, "--trust-code", "--target", "torch-cpu", "--seconds", 0.01, "--json", *options)
    assert ran.status == 0, ran.err
    assert json.loads(ran.out)["rows"][0]["batch"] == 1


def test_code_that_is_not_trusted_is_refused_with_the_card_that_names_it(run, listed):
    ran = run("bench", listed, "--target", "torch-cpu")
    assert ran.status == 1
    assert f"{listed}/card.json: its network comes from python:tests.cli.test_deploy:Listed" in ran.err


def test_a_list_of_images_is_a_batch(run, listed):
    ran = run("bench", listed, "--trust-code", "--target", "torch-cpu", "--batch", 4, "--seconds", 0.01, "--json")
    assert ran.status == 0, ran.err
    assert json.loads(ran.out)["rows"][0]["batch"] == 4


def test_inputs_that_are_not_on_record(run, listed, tmp_path):
    folder = Path(shutil.copytree(listed, tmp_path / "a"))
    card = json.loads((folder / "card.json").read_text())
    card["signature"]["inputs"][0]["name"] = "0.1"
    (folder / "card.json").write_text(json.dumps(card))
    ran = run("bench", folder, "--trust-code", "--target", "torch-cpu")
    assert ran.status == 1
    assert "--input gives the shape of one input" in ran.err
