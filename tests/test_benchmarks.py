"""Benchmarks are run by hand; what they import has to be there all the same."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import secateurs as sc
from secateurs.methods import resolve

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_import(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    try:
        runpy.run_path(str(path), run_name="imported")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("secateurs") or (FOLDER / f"{error.name}.py").exists():
            raise
        pytest.skip(f"{error.name} is not installed")  # a peer, to be measured against


@pytest.fixture
def compute() -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "compute.py"), run_name="imported")


@pytest.mark.parametrize(("method", "least", "most"), [("l2", 0, 0), ("aofp", 0.9, 2), ("npn", 1, 3)])
def test_a_search_is_counted_as_it_runs(compute: dict[str, Any], method: str, least: float, most: float) -> None:
    torch.manual_seed(0)
    model = sc.build("zoo:small_cnn", num_classes=10).eval()
    batches = [(torch.randn(8, 3, 32, 32), torch.arange(8)) for _ in range(4)]
    settings = {} if method == "l2" else {"epochs": 1}
    chosen = resolve(method, **settings)
    cost = compute["search_cost"](model, batches[0][0][:1], chosen, sc.Budget(macs=0.5), batches, 0)
    assert least <= cost.epoch <= most
    assert 0 <= cost.once < 64  # of eight images a step


def test_a_teacher_costs_a_third_of_a_pass(compute: dict[str, Any]) -> None:
    assert compute["recovery_cost"](sc.Recover(share=0), 0.3, 100) == 0.3
    assert compute["recovery_cost"](sc.Recover(), 0.3, 100) == pytest.approx(0.3 + 1 / 3)
    assert compute["recovery_cost"](sc.Reconstruct(images=50), 0.3, 100) == pytest.approx(0.5 * 1.3 / 3)


def test_trace_times_by_depth_and_width() -> None:
    speed = runpy.run_path(str(FOLDER / "pruning_speed.py"), run_name="imported")
    zoo, own = sc.build("zoo:resnet20"), speed["resnet"](20)
    x = torch.randn(1, 3, 32, 32)
    assert sum(isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3) for m in own.modules()) == 19
    assert sc.count(own, x).macs == pytest.approx(sc.count(zoo, x).macs, rel=0.02)  # the shortcuts differ
    assert len(speed["resnet"](56)) - len(own) == 18
    table = speed["growth"]((8, 14), (1, 2), 1, iter(range(100)).__next__)
    rows = [list(column.cells) for column in table.columns]
    assert rows[:3] == [["ResNet-8", "ResNet-14", "ResNet-8"], ["×1", "×1", "×2"], ["7", "10", "7"]]


COVERAGE = """
import os, sys
from pathlib import Path
import torch
import coverage, coverage_table
from coverage_networks.network import Network
import secateurs as sc

def loop():
    while True: pass

builders = {
    "fine": lambda: (sc.build("zoo:small_cnn"), torch.randn(1, 3, 32, 32)),
    "dies": os.abort,
    "hangs": loop,
    "broken": lambda: (torch.nn.Linear(4, 4), torch.randn(1, 5)),
}
out = Path(sys.argv[1])
for name, build in builders.items():
    coverage.run(coverage.measure, Network("own", name, build), out / "own" / f"{name}.json", seconds=5, gigabytes=0)
page = out / "page.md"
page.write_text("By hand.\\n\\n## What has run\\n\\nold\\n")
(out / "listed.json").write_text('{"own": ["fine", "dies", "never"]}')
coverage_table.write_page(page, out)
print(page.read_text())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
def test_coverage_survives_networks_that_do_not(tmp_path: Path) -> None:
    paths = [str(FOLDER), str(FOLDER.parent / "src")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", COVERAGE, str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    rows = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "own").glob("*.json")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "fine": "ok", "dies": "crash", "hangs": "hang", "broken": "does not run"
    }  # fmt: skip
    fine = rows["fine"]
    assert fine["reachable"] > 0.9
    assert fine["difference"] < 1e-5
    assert fine["prunable"] == fine["groups"] - 1  # the outputs
    assert "| own | 3 | 1 | 0 | 1 | 1 | 0 | 100% |" in run.stdout
    assert run.stdout.startswith("By hand.\n\n## What has run\n\n20")
    assert "old" not in run.stdout
    assert "4 of 5 networks (own 4 of 5)" in run.stdout
    assert "Not run: never (own)." in run.stdout
    assert "**dies** (own): crash in step `build`" in run.stdout
