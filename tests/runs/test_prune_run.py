"""`PruneRun` and `RedesignRun` from Python: what `secateurs prune` and `redesign` do, with the same folder and record."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.cli import main
from secateurs.errors import ConfigError, Setting
from secateurs.runs import NetworkSpec, RunFolder, RunResult
from secateurs.training import CheckpointStore
from tests.training.helpers import batches

NET = "zoo:small_cnn"


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip


def pruning(folder: Path, model: Any = None, **settings: Any) -> sc.PruneRun:
    """A run on a module and data of one's own, on the CPU."""
    settings = {"method": "l1", "budget": sc.Budget(macs=0.5), "device": "cpu", **settings}
    return sc.PruneRun(classifier() if model is None else model, sc.Data(batches(3), batches(1)), folder, **settings)


RECOVER = sc.Recover(epochs=2, lr=0.01, precision="fp32")


def test_a_module_with_data_of_ones_own(tmp_path: Path) -> None:
    lines: list[str] = []
    network = classifier()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    result = pruning(tmp_path / "r", network, recover=RECOVER, log=lines.append).start()
    assert result.after.macs <= 0.5 * result.before.macs
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert any("cut and verified" in line for line in lines)
    assert [name for name, _ in result.networks][:2] == ["before", "after the cut"]
    card = json.loads((tmp_path / "r" / "card.json").read_text())
    assert card["after"] == {"macs": result.after.macs, "params": result.after.params, "top1": result.after.top1,
                             "top5": result.after.top5, "loss": result.after.loss, "metrics": {}}  # fmt: skip
    assert card["recover"]["epochs"] == 2
    assert card["seconds"] == result.seconds


def test_without_validation_data(tmp_path: Path) -> None:
    def run(name: str, **settings: Any) -> sc.PruneRun:
        settings = {"method": "l1", "budget": sc.Budget(macs=0.5), "device": "cpu", **settings}
        return sc.PruneRun(classifier(), sc.Data(batches(3)), tmp_path / name, **settings)

    result = run("task", task="classification", seed=np.int64(3)).start()
    assert result.after.top1 is None
    for check in (run("own", metrics={"mine": max}).check, run("own", metrics={"mine": max}).start):
        with pytest.raises(sc.ConfigError, match=r"metrics=\('mine',\) are measured on validation data"):
            check()
    with pytest.raises(sc.ConfigError, match=r"seed=2\.5 is not a valid seed"):
        run("seed", seed=2.5).check()
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("calibrate", [True, False])
def test_calibration_is_on_record(tmp_path: Path, calibrate: bool) -> None:
    first = pruning(tmp_path / "r", calibrate=calibrate).start()
    assert (first.calibrated != first.cut) == calibrate
    assert ("calibrated" in [name for name, _ in first.networks]) == calibrate
    assert json.loads((tmp_path / "r" / "run.json").read_text())["settings"]["calibrate"] == calibrate
    again = pruning(tmp_path / "r", calibrate=calibrate).start(resume=True)
    assert (again.cut, again.calibrated, again.after) == (first.cut, first.calibrated, first.after)
    with pytest.raises(ConfigError, match=r"another run: it differs in calibrate \("):
        pruning(tmp_path / "r", calibrate=not calibrate).start(resume=True)


def test_a_finished_run_gives_its_result_again(tmp_path: Path) -> None:
    first = pruning(tmp_path / "r", recover=RECOVER).start()
    again = pruning(tmp_path / "r", recover=RECOVER).start(resume=True)
    assert isinstance(again, RunResult)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(first.model.eval()(x), again.model.eval()(x))
    assert (again.before, again.cut, again.after, again.error, again.seconds) == (
        first.before, first.cut, first.after, first.error, first.seconds,
    )  # fmt: skip
    assert again.card()["method"] == first.card()["method"]
    with pytest.raises(ConfigError, match="holds an artifact: resume=True continues it, overwrite=True replaces it"):
        pruning(tmp_path / "r", recover=RECOVER).start()
    with pytest.raises(ConfigError, match=r"another run: it differs in seed \(0 then, 1 now\)"):
        pruning(tmp_path / "r", recover=RECOVER, seed=1).start(resume=True)
    changed = classifier()
    nn.init.ones_(changed[0].weight)
    with pytest.raises(ConfigError, match="it differs in weights"):
        pruning(tmp_path / "r", changed, recover=RECOVER).start(resume=True)


