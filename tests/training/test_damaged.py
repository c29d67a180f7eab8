"""A checkpoint that is not as it was written, or holds what the run cannot have: one clear error, and nothing is used."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

import secateurs as sc
import secateurs.recovery as R
import secateurs.training as T
from secateurs.errors import ArtifactError, ConfigError, TrainingError
from tests.damage import DAMAGES, tree

from .helpers import batches, engine, net, same
from .test_engine import Cutter, Gates

RECIPE = R.Recover(epochs=2, precision="fp16", ema=0.9)
FILES = ("manifest.json", "state.json", "state.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, with EMA weights, a loss scaler, a cut and momenta."""
    folder = tmp_path_factory.mktemp("trained")
    engine(net(), batches(), RECIPE, hooks=[Cutter()], checkpoints=T.CheckpointStore(folder)).fit()
    return folder


def copy(trained: Path, to: Path, steps: int = 2) -> Path:
    shutil.copytree(trained, to)
    for old in sorted(to.iterdir())[:-steps]:
        shutil.rmtree(old)
    return to


def resume(folder: Path, recipe: T.Recipe = RECIPE) -> T.Engine:
    e = engine(net(), batches(), recipe, hooks=[Cutter()], checkpoints=T.CheckpointStore(folder))
    e.fit(resume=True)
    return e


Change = Callable[[Any, dict[str, torch.Tensor]], Any]


def alter(checkpoint: Path, change: Change, orphans: bool = False) -> None:
    """Change the state of a checkpoint, and make its checksums right again. orphans: keep tensors that belong nowhere."""
    state = json.loads((checkpoint / "state.json").read_text())
    tensors = load_file(checkpoint / "state.safetensors")
    answer = change(state, tensors)
    text = answer if isinstance(answer, str) else json.dumps(state)
    (checkpoint / "state.json").write_text(text)
    kept = {k: v for k, v in tensors.items() if orphans or json.dumps(k) in text}
    (checkpoint / "state.safetensors").write_bytes(save(kept))
    sign(checkpoint)


