"""benchmarks/papers: every row's settings are valid, its network can be built and cut to its budget, and the page is what the
results say."""

from __future__ import annotations

import argparse
import os
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import secateurs as sc
from secateurs.cli import app, config
from secateurs.cli.methods import configured
from secateurs.cli.recipes import RecoverOptions
from secateurs.methods.method import Task

FOLDER = Path(__file__).parents[1] / "benchmarks" / "papers"
sys.path.insert(0, str(FOLDER))
papers, page = import_module("run"), import_module("page")
for name in ("run", "page", "row"):
    sys.modules.pop(name)
sys.path.remove(str(FOLDER))
ROWS = papers.rows()


@cache
def traced(spec: str) -> tuple[Any, Any, Any]:
    if spec.startswith("torchvision:") and find_spec("torchvision") is None:
        pytest.skip("needs torchvision")
    model = sc.build(spec, num_classes=10).eval()
    inputs = torch.zeros(1, 3, 32, 32) if spec.startswith("zoo:") else torch.zeros(1, 3, 64, 64)
    return model, inputs, sc.trace(model, inputs)


def test_the_rows_and_the_figures_are_the_same() -> None:
    assert {path.stem for path in (FOLDER / "rows").glob("*.yaml")} == set(ROWS)
    for row in ROWS.values():
        f = row.figures
        assert f["data"] in ("CIFAR-10", "ImageNet")
        assert f["data"] == ("CIFAR-10" if row.config["model"].startswith("zoo:") else "ImageNet")
        assert 0 < f["macs"] < 100
        assert 50 < f["after"] < 100
        assert abs(f["after"] - f["before"]) < 6
        if "macs" in row.config:
            assert row.config["macs"] == pytest.approx(f["macs"] / 100, abs=1e-4)


@pytest.mark.parametrize("profile", papers.PROFILES)
@pytest.mark.parametrize("name", ROWS)
def test_a_row_can_be_run(name: str, profile: str, tmp_path: Path) -> None:
    """Its file is valid, its settings too, and its network can meet the budget: what `prune` checks before any work."""
    row = ROWS[name]
    file = tmp_path / "row.yaml"
    file.write_text(yaml.safe_dump(row.settings(profile)))
    options = config.read(app, "prune", file)
    method = configured(options["method"], options.get("set", []), preset=options.get("preset", []))
    names = RecoverOptions.__dataclass_fields__
    RecoverOptions(**{key: value for key, value in options.items() if key in names}).recipes()
    model, inputs, graph = traced(options["model"])
    budget = sc.Budget(macs=options["macs"]) if "macs" in options else None
    assert budget is not None or method.decides
    scope = options.get("scope") or method.default_scope
    data = sc.Data([(inputs, torch.zeros(1, dtype=torch.long))])
    task = Task(model, graph, budget, scope, data, 0, inputs).for_method(method)
    if budget is not None and type(method).cuts == "channels":
        assert budget.allows(task.widths.cost(task.widths.least), graph.cost())


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith("onestep")])
def test_one_step_rows_train_as_the_paper_says(name: str) -> None:
    """Sec. 4 and 4.5: all by Adam, mimicking from 1e-3, fine-tuning on the labels at a constant 1e-5."""
    mimic, tune = RecoverOptions(recover=ROWS[name].config["recover"]).recipes()
    assert isinstance(mimic, sc.Mimic)
    assert isinstance(tune, sc.Recover)
    assert (mimic.optimizer, mimic.lr, mimic.schedule, mimic.milestones) == ("adam", 1e-3, "step", (5, 10))
    assert (tune.optimizer, tune.lr, tune.schedule, tune.weight_decay, tune.share) == ("adam", 1e-5, "constant", 0, 0)
    assert mimic.nodes == (("layer1", "layer2", "layer3", "layer4") if "resnet50" in name else None)