def test_an_interrupted_run_continues_to_the_same_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pruning(tmp_path / "whole", recover=RECOVER).start()
    save = CheckpointStore.save

    def interrupt(store: CheckpointStore, step: int, state: dict[str, Any]) -> Path:
        save(store, step, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", interrupt)
        with pytest.raises(KeyboardInterrupt, match="the same run with resume=True continues from there"):
            pruning(tmp_path / "r", recover=RECOVER).start()
    resumed = pruning(tmp_path / "r", recover=RECOVER).start(resume=True)
    assert all(torch.equal(v, whole.model.state_dict()[k]) for k, v in resumed.model.state_dict().items())


@pytest.mark.parametrize("where", [(sc.L1, "select"), (RunFolder, "finish"), (RunFolder, "begin")])
def test_stages_that_replace_others_resume_after_a_kill_in_the_first(
    where: tuple[type, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = sc.DataSpec("digits", normalize="none", batch_size=512)

    def staged(folder: str, seed: int) -> sc.PruneRun:
        return sc.PruneRun(NET, spec, tmp_path / folder, method="l1", budget=sc.Budget(macs=0.5), pretrain_epochs=0,
                           device="cpu", then=[sc.Stage(sc.L2(), 0.3)], seed=seed)  # fmt: skip

    staged("r", 0).start()
    old = (tmp_path / "r" / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        owner, name = where
        call = getattr(owner, name)

        def interrupt(self: Any, *args: Any, **options: Any) -> Any:
            call(self, *args, **options)
            if name != "begin" or self.folder.name == "1-l1":
                raise KeyboardInterrupt

        patch.setattr(owner, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            staged("r", 1).start(overwrite=True)
    assert (tmp_path / "r" / "model.safetensors").read_bytes() == old  # until the new one is there
    with pytest.raises(ConfigError, match=r"1-l1 is another run: it differs in seed"):
        staged("r", 0).start(resume=True)
    staged("r", 1).start(resume=True)
    staged("whole", 1).start()
    assert all(
        (tmp_path / "r" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        for name in ("plan.json", "model.safetensors")
    )
    with pytest.raises(ConfigError, match=r"holds an artifact"):
        staged("r", 1).start()


def test_checking_writes_nothing(tmp_path: Path) -> None:
    pruning(tmp_path / "r").check()
    with pytest.raises(sc.BudgetError, match="cannot be met"):
        pruning(tmp_path / "r", budget=sc.Budget(macs=0.0001)).check()
    then = [sc.Stage(sc.PFF(), 0.9)]
    with pytest.raises(ConfigError, match=r"then='pff:0\.9': .* nothing would be cut"):
        sc.PruneRun(NET, "digits", tmp_path / "r", method="l1", budget=sc.Budget(macs=0.5), then=then).check()
    with pytest.raises(ConfigError, match="Cut stripes last: method='l2' then='pff:MACS'"):
        pruning(tmp_path / "r", method="pff", then=[sc.Stage(sc.L2(), 0.3)]).check()
    with pytest.raises(ConfigError, match=r"pretrain_lr=-1: must be greater than 0"):
        sc.PruneRun(NET, "digits", tmp_path / "r", budget=sc.Budget(macs=0.5), pretrain_lr=-1).check()
    with pytest.raises(ConfigError, match="weights=… is for a model that is named by a spec"):
        pruning(tmp_path / "r", weights="w.safetensors").check()
    assert not list(tmp_path.iterdir())


def counting(monkeypatch: pytest.MonkeyPatch, *reads: str) -> list[str]:
    """A list that gets a word for each trace, each build and each of these reads of an artifact from now on."""
    from secateurs import artifact, zoo

    trace = import_module("secateurs.graph.trace")
    done: list[str] = []

    def counted(name: str, call: Any) -> Any:
        return lambda *args, **options: done.append(name) or call(*args, **options)

    monkeypatch.setattr(trace, "Runs", counted("trace", trace.Runs))
    monkeypatch.setitem(zoo._OWN, "small_cnn", counted("build", zoo._OWN["small_cnn"]))
    for name in reads:
        monkeypatch.setattr(artifact, name, counted("read", getattr(artifact, name)))
    return done


def test_one_trace_one_build_and_no_reading_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = counting(monkeypatch, "read", "restored")
    spec = sc.DataSpec("digits", normalize="none", batch_size=256)
    run = sc.PruneRun(NET, spec, tmp_path, method="l1", budget=sc.Budget(macs=0.5), pretrain_epochs=0, device="cpu")
    run.start()
    assert done == ["build", "trace"]

    done.clear()
    both = replace(run, folder=tmp_path / "both", then=[sc.Stage(sc.L2(), 0.3)])
    result = both.start()
    assert done == ["build", "trace", "trace"]  # a trace for each cut
    assert [cut.method for cut in result.earlier] == ["l1"]

    done.clear()
    both.start(resume=True)
    assert "read" in done


def test_python_and_the_command_line_resume_each_other(tmp_path: Path) -> None:
    spec = sc.DataSpec("digits", normalize="none", batch_size=256)
    sc.PruneRun(
        NET, spec, tmp_path, method="l1", budget=sc.Budget(macs=0.5), pretrain_epochs=0, device="cpu",
        then=[sc.Stage(sc.L2(), 0.3)],
    ).start()  # fmt: skip
    card = (tmp_path / "card.json").read_bytes()
    command = ["prune", NET, "--data", "digits", "--normalize", "none", "--batch-size", "256", "--method", "l1", "--macs",
               "0.5", "--then", "l2:0.3", "--pretrain-epochs", "0", "--recover", "none", "--device", "cpu", "--out",
               str(tmp_path), "--resume"]  # fmt: skip
    assert main(command) == 0
    assert (tmp_path / "card.json").read_bytes() == card
    assert json.loads(card)["earlier"][0]["method"] == "l1"


def test_a_loss_that_is_not_finite_says_where(tmp_path: Path) -> None:
    with pytest.raises(sc.NonFiniteLossError) as found:
        pruning(tmp_path / "r", recover=sc.Recover(epochs=2, lr=1e30, precision="fp32")).start()
    error = found.value
    assert not math.isfinite(error.value)
    assert f"in epoch {error.epoch}, batch {error.batch}" in str(error)
    assert error.epoch in (1, 2)
    assert error.checkpoint is None or Path(error.checkpoint).is_dir()
    assert Setting("lr", of=sc.Recover) in error.hint
    assert "overwrite=True" in str(error)


def test_a_redesign(tmp_path: Path) -> None:
    spec = sc.DataSpec("digits", normalize="none", batch_size=512)
    quick = sc.RedesignTraining(epochs=0, recover_epochs=0)
    run = sc.RedesignRun(NET, spec, tmp_path / "r", method="l1", train=quick, device="cpu")
    run.check()
    assert not (tmp_path / "r").exists()
    found = run.start()
    assert found.rows["re-design-pruned"].macs <= found.rows["base"].macs
    assert found.widths["conv1"][:2] == (40, 60)
    assert run.start(resume=True) == found
    assert sc.load(tmp_path / "r" / "pruned") is not None
    with pytest.raises(ConfigError, match=r"The artifact .*pruned is where this run would write its own files"):
        sc.RedesignRun(str(tmp_path / "r" / "pruned"), spec, tmp_path / "r", train=quick).check(overwrite=True)
    with pytest.raises(ConfigError, match="recover_lr=-1: must be greater than 0"):
        sc.RedesignRun(NET, spec, tmp_path / "s", train=sc.RedesignTraining(recover_lr=-1)).check()


def test_a_redesign_builds_once_and_a_given_artifact_is_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = counting(monkeypatch, "restored")
    spec = sc.DataSpec("digits", normalize="none", batch_size=512)
    quick = sc.RedesignTraining(epochs=0, recover_epochs=0)
    sc.RedesignRun(NET, spec, tmp_path / "r", method="l1", train=quick, device="cpu").start()
    assert done == ["build", "trace", "trace"]  # the base and the widened network

    for from_base in (False, True):
        done.clear()
        given, lines = tmp_path / "r" / "pruned", []
        run = sc.RedesignRun(str(given), spec, tmp_path / f"s{from_base}", method="l1", train=quick, device="cpu",
                             from_base=from_base, log=lines.append)  # fmt: skip
        found = run.start()
        assert done == ["build", "read", "trace", "trace"]
        assert not any("training the base" in line for line in lines)
        figures = json.loads((given / "card.json").read_text())["after"]
        assert found.rows["base"].loss == pytest.approx(figures["loss"], rel=1e-6)
        assert (found.rows["scaled"].loss == pytest.approx(figures["loss"], abs=1e-5)) == from_base
        assert run.start(resume=True) == found


def test_a_weights_file_that_does_not_exist_is_found_before_the_data(tmp_path: Path) -> None:
    with pytest.raises(sc.ArtifactError, match="there is no such file"):
        NetworkSpec(NET, tmp_path / "w.safetensors").open()


def test_a_module_that_no_stage_could_build_again_is_refused_before_any_work(tmp_path: Path) -> None:
    run = pruning(tmp_path / "r", then=[sc.Stage(sc.L1(), 0.4)])
    with pytest.raises(ConfigError, match=r"this model was not made by sc\.build"):
        run.check()
    assert not (tmp_path / "r").exists()


def test_stages_are_checked_as_they_are_made(tmp_path: Path) -> None:
    assert sc.Stage("l1", 0.4) == sc.Stage(sc.L1(), 0.4)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Did you mean epruner"):
        sc.Stage("eprunr", 0.4)  # type: ignore[arg-type]
    for macs in (0, -0.5, math.nan, "0.3", sc.Budget(macs=0.4)):
        with pytest.raises(ConfigError, match=r"Stage\(macs=.*a stage takes the MACs that stay"):
            sc.Stage(sc.L1(), macs)  # type: ignore[arg-type]
    for then in (sc.Stage(sc.L1(), 0.4), ["l1:0.4"]):
        with pytest.raises(ConfigError, match="is not a list of stages"):
            pruning(tmp_path / "r", then=then).check()


def test_the_lowest_macs_that_a_redesign_names_can_be_met(tmp_path: Path) -> None:
    """Limits may leave more than the base has; such a figure is absolute, as in a budget."""
    quick = sc.RedesignTraining(epochs=0, recover_epochs=0)
    spec = sc.DataSpec("digits", normalize="none")
    run = sc.RedesignRun(NET, spec, tmp_path / "r", widen=2, max_cut=0.3, method="l1", train=quick, device="cpu")
    with pytest.raises(sc.BudgetError, match=r"lowest figure that can be met is macs=4372816;.*absolute number above"):
        run.check()
    replace(run, macs=4372816).check()


def test_a_finished_run_is_not_resumed_with_a_further_cut(tmp_path: Path) -> None:
    """The first cut was made once more, and only then the second one refused."""
    run = pruning(tmp_path / "r", sc.build(NET, num_classes=4))
    run.start()
    with pytest.raises(ConfigError, match=r"r holds another run: the cut before it would be in .*1-l1"):
        replace(run, then=[sc.Stage(sc.L2(), 0.3)]).start(resume=True)
    assert not (tmp_path / "r" / "1-l1").exists()
