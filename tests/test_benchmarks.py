"""Benchmarks are run by hand; what they import has to be there all the same."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import secateurs as sc

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


def test_results_of_other_weights_and_data_are_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    accuracy = runpy.run_path(str(FOLDER / "accuracy.py"), run_name="imported")
    weights = tmp_path / "w"
    names = []
    for content, data in ((b"a", "folder:x"), (b"a", "folder:x"), (b"b", "folder:x"), (b"a", "folder:y")):
        weights.write_bytes(content)
        line = f"accuracy --network resnet56 --weights {weights} --data {data} --method l2-stripes --macs 0.5 --out {tmp_path}"
        monkeypatch.setattr(sys, "argv", line.split())
        args = accuracy["arguments"]()
        one = accuracy["Accuracy"](args)
        (case,) = accuracy["cases"](args)
        names.append(one.file(case).name)
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert one.share(accuracy["Case"]("aofp", 0.5, "finetune", 0)) == sc.AOFP.share
    assert one.share(accuracy["Case"]("aofp search=0.1", 0.5, "finetune", 0)) == 0.1


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
