from __future__ import annotations

import json
import shlex
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file

import secateurs as sc
from secateurs.cli.compare import _budgets
from secateurs.methods import registry
from secateurs.studies.comparison import comparing, read_comparison
from secateurs.studies.comparison.command import command
from secateurs.studies.comparison.outcomes import Outcome
from tests.studies.comparing import tiny

pytest.importorskip("sklearn")


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that are named by `python:` are known from then on, which other tests should not see."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


NET = "python:tests.studies.comparing:tiny"
DATA = ("--data", "digits", "--normalize", "none", "--image-size", 8, "--batch-size", 64)
JOB = ("compare", NET, *DATA, "--seeds", 1, "--epochs", 0.2, "--macs", 0.5)


def test_a_table_its_files_and_progress(run, tmp_path):
    out = tmp_path / "r"
    methods = ("--method", "l2", "--method", "aofp theta=0.02 search=0.5")
    ran = run(*JOB, *methods, "--budget", "macs=0.7,params=0.6", "--out", out)
    assert ran.status == 0, ran.err
    found = read_comparison(out)
    assert [(row.method, row.budget) for row in found.rows] == [
        ("l2", "macs=0.5"), ("aofp theta=0.02 search=0.5", "macs=0.5"),
        ("l2", "macs=0.7 params=0.6"), ("aofp theta=0.02 search=0.5", "macs=0.7 params=0.6"),
    ]  # fmt: skip
    assert ran.out.startswith(found.table())
    assert f"saved to {out}: comparison.json, comparison.csv, comparison.html" in ran.out
    assert "2 methods compared" in (out / "comparison.html").read_text()
    assert run("report", out).out.startswith(f"{out / 'comparison.html'}: 4 cells, ")
    again = run("report", out, "--out", tmp_path / "page.html")
    assert again.out.startswith(f"{tmp_path / 'page.html'}: 4 cells, ")
    assert (tmp_path / "page.html").read_text() == (out / "comparison.html").read_text()
    lines = ran.err.splitlines()
    assert lines[0] == "measuring what the cells take: 4 short runs"
    assert lines[1].startswith("short run 1/4: l2, macs=0.5, about ")
    assert [line.partition(":")[0] for line in lines[1:5]] == [f"short run {i}/4" for i in (1, 2, 3, 4)]
    assert lines[5].startswith("4 cells of 0.2 training passes over 1,438 images: about ")
    assert lines[6].startswith("l2, macs=0.5: its search, cut and calibration take 0.926 of 0.2 passes")
    (first,) = [line for line in lines if line.startswith("[1/4]")]
    assert first.startswith("[1/4] l2, macs=0.5, seed 0: top-1 % ")
    assert first.endswith("left")
    assert len((out / "comparison.csv").read_text().splitlines()) == 5
    assert json.loads((out / "comparison.json").read_text())["settings"]["epochs"] == 0.2
    refused = run(*JOB, *methods, "--out", out)
    assert refused.status == 2
    assert "--resume continues it, --force replaces it" in refused.err
    again = run(*JOB, *methods, "--budget", "macs=0.7,params=0.6", "--out", out, "--resume")
    assert again.out.splitlines()[:-1] == ran.out.splitlines()[:-1]
    assert again.err.splitlines() == ["4 of 4 cells are done already"]


