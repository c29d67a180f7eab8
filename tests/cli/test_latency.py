"""Budgets of time on the command line, with made-up runtimes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.latency.fakes import Fakes
from tests.latency.fakes import fakes as fakes

JOB = ("prune", "zoo:small_cnn", "--batch-size", 16, "--pretrain-epochs", 1, "--recover", "none", "--method", "l1")


def test_a_budget_of_time(run: Any, fakes: Fakes, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    job = (*JOB, "--data", f"folder:{images}", "--scope", "all", "--out", out)
    ran = run(*job, "--latency", 0.6, "--target", "torch-cpu", "--target-set", "threads=1", "--align", "auto")
    assert ran.status == 0, ran.err
    card = json.loads((out / "card.json").read_text())
    assert card["latency"]["ratio"] <= 0.6
    assert card["budget"]["target"] == {"runtime": "torch-cpu", "threads": 1}
    assert "time on torch-cpu, threads=1: 10 → " in ran.out
    assert "(budget 60.0%; the latency model predicts" in ran.out
    assert "of the original's time" in ran.err
    again = run(*job, "--latency", 0.6, "--target", "torch-cpu", "--target-set", "threads=1", "--resume")
    assert "nothing to do" in again.err
    assert "time on torch-cpu, threads=1: 10 → " in again.out  # from the card
    other = run(*job, "--ms", 6, "--target", "torch-cpu", "--force")
    assert other.status == 0, other.err
    assert json.loads((out / "card.json").read_text())["budget"]["ms"] == 6


HALF = ("--latency", 0.5, "--target", "torch-cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--latency", 0.6, "--target", "tensorrt"), "--target tensorrt does not exist. Known: onnxruntime"),
        (("--latency", 1.5), "--latency 1.5 is not a valid budget: it is the fraction of the original's time"),
        (("--latency", 60), "60 percent are --latency 0.6, 60 milliseconds --ms 60."),
        (("--ms", 0), "--ms 0 is not a valid budget"),
        (("--target", "torch-cpu"), "--target is where time is measured: give --latency or --ms"),
        (("--macs", 0.5, "--target", "torch-cpu"), "--target torch-cpu has no effect on this budget"),
        (
            ("--latency", 0.5, "--target-set", "threads=1"),
            "--target-set threads=1 is a setting of a target, and none is named: add --target torch-cpu, torch-cuda, "
            "onnxruntime or openvino.",
        ),
        (
            ("--latency", 0.5, "--target", "torch-cpu", "--target-set", "thread=1"),
            "has no setting thread. Did you mean threads",
        ),
        (
            ("--latency", 0.5, "--target", "torch-cpu", "--target-set", "threads=x"),
            "--target-set threads=x must be a whole number",
        ),
        (("--align", "auto"), "--align rounds the widths"),
        (("--latency", 0.01), "cannot be met: with everything cut that may be cut, about"),
    ],
)
def test_what_cannot_be(
    run: Any, fakes: Fakes, images: Path, tmp_path: Path, options: tuple[Any, ...], message: str
) -> None:
    ran = run(*JOB, "--data", f"folder:{images}", "--out", tmp_path / "r", *options)
    assert ran.status == 2, ran.err
    assert message in " ".join(ran.err.split())


@pytest.mark.parametrize(("runtime", "extra"), [("onnxruntime", "export"), ("openvino", "openvino")])
def test_a_runtime_that_is_not_installed(
    run: Any, fakes: Fakes, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, extra: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ran = run(*JOB, "--data", f"folder:{images}", "--out", tmp_path / "r", "--latency", 0.5, "--target", runtime)
    assert ran.status == 2
    assert f"--target {runtime} cannot be used: " in " ".join(ran.err.split())
    assert f"pip install 'secateurs[{extra}]'" in " ".join(ran.err.split())


def test_no_gpu(run: Any, fakes: Fakes, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ran = run(*JOB, "--data", f"folder:{images}", "--out", tmp_path / "r", "--latency", 0.5, "--target", "torch-cuda")
    assert ran.status == 2
    assert "--target torch-cuda cannot be used: there is no GPU" in " ".join(ran.err.split())


def test_inspect_shows_what_time_can_be_reached(run: Any, fakes: Fakes) -> None:
    ran = run("inspect", "zoo:small_cnn", "--target", "torch-cpu", "--target-set", "batch=4")
    assert ran.status == 0, ran.err
    assert "time on torch-cpu: 10 ms; lowest about" in ran.out
    assert "multiples of 4 are the fastest widths" in ran.out
    found = json.loads(run("inspect", "zoo:small_cnn", "--target", "torch-cpu", "--json").out)["latency"]
    assert found["liked"] == 4
    assert found["lowest"]["all"] < found["lowest"]["internal"] < found["seconds"]
    refused = run("inspect", "zoo:small_cnn", "--target-set", "batch=4").err
    assert "--target-set batch=4 is a setting of a target, and none is named: add --target" in refused
