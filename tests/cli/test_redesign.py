"""`secateurs redesign`: the four networks, what is refused before any work, and runs that are killed anywhere."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateurs as sc
from secateurs.cli.recipes import RedesignOptions
from secateurs.training import CheckpointStore

NET = "zoo:small_cnn"
ROWS = ["base", "scaled", "re-design-pruned", "re-design-scratch"]


@pytest.fixture
def job(images: Path) -> tuple[object, ...]:
    quick = ("--batch-size", 16, "--epochs", 2, "--recover-epochs", 1)
    return ("redesign", NET, "--data", f"folder:{images}", *quick)


def test_four_networks(run, job, tmp_path):
    out = tmp_path / "r"
    ran = run(*job, "--method", "l1", "--out", out)
    assert ran.status == 0, ran.err
    assert [row for row in ROWS if f"\n{row} " in ran.out] == ROWS
    table = json.loads((out / "redesign.json").read_text())
    base, scaled, pruned, scratch = (table["rows"][name] for name in ROWS)
    assert base["macs"] == sc.count(sc.build(NET, num_classes=2), torch.zeros(1, 3, 32, 32)).macs
    assert scaled["macs"] > 1.4 * base["macs"]
    assert 0.98 * base["macs"] < pruned["macs"] <= base["macs"]
    assert (scratch["macs"], scratch["params"]) == (pruned["macs"], pruned["params"])
    assert all(row["top1"] is not None for row in table["rows"].values())
    assert set(table["widths"]) == {"stem.0", "plain.0", "conv1"}
    assert [w[:2] for w in table["widths"].values()] == [[16, 24], [32, 48], [40, 60]]
    assert all(kept <= wide for _, wide, kept in table["widths"].values())

    found, born = sc.load(out / "pruned"), sc.load(out / "from-scratch")
    for network in (found, born):
        assert sc.count(network, torch.zeros(1, 3, 32, 32)).macs == pruned["macs"]
        assert network.get_parameter("conv1.weight").shape[0] == table["widths"]["conv1"][2]
    assert not torch.equal(found.get_parameter("fc.weight"), born.get_parameter("fc.weight"))
    assert load_file(out / "scaled.safetensors")["conv1.weight"].shape[0] == 60
    assert load_file(out / "base.safetensors").keys() == sc.build(NET).state_dict().keys()
    assert not list(out.rglob("checkpoints"))
    card = json.loads((out / "from-scratch" / "card.json").read_text())
    assert [epoch["phase"] for epoch in card["history"]] == ["scratch"] * 2
    for name, row in (("pruned", pruned), ("from-scratch", scratch)):
        measured = run("evaluate", out / name, "--json")
        assert measured.status == 0, measured.err
        assert json.loads(measured.out)["measured"]["top1"] == pytest.approx(row["top1"])


@pytest.mark.parametrize(
    ("method", "stage"),
    [("l1", 1), ("l1", 3), ("l1", 5), ("l1", 6), ("aofp", 4), ("aofp", 5)],
)
def test_a_killed_run_goes_on_to_the_same_networks(run, job, tmp_path, monkeypatch, method, stage):
    """Checkpoints: two of the base, two of the scaled network, AOFP's, one of recovery, two from scratch."""
    job = (*job, "--method", method, *(("--set", "epochs=2", "--set", "theta=1") if method == "aofp" else ()))
    whole_run = run(*job, "--out", tmp_path / "whole")
    assert whole_run.status == 0, whole_run.err
    saved = 0

    def save(store, step, state):
        nonlocal saved
        path = whole(store, step, state)
        saved += 1
        if saved == stage:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch:
        whole = CheckpointStore.save
        patch.setattr(CheckpointStore, "save", save)
        ran = run(*job, "--out", tmp_path / "killed")
    assert ran.status == 130
    assert "--resume continues from there" in ran.err
    refused = run(*job, "--out", tmp_path / "killed")
    assert refused.status == 2
    assert "--resume" in refused.err
    ran = run(*job, "--out", tmp_path / "killed", "--resume")
    assert ran.status == 0, ran.err
    for part in ("base", "scaled", "pruned/model", "from-scratch/model"):
        a, b = (load_file(tmp_path / name / f"{part}.safetensors") for name in ("whole", "killed"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a), part
    a, b = (json.loads((tmp_path / name / "redesign.json").read_text()) for name in ("whole", "killed"))
    assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_from_base_goes_on_from_what_the_base_computes(run, images, tmp_path):
    """Without any training the scaled network is as good, or bad, as the base; from scratch it is another."""
    torch.manual_seed(5)
    save_file(sc.build(NET, num_classes=2).state_dict(), tmp_path / "w.safetensors")
    args = ("--weights", tmp_path / "w.safetensors", "--data", f"folder:{images}", "--method", "l1")
    args = (*args, "--epochs", 0, "--recover-epochs", 0)
    losses = {}
    for name, more in (("copy", ["--from-base"]), ("fresh", [])):
        ran = run("redesign", NET, *args, *more, "--out", tmp_path / name)
        assert ran.status == 0, ran.err
        rows = json.loads((tmp_path / name / "redesign.json").read_text())["rows"]
        losses[name] = rows["base"]["loss"], rows["scaled"]["loss"]
        assert not (tmp_path / name / "base.safetensors").exists()
        found, born = (sc.load(tmp_path / name / part) for part in ("pruned", "from-scratch"))
        due = sc.reinitialize(found, 0).state_dict()  # nothing of what was found but the widths
        assert all(torch.equal(x, due[key]) for key, x in born.state_dict().items())
    assert losses["copy"][0] == pytest.approx(losses["copy"][1], rel=1e-4)
    assert losses["fresh"][0] != pytest.approx(losses["fresh"][1], rel=1e-4)


def test_what_resume_does_with_a_finished_run_and_with_another_one(run, job, tmp_path):
    job, out = (*job, "--method", "l1"), ("--out", tmp_path / "r")
    assert run(*job, *out).status == 0
    ran = run(*job, *out, "--resume")
    assert ran.status == 0
    assert "finished already" in ran.err
    assert "re-design-scratch" in ran.out
    ran = run(*job, "--widen", 2, *out, "--resume")
    assert ran.status == 2
    assert "widen (1.5 then, 2 now)" in ran.err
    ran = run(*job, "--widen", 2, *out)
    assert ran.status == 2
    assert "holds an artifact" in ran.err
    ran = run(*job, "--widen", 2, *out, "--force")
    assert ran.status == 0, ran.err
    assert json.loads((tmp_path / "r" / "redesign.json").read_text())["widths"]["conv1"][1] == 80
    (tmp_path / "r" / "redesign.json").write_text("{}")
    damaged = run(*job, "--widen", 2, *out, "--resume")
    assert "redesign.json is not valid: field 'rows': field required" in damaged.err
    assert "--force starts over" in damaged.err


@pytest.mark.parametrize(
    "name", ["base.safetensors", "redesign.json", "scratch", "pruned/plan.json", "from-scratch/model.safetensors"]
)
def test_what_somebody_else_wrote_is_never_replaced(run, job, tmp_path, name):
    mine = tmp_path / "r" / name / "mine.txt" if name == "scratch" else tmp_path / "r" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    for flag in ((), ("--force",), ("--resume",)):
        ran = run(*job, "--method", "l1", "--out", tmp_path / "r", *flag)
        assert ran.status == 2
        assert "which this run did not write" in ran.err
    assert [p for p in (tmp_path / "r").rglob("*") if p.is_file()] == [mine]


CONSTANT = '''
import torch
from torch import nn

class Net(nn.Module):
    """A slice that is all there is, as long as nothing grows."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3), nn.Linear(8, num_classes)

    def forward(self, x):
        return self.c(self.b(self.a(x))[:, :8].mean((2, 3)))
'''


# What is wrong is a file or the network, and not the value of an option.
NETWORK = ("there is no such file", "The widened network does not run", "A larger factor or --scope all may help")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("zoo:smal_cnn",), "Did you mean small_cnn"),
        (("--widen", "1"), "a factor above 1"),
        (("--widen", "0.5"), "a factor above 1"),
        (("--widen", "1.001"), "A larger factor or --scope all may help"),
        (("--macs", "0.001"), "The lowest figure that can be met is --macs 0.0"),
        (("--macs", "3"), "(--macs is a fraction of the base's MACs up to 1, and an absolute number above.)"),
        (("--macs", "-1"), "is not a valid budget"),
        (("--macs", "1.5"), "--macs 1.5 is not a valid budget"),
        (("--macs", "1e12"), "there is nothing to prune"),
        (("--method", "eprunr"), "Did you mean epruner"),
        (("--set", "foo=1"), "no such setting"),
        (("--weights", "nowhere.safetensors"), "there is no such file"),
        (("--epochs", "-1"), "--epochs -1: the number of epochs must be 0 or more"),
        (("--scratch-epochs", "nan"), "--scratch-epochs nan"),
        (("--lr", "-1"), "--lr -1"),
        (("--recover-lr", "-1"), "--recover-lr -1"),
        (("--track", "nobody"), "--track nobody is not available"),
        (("--resume", "--force"), "mutually exclusive"),
        (("python:constant:Net",), "The widened network does not run"),
    ],
)
def test_refused_before_any_work(run, images, tmp_path, monkeypatch, tokens, message):
    monkeypatch.chdir(tmp_path)
    Path("constant.py").write_text(CONSTANT)
    defaults = {"--data": f"folder:{images}", "--method": "l1", "--out": tmp_path / "r"}
    rest = [x for k, v in defaults.items() if k not in tokens for x in (k, v)]
    model = () if ":" in tokens[0] else (NET,)
    ran = run("redesign", *model, *tokens, *rest)
    assert ran.status == (1 if message in NETWORK else 2)
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_the_lowest_figure_it_tells_can_be_met(run, images, tmp_path):
    args = ("redesign", NET, "--data", f"folder:{images}", "--method", "l1", "--epochs", 0, "--recover-epochs", 0)
    ran = run(*args, "--macs", 0.01, "--out", tmp_path / "r")
    lowest = re.search(r"can be met is --macs (0\.\d+)", ran.err)
    assert lowest, ran.err
    ran = run(*args, "--macs", lowest[1], "--out", tmp_path / "r")
    assert ran.status == 0, ran.err
    rows = json.loads((tmp_path / "r" / "redesign.json").read_text())["rows"]
    assert rows["re-design-pruned"]["macs"] <= float(lowest[1]) * rows["base"]["macs"]


def test_the_options_are_the_fields_of_the_training() -> None:
    """With the same defaults and types, so that neither is forgotten when the other gets one."""
    options, training = (
        {f.name: (f.type, f.default) for f in fields(c)} for c in (RedesignOptions, sc.RedesignTraining)
    )
    options["schedule"] = options.pop("lr_schedule")
    assert options == training
    given = RedesignOptions(epochs=7, recover_lr=0.5, precision="bf16")
    own = asdict(given)
    own["schedule"] = own.pop("lr_schedule")
    assert asdict(given.training()) == own