def sign(checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name in ("state.json", "state.safetensors"):
        data = (checkpoint / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def put(*path: str | int, value: Any) -> Callable[[Any, Any], None]:
    def change(state: Any, tensors: Any) -> None:
        *way, last = path
        for key in way:
            state = state[key]
        state[last] = value

    return change


def drop(*path: str | int) -> Callable[[Any, Any], None]:
    def change(state: Any, tensors: Any) -> None:
        *way, last = path
        for key in way:
            state = state[key]
        del state[last]

    return change


def tensor(name: str, new: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any, Any], None]:
    def change(state: Any, tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = new(tensors[name]).contiguous()

    return change


MAIN = "/parts/main/module"
WRONG: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "no EMA": (put("ema", value=None), r"state\.json .*field 'ema' is null"),
    "no scaler": (put("scaler", value=None), r"state\.json .*field 'scaler' is null"),
    "scaler without scale": (drop("scaler", "scale"), "scaler.scale': field required"),
    "scale that is zero": (put("scaler", "scale", value=0.0), "scaler.scale.*greater than 0"),
    "scale that is NaN": (put("scaler", "scale", value={"$float": "nan"}), "scaler.scale.*finite"),
    "no field": (drop("position"), "field 'position': field required"),
    "a field too many": (put("extra", value=1), "field 'extra'"),
    "a list for a dict": (put("position", value=[]), "field 'position'"),
    "a text for a number": (put("position", "step", value="12"), "field 'position.step'.*integer, got '12'"),
    "a negative number": (put("position", "batch", value=-1), "field 'position.batch'"),
    "another step": (put("position", "step", value=3), "field 'position.step' is 3, expected 12"),
    "a sum too few": (put("sums", value=[0.0, 1.0]), "field 'sums'.*at least 3"),
    "sums that are NaN": (put("sums", value=[{"$float": "nan"}, 0, 0]), r"field 'sums.0'.*finite"),
    "no history": (put("history", value=[]), "field 'history' has 0 entries, expected 2"),
    "no part": (put("parts", value={}), "field 'parts' has none, expected main"),
    "a part too many": (
        lambda s, t: put("parts", "b", value=s["parts"]["main"])(s, t), "field 'parts' has b, main, expected main",
    ),
    "a plan that is none": (put("plans", 0, value="{}"), r"field 'plans.0'"),
    "a plan of another network": (
        lambda s, t: put("plans", 0, value=s["plans"][0].replace('"0.weight"', '"nowhere.weight"'))(s, t), "field 'plans.0'"
    ),
    "no hooks": (put("hooks", value={}), r"hooks \(none then, 0-Cutter now\)"),
    "a hook's state that is a list": (put("hooks", "0-Cutter", value=[]), "field 'hooks.0-Cutter'"),
    "a module it does not have": (put("parts", "main", "eval", value=["nowhere"]), "'parts.main.eval' names 'nowhere'"),
    "frozen what is not there": (put("parts", "main", "frozen", value=["a.b"]), "'parts.main.frozen' names 'a.b'"),
    "a weight that is missing": (
        drop("parts", "main", "module", "0.weight"), r"field 'parts.main.module.0.weight' is missing",
    ),
    "a number for a weight": (
        put("parts", "main", "module", "0.weight", value=3),
        r"field 'parts.main.module.0.weight' is an int, expected a tensor",
    ),
    "integer weights": (
        tensor(f"{MAIN}/0.weight", lambda w: w.long()),
        r"state\.safetensors .*tensor 'parts.main.module.0.weight' is int64 .*, expected float32",
    ),
    "float64 weights": (tensor(f"{MAIN}/0.weight", lambda w: w.double()), "is float64 .*expected float32"),
    "weights that are NaN": (tensor(f"{MAIN}/3.weight", lambda w: w * torch.nan), "module.3.weight' holds NaN"),
    "EMA weights that are NaN": (tensor("/ema/3.weight", lambda w: w * torch.nan), "tensor 'ema.3.weight' holds NaN"),
    "momenta of another shape": (
        tensor("/parts/main/optimizer/state/3/momentum_buffer", lambda w: w[:1]),
        r"tensor 'parts.main.optimizer.state.3.momentum_buffer' is float32 of shape",
    ),
    "momenta of no parameter": (
        lambda s, t: s["parts"]["main"]["optimizer"]["state"]["$items"].append([99, {"momentum_buffer": 1.0}]),
        r"'parts.main.optimizer.state.99' is not expected",
    ),
    "momenta of another optimizer": (
        put("parts", "main", "optimizer", "state", "$items", 0, 1, value={"exp_avg": 1.0}),
        r"'parts.main.optimizer.state.\d.momentum_buffer' is missing",
    ),
    "a learning rate that is a text": (
        put("parts", "main", "optimizer", "param_groups", 0, "lr", value="fast"),
        r"'parts.main.optimizer.param_groups.0.lr' is a str, expected a number",
    ),
    "no learning rate": (
        drop("parts", "main", "optimizer", "param_groups", 0, "lr"), r"param_groups.0.lr' is missing",
    ),
    "a group too few": (drop("parts", "main", "optimizer", "param_groups", 0), "has 1 groups, expected 2"),
    "other parameters in a group": (
        put("parts", "main", "optimizer", "param_groups", 0, "params", value=[0]), r"param_groups.0.params' has 1 values",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_right_checksums_and_wrong_values(case: str, trained: Path, tmp_path: Path) -> None:
    folder = copy(trained, tmp_path / "c")
    change, reason = WRONG[case]
    alter(T.CheckpointStore(folder).path(12), change)
    before = tree(folder)
    with pytest.raises((ArtifactError, ConfigError), match=reason) as caught:
        resume(folder)
    text = str(caught.value)
    assert str(folder / "step-000000012") in text
    if isinstance(caught.value, ArtifactError):
        assert "to resume from step-000000006." in text
    assert len(text) < 900
    assert tree(folder) == before


# What the files themselves show to be wrong: the checkpoint before takes its place.
UNREADABLE: dict[str, Callable[[Any, Any], Any]] = {
    "deep": lambda s, t: '{"a":' * 100_000 + "1" + "}" * 100_000,
    "deep enough for Python": lambda s, t: '{"a":' * 700 + json.dumps(s) + "}" * 700,
    "a list": lambda s, t: "[]",
    "not JSON": lambda s, t: "{",
    "NaN": lambda s, t: '{"seed": NaN}',
    "a stride that does not fit": lambda s, t: s["parts"]["main"]["module"]["0.weight"].update(stride=[1, 1]),
    "a stride out of bounds": lambda s, t: s["parts"]["main"]["module"]["0.weight"].update(stride=[10**15, 9, 3, 1]),
    "a stride of text": lambda s, t: s["parts"]["main"]["module"]["0.weight"].update(stride="abcd"),
    "a tensor that is missing": lambda s, t: t.pop(f"{MAIN}/0.weight") is None,
    "a tensor that belongs nowhere": lambda s, t: t.update(more=torch.ones(3)),
    "a tensor by a number": lambda s, t: s["parts"]["main"]["module"].update({"0.weight": {"$tensor": 3}}),
    "items that are none": lambda s, t: s["parts"]["main"]["optimizer"].update(state={"$items": [3]}),
    "items of lists": lambda s, t: s["parts"]["main"]["optimizer"].update(state={"$items": [[[], 1]]}),
    "items twice": lambda s, t: s["parts"]["main"]["optimizer"].update(state={"$items": [[1, 2], [1, 3]]}),
    "a tuple that is none": lambda s, t: s.update(sums={"$tuple": 3}),
    "an unknown mark": lambda s, t: s.update(sums={"$code": "print()"}),
    "a float that is none": lambda s, t: s.update(seconds={"$float": "1.0"}),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_with_right_checksums(
    case: str, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy(trained, tmp_path / "c")
    checkpoint = T.CheckpointStore(folder).path(12)
    alter(checkpoint, UNREADABLE[case], orphans=True)
    alone = copy(folder, tmp_path / "alone", steps=1)
    before = tree(alone)
    for _ in range(2):  # the second attempt does not start over either
        with pytest.raises(
            ArtifactError, match=r"All checkpoints are damaged.*step-000000012.*Remove .*alone to start over"
        ):
            resume(alone)
    assert tree(alone) == before
    with caplog.at_level(logging.WARNING, "secateurs"):
        assert resume(folder).step == 12
    assert "resuming from step-000000006" in caplog.text
    assert str(checkpoint) in caplog.text
    assert sorted(p.name for p in folder.iterdir()) == ["step-000000006", "step-000000012"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_checkpoint(
    name: str, damage: str, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever lies in a file's place is not opened, or is found out; the checkpoint before takes over."""
    folder = copy(trained, tmp_path / "c")
    DAMAGES[damage](folder / "step-000000012" / name)
    alone = tmp_path / "alone"
    alone.mkdir()
    os.rename(folder / "step-000000012", alone / "step-000000012")
    before = tree(alone)
    with pytest.raises(ArtifactError, match=r"All checkpoints are damaged.*Remove .*alone to start over") as caught:
        resume(alone)
    assert name in str(caught.value)
    assert tree(alone) == before
    os.rename(alone / "step-000000012", folder / "step-000000012")
    with caplog.at_level(logging.WARNING, "secateurs"):
        assert resume(folder).step == 12
    assert name in caplog.text


MANIFESTS = {
    "another step": lambda m: m.update(step=3),
    "no files": lambda m: m.pop("files"),
    "a file outside": lambda m: m["files"].update({"../../secret": {"sha256": "0" * 64, "bytes": 1}}),
    "no size": lambda m: m["files"]["state.json"].pop("bytes"),
    "a size that is larger": lambda m: m["files"]["state.json"].update(bytes=1 << 50),
    "a size that is smaller": lambda m: m["files"]["state.json"].update(bytes=1),
    "a checksum that is a number": lambda m: m["files"]["state.json"].update(sha256=3),
    "a version that is a text": lambda m: m.update(version="1"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_wrong_manifest(case: str, trained: Path, tmp_path: Path) -> None:
    folder = copy(trained, tmp_path / "c", steps=1)
    path = folder / "step-000000012" / "manifest.json"
    manifest = json.loads(path.read_text())
    MANIFESTS[case](manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"All checkpoints are damaged: .*step-000000012.(manifest|state)\.json"):
        resume(folder)


def test_nothing_else_in_the_folder_is_taken_for_a_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "step-000000001")
    (tmp_path / "step-000000002").symlink_to("step-000000002")
    for name in ("step-1", "step-²", "step-last", ".old-notes", ".writing-", "damaged-step-by-step"):
        (tmp_path / name).mkdir()
    store = T.CheckpointStore(tmp_path)
    assert store.steps() == []
    before = tree(tmp_path)
    store.tidy()
    assert tree(tmp_path) == before


def test_resuming_sweeps_what_killed_processes_left(trained: Path, tmp_path: Path) -> None:
    folder = copy(trained, tmp_path / "c")
    for name in (".writing-000000099", ".old-000000003", "damaged-step-000000004"):
        (folder / name).mkdir()
        (folder / name / "state.json").write_text("{}")
    shutil.copytree(folder / "step-000000006", folder / "step-000000005")  # not removed any more
    resume(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["step-000000006", "step-000000012"]


class Odd(T.Hook):
    """A hook of somebody's, with a state of its own."""

    def state(self) -> dict[str, Any]:
        return {"figures": [1.0, float("inf")], "at": {1: "a"}}

    def load(self, state: dict[str, Any]) -> None:
        assert state["figures"] == [1.0, float("inf")]
        self.place = state["at"][1]


def test_hooks_whose_state_does_not_fit(tmp_path: Path) -> None:
    def fit(resume: bool) -> None:
        engine(net(), batches(), hooks=[Odd()], checkpoints=T.CheckpointStore(tmp_path)).fit(resume=resume)

    fit(False)
    fit(True)
    checkpoint = T.CheckpointStore(tmp_path).path(12)
    for value, reason in (
        ({"figures": [1.0, {"$float": "inf"}]}, r"field 'hooks.0-Odd': 'at' is missing"),
        ({"figures": []}, r"field 'hooks.0-Odd': AssertionError"),
        ({"figures": [1.0, {"$float": "inf"}], "at": []}, r"field 'hooks.0-Odd': IndexError: list index out of range"),
    ):
        alter(checkpoint, put("hooks", "0-Odd", value=value))
        with pytest.raises(ArtifactError, match=reason):
            fit(True)


def test_a_second_networks_state_is_checked(tmp_path: Path) -> None:
    def fit(resume: bool) -> None:
        engine(net(), batches(), hooks=[Gates()], checkpoints=T.CheckpointStore(tmp_path)).fit(resume=resume)

    fit(False)
    checkpoint = T.CheckpointStore(tmp_path).path(12)
    name = next(k for k in load_file(checkpoint / "state.safetensors") if "exp_avg_sq" in k)
    alter(checkpoint, tensor(name, lambda t: t * torch.nan))
    with pytest.raises(ArtifactError, match=r"tensor 'parts\..*exp_avg_sq' holds NaN"):
        fit(True)


METHODS: dict[str, Callable[[], Any]] = {
    "npn": lambda: sc.NPN(epochs=1, calibration=8),
    "aofp": lambda: sc.AOFP(epochs=1, search_cost=2),
    "pff": lambda: sc.PFF(epochs=1),
    "pff by norms": lambda: sc.PFF(epochs=1, penalty="group-lasso"),
    "onestep": lambda: sc.OneStep(epochs=1),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_field_of_a_methods_state_is_checked(method: str, tmp_path: Path) -> None:
    data = [(torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,))) for _ in range(4)]

    def run(resume: bool) -> None:
        torch.manual_seed(0)
        sc.prune(
            net(dropout=0), torch.zeros(1, 3, 8, 8), METHODS[method](), sc.Budget(macs=0.7), data, folder=tmp_path,
            resume=resume, progress="silent", device="cpu",
        )  # fmt: skip

    run(False)
    run(True)
    store = T.CheckpointStore(tmp_path / "prune" / "checkpoints")
    checkpoint = store.path(store.steps()[-1])
    hooks = json.loads((checkpoint / "state.json").read_text())["hooks"]
    (name,) = (name for name, state in hooks.items() if "pruner" in state)  # a teacher may be another one
    pruner = hooks[name]["pruner"]
    assert "steps" in pruner
    changes: list[tuple[str, Change]] = [("settings", drop("hooks", name, "settings"))]
    for field, value in pruner.items():
        changes.append((field, drop("hooks", name, "pruner", field)))
        if value is not None:
            wrong = 3 if isinstance(value, str) else "abc"
            changes.append((field, put("hooks", name, "pruner", field, value=wrong)))
        if isinstance(value, list):
            changes.append((field, put("hooks", name, "pruner", field, value=[3])))
    shutil.copytree(checkpoint, tmp_path / "whole")
    for field, change in changes:
        shutil.rmtree(checkpoint)
        shutil.copytree(tmp_path / "whole", checkpoint)
        alter(checkpoint, change)
        with pytest.raises(ArtifactError, match=rf"field 'hooks\.{name}'.*{field}"):
            run(True)


def test_a_scaler_goes_on_from_where_it_was(tmp_path: Path) -> None:
    """The loss scale that has halved or doubled on the way is part of the run."""
    store = T.CheckpointStore(tmp_path)
    recipe = R.Recover(epochs=2, precision="fp16")
    e = engine(net(), batches(), recipe, checkpoints=store)
    e.runtime.scaler.set_growth_interval(4)
    e.fit()
    scale = e.runtime.scaler.get_scale()
    assert scale != 2.0**16
    again = engine(net(), batches(), recipe, checkpoints=store)
    again.fit(resume=True)
    assert again.runtime.scaler.get_scale() == scale
    assert again.runtime.scaler.get_growth_interval() == 4
    assert same(e.model, again.model)


def test_a_tracker_whose_disk_is_full(tmp_path: Path) -> None:
    from accelerate.tracking import GeneralTracker

    class Full(GeneralTracker):
        name, requires_logging_directory = "full", False
        tracker = None

        def __init__(self, at: str) -> None:
            super().__init__()
            self.at = at

        def store_init_configuration(self, values: Any) -> None:
            self._write("start")

        def log(self, values: Any, step: Any = None, **_: Any) -> None:
            self._write("log")

        def finish(self) -> None:
            self._write("finish")

        def _write(self, at: str) -> None:
            if at == self.at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for at in ("start", "log", "finish"):
        with pytest.raises(TrainingError, match=r"cannot be written: No space left on device\. Free disk space"):
            engine(net(), batches(), folder=tmp_path / at, track=[Full(at)]).fit()
