"""What `prune --out` may replace and remove: what a run of ours wrote, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

import secateurs as sc
from secateurs.errors import ConfigError
from secateurs.runs.folder import PHASES, RunFolder

NET = "zoo:small_cnn"
NAMES = ("model.safetensors", "plan.json", "card.json", "pretrained.safetensors", *PHASES)


@pytest.fixture
def job(images: Path) -> tuple[object, ...]:
    quick = ("--batch-size", 16, "--pretrain-epochs", 1, "--recover-epochs", 1, "--method", "l1", "--macs", 0.5)
    return ("prune", NET, "--data", f"folder:{images}", *quick)


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flag", [(), ("--force",), ("--resume",)])
def test_what_somebody_else_wrote_is_never_replaced(run, job, tmp_path, name, flag):
    out = tmp_path / "r"
    mine = out / name / "mine.txt" if name in PHASES else out / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    ran = run(*job, "--out", out, *flag)
    assert ran.status == 2
    assert f"holds {name}, which this run did not write" in ran.err
    assert _tree(out) == {str(mine.relative_to(out)): b"mine"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not valid: input should be"),
        ('{"name": "another tool\'s"}', "is not valid: field 'finished'"),
    ],
)
def test_nor_is_a_run_file_that_is_none(run, job, tmp_path, text, reason):
    (tmp_path / "run.json").write_text(text)
    for flag in ((), ("--force",), ("--resume",)):
        ran = run(*job, "--out", tmp_path, *flag)
        assert ran.status == 1
        assert f"run.json {reason}" in ran.err.replace("must be", "input should be")
        assert "move it, or give another --out." in ran.err
    assert _tree(tmp_path) == {"run.json": text.encode()}


def test_force_leaves_what_lies_in_a_phase_beside_the_log(run, job, tmp_path):
    out = tmp_path / "r"
    assert run(*job, "--out", out).status == 0
    mine = [out / "notes.txt", *(out / phase / "mine.txt" for phase in PHASES)]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (out / "pretrain" / "secateurs").mkdir()
    (out / "pretrain" / "secateurs" / "events.out.tfevents.0").write_text("old")
    ran = run(*job, "--out", out, "--force")
    assert ran.status == 0, ran.err
    assert all(path.read_text() == "mine" for path in mine)
    assert not (out / "pretrain" / "secateurs").exists()
    assert len((out / "recover" / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_new_run_removes_the_old_ones_logs_and_no_more(tmp_path):
    folder = RunFolder(tmp_path)
    folder.begin({"weights": None}, resume=False)
    for phase in PHASES:
        (tmp_path / phase / "checkpoints" / "step-000000001").mkdir(parents=True)
        (tmp_path / phase / "metrics.jsonl").write_text("{}")
    (tmp_path / "prune" / "mine.txt").write_text("mine")
    folder.pretrained.write_text("old")
    assert folder.resumable()
    folder.begin({"weights": None}, resume=True)
    assert folder.resumable()
    folder.begin({"weights": None}, resume=False)
    assert sorted(_tree(tmp_path)) == ["prune/mine.txt", "run.json"]
    assert not (tmp_path / "recover").exists()


def test_a_picture_is_nothing_to_resume_from(tmp_path):
    """It is drawn from networks; weights are kept."""
    folder = RunFolder(tmp_path)
    folder.begin({"weights": None}, resume=False)
    (tmp_path / "predictions.png").touch()
    assert not folder.resumable()
    assert folder.to_lose() is None
    (tmp_path / "pretrained.safetensors").touch()
    assert folder.resumable()
    folder.begin({"weights": None}, resume=False)
    assert not (tmp_path / "predictions.png").exists()


def test_a_run_with_weights_does_not_own_pretrained_weights(tmp_path):
    folder = RunFolder(tmp_path)
    folder.begin({"weights": "abc"}, resume=False)
    folder.pretrained.write_text("mine")
    with pytest.raises(ConfigError, match=r"pretrained\.safetensors, which this run did not write"):
        folder.check({"weights": "abc"}, resume=False, overwrite=True)


@pytest.mark.parametrize("name", ["pretrained.safetensors", "model.safetensors", "recover/w.safetensors"])
def test_weights_are_not_where_the_run_would_write(run, images, tmp_path, name):
    weights = tmp_path / "r" / name
    weights.parent.mkdir(parents=True)
    save_file(sc.build(NET, num_classes=2).state_dict(), weights)
    before = weights.read_bytes()
    (tmp_path / "r" / "run.json").write_text(json.dumps({"finished": False, "settings": {"weights": None}}))
    for flag in ((), ("--force",)):
        args = ("--data", f"folder:{images}", "--method", "l1", "--macs", 0.5, "--out", tmp_path / "r", *flag)
        ran = run("prune", NET, "--weights", weights, *args)
        assert ran.status == 2
        assert "--weights" in ran.err
        assert "give another --out" in ran.err
        assert weights.read_bytes() == before


def test_weights_beside_them_are_used(run, images, tmp_path):
    save_file(sc.build(NET, num_classes=2).state_dict(), tmp_path / "w.safetensors")
    args = ("--data", f"folder:{images}", "--method", "l1", "--macs", 0.5, "--recover", "none", "--out", tmp_path)
    ran = run("prune", NET, "--weights", tmp_path / "w.safetensors", *args)
    assert ran.status == 0, ran.err
    assert (tmp_path / "w.safetensors").exists()


def test_only_what_differs_is_named(run, job, tmp_path):
    out = ("--out", tmp_path / "r")
    assert run(*job, *out).status == 0
    ran = run(*job, "--lr", 0.5, *out, "--resume")
    assert ran.status == 2
    assert ran.err == (
        f"secateurs: {tmp_path / 'r'} is another run: it differs in recover.lr (none then, 0.5 now). "
        "To resume it, use the same settings as before. Otherwise, choose another --out, or replace it with --force.\n"
    )
    ran = run(*job[:-4], "--method", "l2", "--macs", 0.4, *out, "--resume")
    assert "method.name ('l1' then, 'l2' now), budget.macs (0.5 then, 0.4 now)." in ran.err
    ran = run(*job[:-6], *job[-4:], "--recover", "none", *out, "--resume")
    assert "recover (given then, none now)." in ran.err


def test_force_spares_what_the_user_put_in_the_place_of_our_weights(run, job, tmp_path):
    out = tmp_path / "r"
    assert run(*job, "--out", out).status == 0
    save_file(sc.build(NET, num_classes=2).state_dict(), out / "model.safetensors")
    before = _tree(out)
    ran = run(*job, "--out", out, "--force")
    assert ran.status == 2
    assert "holds model.safetensors, which this run did not write" in ran.err
    assert _tree(out) == before


def test_only_checkpoints_of_ours_are_removed(tmp_path):
    folder = RunFolder(tmp_path)
    folder.begin({"weights": None}, resume=False)
    for phase, end in (("prune", False), ("recover", True)):
        checkpoints = tmp_path / phase / "checkpoints"
        mine = [
            checkpoints / "mine.txt",
            checkpoints / "step-last" / "state.json",
            checkpoints / "step-000000002" / "mine",
        ]
        ours = [checkpoints / name / "state.json" for name in ("step-000000002", "step-000000003", ".old-000000001")]
        for path in (*mine, *ours):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
        if end:
            folder.finish({"weights": None})
        else:
            folder.begin({"weights": None}, resume=False)
        assert all(path.exists() for path in mine)
        assert sorted(p.name for p in checkpoints.iterdir()) == ["mine.txt", "step-000000002", "step-last"]
        assert not any(path.exists() for path in ours)


def test_the_run_of_another_command_is_left_alone(run, job, tmp_path):
    folder = RunFolder(tmp_path)
    folder.begin({"command": "redesign", "weights": None}, resume=False)
    for flag in ((), ("--force",), ("--resume",)):
        ran = run(*job, "--out", tmp_path, *flag)
        assert ran.status == 2
        assert "holds a run of `secateurs redesign`: give another --out" in ran.err
    with pytest.raises(ConfigError, match="holds a run of `secateurs redesign`"):
        folder.check({"weights": None}, resume=False, overwrite=True)
    folder.begin({"weights": None}, resume=True)
    with pytest.raises(ConfigError, match="holds a run of `secateurs prune`"):
        folder.check({"command": "redesign", "weights": None}, resume=False, overwrite=True)


def test_recovery_may_change_until_it_has_begun(tmp_path):
    folder, now = RunFolder(tmp_path), {"seed": 0, "recover": {"lr": 0.1}}
    folder.begin({"seed": 0, "recover": {"lr": 0.2}}, resume=False)
    (tmp_path / "recover").mkdir()
    (tmp_path / "recover" / "metrics.jsonl").touch()
    told: list[str] = []
    assert not folder.check(now, resume=True, overwrite=False, log=told.append)
    assert told == ["recovery has not begun, and its settings have changed: recover.lr (0.2 then, 0.1 now)"]
    with pytest.raises(ConfigError, match=r"differs in seed.*recover\.lr"):
        folder.check({**now, "seed": 1}, resume=True, overwrite=False)
    folder.begin(now, resume=True)
    assert sorted(_tree(tmp_path)) == ["run.json"]
    assert not folder.check(now, resume=True, overwrite=False)
    step = tmp_path / "recover" / "checkpoints" / "step-000000001"
    step.mkdir(parents=True)
    (step / "manifest.json").touch()
    with pytest.raises(ConfigError, match=r"another run: it differs in recover \(given then, none now\)"):
        folder.check({"seed": 0, "recover": None}, resume=True, overwrite=False)
    assert not folder.check(now, resume=True, overwrite=False)