@pytest.mark.parametrize("name", ["resnet56", "resnet110", "vgg16", "googlenet"])
def test_the_networks_are_those_of_the_papers(name: str) -> None:
    """In MACs: the figures of EPruner's table II, within two percent."""
    figures = {"resnet56": 127.62, "resnet110": 257.09, "vgg16": 314.59, "googlenet": 1534.55}
    _, _, graph = traced(f"zoo:{name}")
    assert graph.cost().macs / 1e6 == pytest.approx(figures[name], rel=0.02)


def test_the_page_is_made_from_the_results() -> None:
    assert page.PAGE.read_text() == page.text(page.results())  # python benchmarks/papers/run.py --page


def test_the_page_has_means_and_blanks() -> None:
    figures = {"top1": 90.0, "top5": 99.0, "macs": 1.0, "params": 1.0}
    one = {
        "row": "epruner-resnet56", "profile": "paper", "seed": 0, "settings": {"model": "zoo:resnet56"}, "minutes": 240.0,
        "figures": {"before": figures, "after the cut": {**figures, "top1": 10.0, "macs": 0.387}},
        "after": {"top1": 90.5, "top5": 99.0}, "error": 1e-7, "machine": "a GPU", "versions": {},
    }  # fmt: skip
    text = page.text([one, {**one, "seed": 1, "after": {"top1": 91.5, "top5": 99.0}}])
    (line,) = [line for line in text.splitlines() if "`epruner-resnet56`, table" in line]
    assert line.endswith("| 90.00 → 91.00 ± 0.71 (+1.00) | 38.7% | 0, 1 | 4.0 h, a GPU |")
    (blank,) = [line for line in text.splitlines() if "`epruner-resnet110`" in line]
    assert blank.endswith("|  |  |  |  |")
    reduced = page.text([{**one, "profile": "reduced"}])
    assert "| `epruner-resnet56` | resnet56 | 90.00 | 10.00 | 90.50 | 38.7% | 1.0e-07 | 0 | 4.0 h, a GPU |" in reduced


def test_slices_and_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped in time continues, its time adds up, and a finished one is kept."""
    calls: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str]) -> None:
            calls.append(command)
            self.stopped = False

        def wait(self, timeout: float | None = None) -> int:
            if len(calls) == 1 and not self.stopped:
                raise papers.subprocess.TimeoutExpired("prune", timeout or 0)
            return 130 if self.stopped else 0

        def send_signal(self, number: int) -> None:
            self.stopped = True

    saved: list[float] = []
    monkeypatch.setattr(papers.subprocess, "Popen", Process)
    monkeypatch.setattr(papers, "save", lambda row, args, settings, folder, seconds: saved.append(seconds))
    clock = iter([0.0, 60.0, 100.0, 130.0])
    monkeypatch.setattr(papers.time, "monotonic", lambda: next(clock))
    row = ROWS["epruner-resnet56"]
    args = argparse.Namespace(
        out=tmp_path, profile="paper", seed=3, normalize=None, data="folder:x", weights=Path("w"), minutes=1,
        device=None, machine=None,
    )  # fmt: skip
    assert papers.run(row, args) == papers.MORE
    assert papers.run(row, args) == 0
    assert saved == [90.0]
    assert calls[0] == calls[1]
    assert {"--resume", "--weights", "3"} <= set(calls[0])
    used = yaml.safe_load((tmp_path / "epruner-resnet56-paper-3" / "config.yaml").read_text())
    assert used == row.config


def test_a_smaller_folder_of_images(tmp_path: Path) -> None:
    for split, count in (("train", 600), ("val", 300)):
        for name in ("cat", "dog"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                os.link(__file__, tmp_path / "data" / split / name / f"{i:03d}.png")
    papers.IMAGES = {"train": 20, "test": 10}
    out = papers.smaller(tmp_path / "data", tmp_path / "small")
    assert papers.smaller(tmp_path / "data", tmp_path / "small") == out  # and again
    assert len(list((out / "train").rglob("*.png"))) == 20
    assert len(list((out / "test" / "cat").iterdir())) == 5