def test_the_page_has_the_command_that_makes_the_same_comparison(run, tmp_path, monkeypatch):
    captured = []

    class Captured:
        def __init__(self, crew: Any, cells: Any, folder: Any, settings: Any, *_: Any) -> None:
            captured.append(([cell.record() for cell in cells], json.loads(json.dumps(settings))))
            self.cells = cells

        def run(self) -> None:
            raise sc.SecateursError("not run")

    monkeypatch.setattr(comparing, "Running", Captured)
    weights = tmp_path / "w.safetensors"
    save_file(tiny().state_dict(), weights)
    more = (
        "--budget",
        "macs=0.7,params=0.6",
        "--exclude",
        "0",
        "--min-channels",
        "4=3",
        "--scope",
        "all",
        "--unit",
        "steps",
    )
    more += ("--recover", "reconstruct images=64 + finetune lr=0.05 share=0", "--search", 0.4, "--num-classes", 10)
    for extra in ((), (*more, "--weights", weights), ("--recover", "none", "--task", "classification")):
        methods = ("--method", "l2", "--method", "aofp theta=0.02 search=0.5")
        assert run(*JOB, *methods, *extra, "--out", tmp_path / "r").err == "secateurs: not run\n"
        cells, settings = captured.pop()
        budgets = ["macs=0.5", *["macs=0.7 params=0.6"] * ("--budget" in extra)]
        named = [Outcome(method=m, budget=b, seed=0) for b in budgets for m in methods[1::2]]
        text = command(settings, named)
        note, _, line = text.rpartition("secateurs compare")
        assert (settings["weights"] or "") in note
        words = [
            str(weights) if word == "WEIGHTS.safetensors" else word for word in shlex.split(line.replace("\\\n", ""))
        ]
        assert run("compare", *words).err == "secateurs: not run\n"
        assert captured.pop() == (cells, settings)
    assert command(settings, [Outcome(method="l2", budget="macs=0.5", seed=3)]) == ""
    assert command({**settings, "module": True}, named) == command({}, ()) == ""
    latency = {"target": {"runtime": "torch-cpu", "threads": 2}}
    timed = Outcome(method="l2", budget="latency=0.6 target=torch-cpu, 2 threads", seed=0, figures={"latency": latency})
    assert "--budget latency=0.6,target=torch-cpu,threads=2" in command(settings, [timed])


def test_a_cell_that_fails_is_told_in_the_end(run, tmp_path):
    broken = "python:tests.studies.comparing:Fails"
    ran = run(*JOB, "--method", broken, "--method", "l2", "--out", tmp_path / "r")
    assert ran.status == 1
    assert f"{broken}, macs=0.5, seed 0: RuntimeError: no <b>scores</b> here" in ran.out
    assert "saved to" in ran.out
    assert ran.err.splitlines()[-1] == "secateurs: 1 of 2 cells failed or were not run: --resume runs them again."


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("--method", "l3"), "There is no method 'l3'. Did you mean l2"),
        (("--time-limit", 1e-5), "which is longer than --time-limit 1e-05. Take fewer methods, budgets or seeds"),
        (("--macs", 0.001), "The lowest budget that can be met is --macs "),
        (("--macs", 1.5), "--macs 1.5 is not a valid budget: a fraction is at most 1.0"),
        (("--params", 1.5), "--params 1.5 is not a valid budget: a fraction is at most 1.0"),
        (
            ("--budget", "macs=1.5"),
            "--budget macs=1.5: macs=1.5 is not a valid budget: a fraction is at most 1.0",
        ),
        (("--budget", "macs=half"), "--budget macs=half: macs='half' is not a valid budget"),
        (("--budget", "macs"), "--budget macs: write key=value"),
        (("--budget", "mac=0.5"), "Budget has no mac. Did you mean macs"),
        (
            ("--budget", "latency=0.6,batch=32"),
            "batch is a setting of a target, and none is named: add target=torch-cpu",
        ),
        (("--budget", "macs=50%"), "--budget macs=50%: write macs=0.5."),
        (("--macs", "0.5,0.3"), "--macs 0.5,0.3: give the option several times, --macs 0.5 --macs 0.3."),
        (("--macs", "50%"), "--macs 50%: write it as a fraction, --macs 0.5."),
        (("--macs", "0,5"), "--macs 0,5: write --macs 0.5."),
        (("--ratio", "a=0,5"), "--ratio a=0,5: write --ratio a=0.5."),
        (("--set", "theta=0.02"), 'settings follow the method, --method "pff preset=paper lr=0.01".'),
        (("--method", "l2,npn"), "'l2,npn' names several methods: give --method l2 --method npn."),
        (
            ("--method", "l2 cost=1, pff preset=paper"),
            "names several methods: give --method 'l2 cost=1' --method 'pff preset=paper'.",
        ),
        (("--method", "l2 rank=layer"), "secateurs: rank=layer: there is no such setting. l2's settings are"),
        (("--method", "pff preset=nope"), "secateurs: preset=nope is not a preset of pff"),
        (("--method", "epruner beta=0.5"), "beta=0.5 and budget are mutually exclusive"),
        (("--recover", "finetune:10"), "recover: finetune has its length set, and in a comparison the compute"),
        (("--recover", "finetune steps=10"), "recover: finetune has its length set"),
        (("--recover", "reconstruct,finetune lr=-1"), "secateurs: lr=-1: must be greater than 0"),
        (("--recover", "finetun"), "There is no recovery 'finetun'. Did you mean finetune?"),
        (("--cpus", 2), "--cpus and --gpus are what a cell needs of a Ray cluster"),
        (("--seeds", 0), "--seeds"),
        (("--search", 2), "--search 2 must be a share of the compute"),
        (("--processes", 2, "--workers", "ray"), "--processes 2 is for --workers local: Ray measures"),
    ],
)
def test_refused_before_any_work(run, tmp_path, monkeypatch, tokens, message):
    monkeypatch.setattr("secateurs.studies.comparison.bench.Bench.measure", lambda *_: pytest.fail("work was done"))
    ran = run(*JOB, "--method", "l2", *tokens, "--out", tmp_path / "r")
    assert ran.status in (1, 2)
    assert message in ran.err
    assert len([line for line in ran.err.splitlines() if not line.startswith(("measuring what", "short run"))]) == 1
    assert not (tmp_path / "r" / "comparison.json").exists()


