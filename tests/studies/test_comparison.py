"""Comparisons on this machine: the same compute for all, and nothing lost by whatever ends a cell."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods import registry
from secateurs.studies.comparison import read_comparison
from secateurs.studies.comparison.bench import Bench
from secateurs.studies.comparison.compute import (
    width_of,
)
from secateurs.studies.comparison.contestants import Contestant, recipes
from secateurs.studies.comparison.crew import devices
from secateurs.studies.comparison.outcomes import Spread
from secateurs.studies.comparison.work import Network, Work
from secateurs.tasks.purpose import Purpose
from tests.studies.comparing import DATA, DEAD, MODEL, batches, run, tiny

pytest.importorskip("sklearn")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that are named by `python:` are known from then on, which other tests should not see."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> tuple[sc.Comparison, Path]:
    folder = tmp_path_factory.mktemp("eight") / "run"
    return run(folder), folder


# -- what a comparison is ----------------------------------------------------------------------------------------------


def test_eight_cells_with_the_same_compute(eight: tuple[sc.Comparison, Path]) -> None:
    found, folder = eight
    assert [(row.method, row.budget, row.seeds) for row in found.rows] == [
        ("l2", "macs=0.6", 2), ("aofp", "macs=0.6", 2), ("l2", "macs=0.4", 2), ("aofp", "macs=0.4", 2)
    ]  # fmt: skip
    whole = sc.count(tiny(), torch.randn(1, 3, 8, 8))
    assert (found.original.macs, found.original.params) == (whole.macs, whole.params)
    for row in found.rows:
        early = 0.1 if row.method == "aofp" else 0.01  # a search that has met its budget ends
        assert 2.0 - early < row.passes.mean < 2.01
        assert row.macs.mean <= float(row.budget.removeprefix("macs=")) * whole.macs
        assert row.recovered.sd is not None
        assert row.recovered.mean > row.cut.mean
    cells = {(cell.method, cell.budget, cell.seed): cell.figures for cell in found.cells}
    one, other = (cells["l2", "macs=0.6", seed]["recovered"]["loss"] for seed in (0, 1))
    assert one != other
    values = [cells["aofp", "macs=0.4", seed]["recovered"]["top1"] for seed in (0, 1)]
    row = found.rows[3]
    assert row.recovered == Spread.of(values)
    assert row.recovered.mean == pytest.approx(sum(values) / 2)
    assert row.recovered.sd == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert read_comparison(folder).table() == found.table()


def test_the_table(eight: tuple[sc.Comparison, Path], tmp_path: Path) -> None:
    assert "the seeds made no difference" not in eight[0].table()
    found, folder = eight
    lines = found.table().splitlines()
    assert lines[0].split("  ")[0] == "method"
    assert lines[2].startswith("original")
    assert len(lines) == 2 + 1 + 4 + 1 + len(found.notes)
    assert f"{found.rows[0].recovered.mean:.2f} ± {found.rows[0].recovered.sd:.2f}" in lines[3]
    assert str(found) == found.table()
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert len(rows) == 8
    assert float(rows[0]["recovered"]) == found.cells[0].figures["recovered"]["top1"]
    assert (folder / "comparison.csv").read_text() == found.to_csv()
    saved = json.loads(found.to_json(tmp_path / "c.json"))
    assert saved["rows"][0]["recovered"]["mean"] == found.rows[0].recovered.mean
    assert json.loads((tmp_path / "c.json").read_text()) == saved
    assert found._repr_html_().count("<tr>") == 6


def test_only_measured_latencies_have_a_column(eight: tuple[sc.Comparison, Path]) -> None:
    assert "time" not in eight[0].table().splitlines()[0]
    assert [cell.limits for cell in read_comparison(eight[1]).cells[:3:2]] == [{"macs": 0.6}, {"macs": 0.4}]


def test_the_frontier(eight: tuple[sc.Comparison, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found, folder = eight
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")
    text = found.plot(tmp_path / "f.svg").read_text()
    assert text.startswith("<?xml")


def test_costs_are_those_of_one_image_whatever_the_example_inputs_hold() -> None:
    model = tiny()
    one, two = (
        sc.compare(
            model, torch.zeros(n, 3, 8, 8), methods=["l2"], budgets=[0.5], seeds=1, data=batches(), epochs=1,
            report=lambda line: None,
        )
        for n in (1, 2)
    )  # fmt: skip
    assert one.original.macs == two.original.macs == sc.count(model, torch.zeros(1, 3, 8, 8)).macs
    assert one.rows[0].macs == two.rows[0].macs
    assert two.rows[0].macs.mean <= 0.5 * two.original.macs
    assert width_of(sc.Budget(macs=50), Bench(
        Work(Network(module=model), torch.zeros(2, 3, 8, 8), batches(), Purpose(), (), epochs=1.0)
    ).whole, "macs") == pytest.approx(25 / one.original.macs)  # fmt: skip


def test_what_a_forward_takes_in_training() -> None:
    class Taught(nn.Sequential):
        def forward(self, x: Tensor, targets: Tensor | None = None) -> Any:
            return super().forward(x) if targets is None else F.cross_entropy(super().forward(x), targets)

    found = sc.compare(
        Taught(*tiny()), torch.zeros(1, 3, 8, 8), methods=["l2"], budgets=[0.5], seeds=1, data=batches(), epochs=1,
        step=_taught, loss=F.cross_entropy, example_targets=(torch.zeros(1, dtype=torch.long),), report=lambda line: None,
    )  # fmt: skip
    assert found.rows[0].failed == ()
    with pytest.raises(sc.TraceError, match="does not run in training mode"):
        sc.compare(
            Taught(*tiny()), torch.zeros(1, 3, 8, 8), methods=["l2"], budgets=[0.5], seeds=1, data=batches(), epochs=1,
            step=_taught, loss=F.cross_entropy, example_targets=(torch.zeros(1, 7),), report=lambda line: None,
        )  # fmt: skip


def _taught(model: nn.Module, batch: Any) -> Tensor:
    loss: Tensor = model(*batch)
    return loss


# -- what ends a cell --------------------------------------------------------------------------------------------------


def test_killed_and_resumed_it_is_the_same_table(eight: tuple[sc.Comparison, Path], tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    code = f"from tests.studies.comparing import *; killed_in_the_middle_of_a_cell({str(folder)!r}, 4)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == -9, done.stderr
    kept = {path: path.read_bytes() for path in folder.glob("cells/*.json")}
    assert len(kept) == 4
    assert len([cell for cell in read_comparison(folder).cells if cell.failed == "not run"]) == 4
    with pytest.raises(sc.ConfigError, match=r"holds a comparison: resume=True continues it"):
        run(folder)
    told = (
        r"another comparison: it differs in epochs \(2 then, 3 now\)\. To resume it, use the same settings as before\. "
    )
    with pytest.raises(
        sc.ConfigError,
        match=told + r"Otherwise, choose another folder=…, or replace it with overwrite=True\.",
    ):
        run(folder, epochs=3.0, resume=True)
    lines: list[str] = []
    found = run(folder, resume=True, report=lines.append)
    assert found.table() == eight[0].table()
    assert found.to_csv().count("\n") == 9
    assert {path: path.read_bytes() for path in kept} == kept
    assert sum(line.startswith("[") for line in lines) == 4
    assert not list(folder.glob("cells/*.work"))
    again: list[str] = []
    assert run(folder, resume=True, report=again.append).table() == found.table()
    assert again == ["8 of 8 cells are done already"]


def test_other_methods_are_added(tmp_path: Path) -> None:
    run(tmp_path, methods=["l2"], budgets=[0.5], seeds=1, epochs=0.2)
    lines: list[str] = []
    found = run(tmp_path, methods=["l1"], budgets=[0.5], seeds=1, epochs=0.2, resume=True, report=lines.append)
    assert [cell.method for cell in found.cells] == ["l1"]
    assert [cell.method for cell in read_comparison(tmp_path).cells] == ["l1", "l2"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "comparison.csv").read_text())))
    assert [row["method"] for row in rows] == ["l1", "l2"]
    run(tmp_path, methods=["l1"], budgets=[0.5], seeds=1, epochs=0.1, overwrite=True)
    assert [cell.method for cell in read_comparison(tmp_path).cells] == ["l1"]


def test_functions_that_return_batches() -> None:
    held = batches()
    data = sc.Data(lambda: iter(held.train), lambda: iter(held.val))
    options: dict[str, Any] = {"methods": ["l2", "aofp"], "budgets": [0.5], "seeds": 1, "epochs": 1.0}
    functions, lists = (run(None, data=each, **options) for each in (data, held))
    assert [row.failed for row in functions.rows] == [(), ()]
    assert [(row.recovered, row.passes) for row in functions.rows] == [
        (row.recovered, row.passes) for row in lists.rows
    ]


def test_a_cell_that_fails_is_a_row(tmp_path: Path) -> None:
    broken = "python:tests.studies.comparing:Fails"
    found = run(tmp_path, methods=[broken, "l2"], budgets=[0.5], seeds=1, epochs=0.2)
    failed, fine = found.rows
    assert failed.failed == ("seed 0: RuntimeError: no <b>scores</b> here",)
    assert (failed.seeds, failed.recovered) == (0, None)
    assert fine.recovered is not None
    assert "no <b>scores</b> here" in found.table()
    assert "no &lt;b&gt;scores&lt;/b&gt; here" in found.html()
    lines: list[str] = []
    run(tmp_path, methods=[broken, "l2"], budgets=[0.5], seeds=1, epochs=0.2, resume=True, report=lines.append)
    assert sum("failed: RuntimeError" in line for line in lines) == 1  # it is tried again
    assert not any("l2" in line for line in lines)


def test_processes_measure_the_same_and_a_lost_one_costs_nothing(
    eight: tuple[sc.Comparison, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEAD, str(tmp_path / "dead"))
    names = ["l2", *(f"python:tests.studies.comparing:{name}" for name in ("Dies", "Fails"))]
    found = run(tmp_path / "run", methods=names, budgets=[0.6], seeds=1, processes=2)
    by_name = {cell.method.rpartition(":")[2]: cell for cell in found.cells}
    one = next(cell for cell in eight[0].cells if (cell.method, cell.budget, cell.seed) == ("l2", "macs=0.6", 0))
    assert by_name["l2"].figures["recovered"] == one.figures["recovered"]
    assert (tmp_path / "dead").exists()
    assert by_name["Dies"].figures is not None
    assert "no <b>scores</b>" in str(by_name["Fails"].failed)


@pytest.mark.slow
def test_a_cell_that_ends_its_process_every_time_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateurs.studies.comparison.crew.ATTEMPTS", 2)  # a process each, which imports PyTorch
    deadly = "python:tests.studies.comparing:AlwaysDies"
    found = run(None, methods=[deadly, "l2"], budgets=[0.6], seeds=1, epochs=0.2, processes=2)
    assert found.cells[0].failed == "its process ended by SIGKILL, 2 times: is there enough memory?"
    assert found.cells[1].figures is not None


def test_a_module_travels_between_processes_in_memory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, options = (
        tiny(),
        {"budgets": [0.5], "methods": ["l2"], "seeds": 2, "epochs": 0.5, "report": lambda line: None},
    )
    here = sc.compare(model, data=batches(), **options)
    there = sc.compare(model, data=batches(), processes=2, **options)
    assert there.table() == here.table()
    assert "the seeds made no difference to l2, macs=0.5: nothing is drawn" in here.table()


def test_a_metric_of_the_users_own(tmp_path: Path) -> None:
    def margin(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.topk(2).values.diff().abs().mean()

    torch.manual_seed(0)
    options: dict[str, Any] = {
        "methods": ["l2"],
        "budgets": [0.5],
        "seeds": 1,
        "epochs": 0.5,
        "metrics": {"margin": margin},
    }
    found = sc.compare(tiny(), data=batches(), report=lambda line: None, folder=tmp_path, **options)
    assert (found.figure, found.heading) == ("margin", "margin")
    assert found.rows[0].recovered.mean == found.cells[0].figures["recovered"]["metrics"]["margin"]
    assert "recovered: margin" in found.table()
    assert read_comparison(tmp_path).table() == found.table()


@pytest.mark.parametrize(
    ("device", "processes", "expected"),
    [
        (None, None, ["cuda:0", "cuda:1"]), (None, 3, ["cuda:0", "cuda:1", "cuda:0"]), ("cuda", None, ["cuda"]),
        ("cuda", 2, ["cuda:0", "cuda:1"]), ("cuda:1", 2, ["cuda:1"] * 2), ("cpu", None, ["cpu"]), ("cpu", 2, ["cpu"] * 2),
    ],
)  # fmt: skip
def test_a_process_for_each_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str | None, processes: int | None, expected: list[str]
) -> None:
    monkeypatch.delenv("SECATEURS_DEVICE")
    monkeypatch.setattr("secateurs.studies.comparison.crew.accelerator", lambda: torch.device("cuda:0"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert devices(device, processes) == expected


def test_one_process_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateurs.studies.comparison.crew.accelerator", lambda: None)
    assert devices(None, None) == [None]


# -- what is said before ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"methods": ["l3"]}, sc.ConfigError, "There is no method 'l3'. Did you mean l2"),
        ({"methods": []}, sc.ConfigError, "must be a list that is not empty"),
        ({"methods": ["l2", "l2"]}, sc.ConfigError, "The method l2 is given twice"),
        ({"methods": ["aofp theta"]}, sc.ConfigError, "'aofp theta': a setting of aofp is written key=value"),
        ({"methods": ["aofp search=2"]}, sc.ConfigError, "search=2 must be a share"),
        ({"methods": ["torch-pruning:group-l3"]}, sc.ConfigError, "There is no method 'torch-pruning:group-l3'"),
        ({"budgets": [0.001]}, sc.BudgetError, "The lowest budget that can be met is"),
        ({"budgets": ["half"]}, sc.ConfigError, "budget"),
        ({"seeds": 0}, sc.ConfigError, "seeds=0"),
        ({"seeds": [0.5]}, sc.ConfigError, "seeds=[0.5]"),
        ({"epochs": 0}, sc.ConfigError, "passes above 0"),
        ({"inputs": torch.zeros(1, 4, 8, 8)}, sc.TraceError, "expects (N, 3, H, W) but gets (1, 4, 8, 8)"),
        ({"data": None}, sc.ConfigError, "A comparison needs data"),
        ({"data": sc.Data(batches().train)}, sc.DataError, "pass validation data"),
        ({"data": "python:tests.studies.comparing:nothing"}, sc.SpecError, "has no 'nothing'"),
        ({"workers": "slurm"}, sc.ConfigError, "workers='slurm' is not valid"),
        ({"resources": {"num_cpus": 1}}, sc.ConfigError, "resources are for workers='ray'"),
        (
            {"workers": "ray", "resources": {"gpu": 1}},
            sc.ConfigError,
            "resources has no gpu: give num_cpus, num_gpus, memory",
        ),
        (
            {"workers": "ray", "resources": {"num_cpus": "4"}},
            sc.ConfigError,
            "num_cpus='4' must be a number, 0 or more",
        ),
        ({"workers": "ray", "processes": 2}, sc.ConfigError, "processes=2 is for workers='local'"),
        ({"workers": "ray", "resources": {"num_cpus": 0}}, sc.ConfigError, "a cell needs CPUs or GPUs"),
        ({"recover": sc.Recover(epochs=5)}, sc.ConfigError, "leave its epochs and steps out"),
        ({"recover": "finetun"}, sc.ConfigError, "There is no recovery 'finetun'. Did you mean finetune"),
        ({"minutes": 1e-6}, sc.ConfigError, "which is longer than minutes=1e-06"),
        (
            {"data": sc.Data(b for b in batches().train), "processes": 2},
            sc.ConfigError,
            "The data cannot be sent to other processes",
        ),
    ],
)
def test_refused_before_any_work(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bench, "measure", lambda *_: pytest.fail("work was done"))
    with pytest.raises(error) as caught:
        run(tmp_path / "run", **{"methods": ["l2"], **options})
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_spec_without_weights_is_refused() -> None:
    with pytest.raises(sc.ConfigError, match="zoo:small_cnn without weights=… is untrained"):
        sc.compare("zoo:small_cnn", data=DATA)


def test_a_comparison_on_other_data_is_not_resumed(tmp_path: Path) -> None:
    settings = {"methods": ["l2"], "budgets": [0.5], "seeds": 1, "epochs": 1, "report": lambda line: None}
    model, given = tiny(), batches()
    sc.compare(model, data=given, folder=tmp_path / "c", **settings)
    sc.compare(model, data=batches(), folder=tmp_path / "c", resume=True, **settings)
    other = sc.Data([(inputs.flip(0), targets) for inputs, targets in given.train], given.val)
    with pytest.raises(sc.ConfigError, match=r"is another comparison: it differs in data\.train\.sha256"):
        sc.compare(model, data=other, folder=tmp_path / "c", resume=True, **settings)


def test_what_somebody_else_wrote_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "mine.json").write_text("mine")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(sc.ConfigError, match="holds cells, which this comparison did not write"):
            run(tmp_path, **options)
    (tmp_path / "cells" / "mine.json").rename(tmp_path / "comparison.json")
    with pytest.raises(sc.ArtifactError, match="not valid JSON"):
        run(tmp_path, overwrite=True)
    assert (tmp_path / "comparison.json").read_text() == "mine"


def test_recoveries_as_text() -> None:
    rebuild, tune = recipes("reconstruct images=64 + finetune lr=0.05 share=0")
    assert rebuild == sc.Reconstruct(images=64)
    assert tune == sc.Recover(lr=0.05, share=0)
    assert recipes("none") == []


def test_contestants_by_their_names() -> None:
    one = Contestant.of("pff preset=paper search=0.2")
    assert one.search == 0.2
    assert one.method == sc.PFF.preset("paper")
    assert Contestant.of(sc.AOFP(theta=0.02)).label == "aofp theta=0.02"
    assert Contestant.of("aofp theta=0.02").record() == Contestant.of(sc.AOFP(theta=0.02)).record()
    with pytest.raises(sc.ConfigError, match="is a class"):
        Contestant.of(sc.AOFP)
    assert MODEL.startswith("python:")