def test_budgets_of_time_have_a_target_with_settings():
    text = "latency=0.6,macs=0.5,target=onnxruntime,batch=32,threads=1", "latency=0.6,target=onnxruntime"
    one, other = _budgets((), (), text)
    assert one == sc.Budget(latency=0.6, macs=0.5, target=sc.Target("onnxruntime", batch=32, threads=1))
    assert other == sc.Budget(latency=0.6, target="onnxruntime")


def test_without_ray_that_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setattr("secateurs.studies.comparison.cluster.find_spec", lambda name: None)
    ran = run(*JOB, "--workers", "ray", "--out", tmp_path / "r")
    assert ran.status == 2
    assert "--workers ray needs Ray: pip install 'secateurs[cluster]'" in ran.err


def test_a_cluster_whose_machines_are_too_small(run, tmp_path, monkeypatch):
    ray = SimpleNamespace(
        is_initialized=lambda: True, cluster_resources=dict, put=lambda packed: packed,
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}],
    )  # fmt: skip
    monkeypatch.setattr("secateurs.studies.comparison.cluster.library", lambda: ray)
    ran = run(*JOB, "--workers", "ray", "--cpus", 64, "--gpus", 1, "--out", tmp_path / "r")
    assert ran.status == 2
    assert "what a cell needs (--cpus 64, --gpus 1): ask for less, or add a node." in ran.err


def test_without_torch_pruning_that_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setattr("secateurs.studies.comparison.peers.find_spec", lambda name: None)
    ran = run(*JOB, "--method", "torch-pruning:group-l2", "--out", tmp_path / "r")
    assert ran.status == 2
    assert "torch-pruning is not installed: pip install torch-pruning, or leave this method out." in ran.err


def test_weights_are_asked_for(run, tmp_path):
    ran = run("compare", "zoo:small_cnn", "--data", "digits", "--out", tmp_path / "r")
    assert ran.status == 2
    assert "zoo:small_cnn without --weights is untrained" in ran.err


def test_options_in_a_file(run, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({"model": NET, "method": ["l2", "aofp theta=0.02"], "macs": [0.5, 0.3], "out": "o"}))
    ran = run("compare", "--config", file, "--print-config")
    assert ran.status == 0, ran.err
    found = yaml.safe_load(ran.out)
    assert found["method"] == ["l2", "aofp theta=0.02"]
    assert found["macs"] == [0.5, 0.3]
    assert sc.compare.__name__ == "compare"
