from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import secateurs as sc
from secateurs.methods.npn.pruner import NPNPruner
from secateurs.tasks.purpose import Purpose
from secateurs.training import CheckpointStore

NET = "zoo:small_cnn"
QUICK = ("--batch-size", 16, "--pretrain-epochs", 2, "--recover-epochs", 2, "--method", "l1", "--macs", 0.5)


@pytest.fixture
def job(images: Path) -> tuple[object, ...]:
    return ("prune", NET, "--data", f"folder:{images}", *QUICK)


def test_trains_cuts_recovers_and_saves(run, job, tmp_path):
    ran = run(*job, "--out", tmp_path / "r")
    assert ran.status == 0, ran.err
    assert "no --weights" in ran.err
    assert "before" in ran.out
    assert "after recovery" in ran.out
    assert "masked ≡ sliced to" in ran.out
    assert f'secateurs.load("{tmp_path / "r"}")' in ran.out
    card = json.loads((tmp_path / "r" / "card.json").read_text())
    assert card["after"]["macs"] <= 0.5 * card["before"]["macs"]
    assert card["source"] == {"spec": NET, "num_classes": 2}
    assert card["data"]["normalize"] == "imagenet"
    assert not list((tmp_path / "r").rglob("checkpoints"))
    assert (tmp_path / "r" / "recover" / "metrics.jsonl").is_file()
    small = sc.load(tmp_path / "r")
    assert sc.count(small, torch.zeros(1, 3, 32, 32)).macs == card["after"]["macs"]
    # and what it pruned can be had again
    assert set(load_file(tmp_path / "r" / "pretrained.safetensors")) == set(sc.build(NET).state_dict())


def test_without_calibration(run, job, tmp_path):
    job = (*job[:-8], "--pretrain-epochs", 1, "--recover", "none", "--method", "l1", "--macs", 0.5)
    for out, more in (("r", ()), ("s", ("--no-calibrate",))):
        ran = run(*job, "--out", tmp_path / out, *more)
        assert ran.status == 0, ran.err
        card = json.loads((tmp_path / out / "card.json").read_text())
        assert (card["calibrated"] == card["cut"] == card["after"]) == bool(more)
        assert bool(re.search(r"calibrated on \d+ images: statistics of 5 norms", ran.err)) != bool(more)


def test_recovers_in_several_steps(run, images, tmp_path):
    """Each has a folder of its own; a resumed run agrees with them, a new one takes them away."""
    job = ("prune", NET, "--data", f"folder:{images}", "--batch-size", 16, "--pretrain-epochs", 1, "--macs", 0.5)
    job = (*job, "--method", "onestep", "--set", "epochs=1", "--out", tmp_path / "r")
    steps = ("--recover", "mimic:2,distil:1,finetune:1", "--mimic-lr", 0.002, "--temperature", 3, "--ema", 0.9)
    ran = run(*job, *steps)
    assert ran.status == 0, ran.err
    card = json.loads((tmp_path / "r" / "card.json").read_text())
    assert [r["ema"] for r in card["recover"]] == [0.9] * 3
    assert [(r["mode"], r["epochs"]) for r in card["recover"]] == [("mimic", 2), ("distil", 1), ("finetune", 1)]
    assert [r["lr"] for r in card["recover"]] == [0.002, None, None]
    assert [r.get("temperature") for r in card["recover"]] == [None, 3, 3]
    assert [h["phase"] for h in card["history"] if "train_loss" in h][1:] == ["mimic", "mimic", "distil", "finetune"]
    found = sorted(p.name for p in (tmp_path / "r").glob("recover*"))
    assert found == ["recover-1-mimic", "recover-2-distil", "recover-3-finetune"]
    assert not list((tmp_path / "r").rglob("checkpoints"))
    assert "nothing to do" in run(*job, *steps, "--resume").err
    assert "differs in recover" in run(*job, "--recover", "mimic:1,finetune:1", "--resume").err
    assert "holds an artifact" in run(*job, "--recover", "mimic:1").err
    ran = run(*job, "--recover", "mimic:1", "--nodes", "plain,bn2", "--force")
    assert ran.status == 0, ran.err
    assert [p.name for p in (tmp_path / "r").glob("recover*")] == ["recover"]
    card = json.loads((tmp_path / "r" / "card.json").read_text())
    assert card["history"][-1]["nodes"] == card["recover"]["nodes"] == ["plain", "bn2"]


def test_reconstructs_before_training(run, images, tmp_path):
    job = ("prune", NET, "--data", f"folder:{images}", "--batch-size", 16, "--pretrain-epochs", 0, "--macs", 0.5)
    ran = run(*job, "--method", "l1", "--recover", "reconstruct:20,finetune:1", "--out", tmp_path / "r")
    assert ran.status == 0, ran.err
    card = json.loads((tmp_path / "r" / "card.json").read_text())
    assert [r["mode"] for r in card["recover"]] == ["reconstruct", "finetune"]
    told = next(h for h in card["history"] if h.get("event") == "reconstructed")
    assert told["images"] == 20
    assert told["layers"]
    assert sorted(p.name for p in (tmp_path / "r").glob("recover*")) == ["recover-2-finetune"]


def test_given_weights_are_pruned_as_they_are(run, images, tmp_path):
    model = sc.build(NET, num_classes=2)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    args = ("--weights", tmp_path / "w.safetensors", "--data", f"folder:{images}", "--method", "l2", "--params", 0.5)
    ran = run("prune", "--model", NET, *args, "--recover", "none", "--align", 4, "--out", tmp_path / "r")
    assert ran.status == 0, ran.err
    assert "no --weights" not in ran.err
    assert "after recovery" not in ran.out
    plan = json.loads((tmp_path / "r" / "plan.json").read_text())
    assert all(len(kept) % 4 == 0 for kept in plan["groups"].values())
    assert not (tmp_path / "r" / "pretrained.safetensors").exists()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_killed_run_goes_on_to_the_same_network(run, job, tmp_path, monkeypatch, stage):
    """Killed after the first checkpoint of training, the last one of it, the first one of recovery."""
    assert run(*job, "--out", tmp_path / "whole").status == 0
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
    assert "Traceback" not in ran.err
    assert ran.err.splitlines()[-1].startswith("Interrupted. ")
    assert "the same run with --resume continues" in ran.err.splitlines()[-1]
    refused = run(*job, "--out", tmp_path / "killed")
    assert refused.status == 2
    assert "--resume" in refused.err
    ran = run(*job, "--out", tmp_path / "killed", "--resume")
    assert ran.status == 0, ran.err
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_method_reads_the_same_batches_however_long_the_network_was_trained(run, images, tmp_path, monkeypatch):
    read = []

    def scores(self, task):
        read.append(next(iter(task.data.batches("train")))[0])
        return {g.name: torch.arange(g.size) for g in task.groups}

    monkeypatch.setattr(sc.L1, "scores", scores)
    args = ("--data", f"folder:{images}", "--batch-size", 16, "--method", "l1", "--macs", 0.5, "--recover", "none")
    for epochs in (0, 2):
        ran = run("prune", NET, *args, "--pretrain-epochs", epochs, "--out", tmp_path / str(epochs))
        assert ran.status == 0, ran.err
    assert torch.equal(*read)


def test_what_resume_does_with_a_finished_run_and_with_another_one(run, job, tmp_path):
    out = ("--out", tmp_path / "r")
    assert run(*job, *out).status == 0
    written = (tmp_path / "r" / "card.json").stat().st_mtime_ns
    ran = run(*job, *out, "--resume")
    assert ran.status == 0
    assert "finished already" in ran.err
    assert "after recovery" in ran.out
    ran = run(*job, *out)
    assert ran.status == 2
    assert "holds an artifact" in ran.err
    ran = run(*job, "--seed", 1, *out, "--resume")
    assert ran.status == 2
    assert "seed (0 then, 1 now)" in ran.err
    assert (tmp_path / "r" / "card.json").stat().st_mtime_ns == written
    ran = run(*job, "--seed", 1, *out, "--force")
    assert ran.status == 0, ran.err
    assert json.loads((tmp_path / "r" / "card.json").read_text())["seed"] == 1


def test_a_method_with_a_knob_of_its_own_needs_no_budget(run, images, tmp_path):
    args = ("--data", f"folder:{images}", "--pretrain-epochs", 0, "--recover", "none")
    ran = run("prune", NET, *args, "--method", "epruner", "--set", "beta=0.9", "--out", tmp_path / "r")
    assert ran.status == 0, ran.err
    assert json.loads((tmp_path / "r" / "card.json").read_text())["method"]["beta"] == 0.9


# What is wrong is a file, or data that does not fit, and not the value of an option.
FILES = ("there is no such file", "no folder /nowhere", "7 outputs and the data 2 classes", "--image-size")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("zoo:smal_cnn",), "Did you mean small_cnn"),
        (("--method", "eprunr"), "Did you mean epruner"),
        (("--macs", "0.001"), "The lowest budget that can be met is --macs 0.0"),
        (("--macs", "-1"), "--macs -1 is not a valid budget"),
        (
            ("--macs", "1.5"),
            "--macs 1.5 is not a valid budget: a fraction is at most 1.0, and an absolute figure is an integer; to keep "
            "all, write --macs 1.",
        ),
        (("--params", "1.5"), "--params 1.5 is not a valid budget: a fraction is at most 1.0"),
        (("--then", "pff:1.5"), "--then pff:1.5: --macs 1.5 is not a valid budget"),
        (("--macs", "50"), "50 percent are --macs 0.5."),
        (("--weights", "nowhere.safetensors"), "there is no such file"),
        (("--num-classes", "7"), "7 outputs and the data 2 classes"),
        (("--data", "folder:/nowhere"), "no folder /nowhere"),
        (("--normalize", "cfar10"), "Did you mean cifar10"),
        (("--normalize", "1,2/x"), "write means/deviations"),
        (("--set", "beta"), "write key=value"),
        (("--set", "foo=1"), "--set foo=1: there is no such setting. l1's settings are: ranking"),
        (("--recover", "prune:3"), "There is no recovery 'prune'. Known: distil, finetune, mimic, none, reconstruct."),
        (("--recover", "mimic:3,finetune:x"), "finetune:x: write finetune:EPOCHS, with a number of epochs, 0 or more"),
        (("--recover", "reconstruct:x"), "write reconstruct:IMAGES"),
        (("--recover", "reconstruct:1"), "images=1: must be greater than or equal to 2"),
        (("--ema", 1), "--ema 1: must be less than 1 (decay of the moving average"),
        (("--recover", "reconstruct:20", "--ema", 0.9), "--ema is an option of phases that train"),
        (("--recover", "mimic:-1"), "mimic:-1: write mimic:EPOCHS, with a number of epochs, 0 or more"),
        (
            ("--recover", "finetune:3", "--nodes", "stem"),
            "--nodes is an option of mimic: it requires --recover mimic:EPOCHS",
        ),
        (
            ("--recover", "mimic:1", "--temperature", 2),
            "--temperature is an option of finetune: it requires --recover finetune:EPOCHS.",
        ),
        (("--recover", "mimic:1", "--share", 0), "--share is an option of finetune"),
        (("--share", 0, "--temperature", 2), "it requires --recover finetune:EPOCHS with a share above 0"),
        (("--share", 2), "--share 2"),
        (("--recover", "mimic:1", "--mimic-lr", "-1"), "--mimic-lr -1"),
        (("--recover", "mimic:1", "--nodes", "stem"), "needs two nodes or more"),
        (("--set", "ranking=best"), "--ranking best: must be 'global', 'layer' or 'isomorphic'"),
        (("--lr", "-1"), "--lr -1: must be greater than 0"),
        (("--recover-epochs", "-1"), "--recover-epochs -1: the number of epochs must be 0 or more"),
        (("--recover", "finetune:nan"), "finetune:nan: write finetune:EPOCHS, with a number of epochs, 0 or more"),
        (("--pretrain-epochs", "-1"), "--pretrain-epochs -1: the number of epochs"),
        (("--macs", "inf"), "--macs inf is not a valid budget"),
        (("--pretrain-epochs", "inf"), "--pretrain-epochs inf: the number of epochs"),
        (("--pretrain-lr", "-1"), "--pretrain-lr -1: must be greater than 0"),
        (("--track", "tensorbord"), "--track tensorbord is not available"),
        (("--image-size", "900000"), "--image-size 900000: the images would take"),
        (
            ("--method", "npn", "--set", "pruner=zoo:nope"),
            "--set pruner=zoo:nope cannot be used here: zoo has no model",
        ),
        (("--method", "epruner", "--set", "beta=0.5"), "--set beta=0.5 and budget are mutually exclusive"),
        (("--method", "epruner", "--set", "beta=-1"), "--set beta=-1: must be greater than 0. epruner's settings are"),
        (("--image-size", "4"), "--image-size"),
        (("--device", "warp"), "--device warp cannot be used"),
        (("--resume", "--force"), "mutually exclusive"),
        (("--recover", "mimic:1", "--nodes", "nope,bn2"), "nope"),
        (("--normalize", "0.5/0"), "--normalize 0.5/0: give three means and three deviations above 0"),
        (("--normalize", "0,0,0/1,0,1"), "three deviations above 0"),
        (
            ("--set", "ranking=layer", "--set", "ranking=global"),
            "--set ranking=layer and --set ranking=global both set",
        ),
        (
            ("--set", "ranking=layer", "--ranking", "global"),
            "--ranking global and --set ranking=layer both set ranking",
        ),
        (
            ("--method", "l2 ranking=layer", "--ranking", "global"),
            "--method 'l2 ranking=layer' and --ranking global both set",
        ),
        (("--method", "l2 rank=layer"), "secateurs: rank=layer: there is no such setting. l2's settings are: ranking"),
        (("--method", "l2 ranking=layer", "--set", "cost=x"), "--set cost=x: must be"),
        (("--method", "l2 layer"), "'l2 layer': a setting of l2 is written key=value."),
        (("--method", "l2,npn"), "'l2,npn' names several methods: give one of them."),
        (("--method", "pff preset=nope"), "secateurs: preset=nope is not a preset of pff"),
        (
            ("--recover", "finetune:1 lr=0.2", "--lr", 0.3),
            "--recover 'finetune:1 lr=0.2' and --lr 0.3 both set lr: give one",
        ),
        (("--recover", "mimic:1 ema=0.9, finetune:1", "--ema", 0.8), "and --ema 0.8 both set ema: give one of them."),
        (("--recover", "finetune:1 lr=-1"), "secateurs: lr=-1: must be greater than 0"),
        (("--recover", "finetune:1 epochs=2"), "finetune:1 epochs=2: epochs is given twice"),
        (("--recover", "finetune:1 lr 0.1"), "'finetune:1 lr 0.1': a setting of finetune is written key=value."),
        (("--macs", "50%"), "--macs 50%: write it as a fraction, --macs 0.5."),
        (("--batch-size", "50%"), 'unable to convert "50%" into int'),
        (("--method", "l2 cost=50%"), "secateurs: cost=50%: write cost=0.5."),
        (("--macs", "0.5,0.3"), "--macs 0.5,0.3: give one value."),
        (
            ("--exclude", "conv1,stem.0"),
            "give the option several times, --exclude conv1 --exclude stem.0.",
        ),
        (("--ratio", "conv1=50%"), "--ratio conv1=50%: write conv1=0.5."),
        (("--track", "a,b"), "give the option several times, --track a --track b."),
        (("--set", "p=1,q=2"), "--set p=1,q=2 has a comma: give the option several times, --set p=1 --set q=2."),
    ],
)
def test_refused_before_any_work(run, images, tmp_path, tokens, message):
    defaults = {"--data": f"folder:{images}", "--method": "l1", "--macs": 0.5, "--out": tmp_path / "r"}
    rest = [x for k, v in defaults.items() if k not in tokens for x in (k, v)]
    model = () if tokens[0].startswith("zoo:") else (NET if tokens[1] != "4" else "zoo:alexnet_bn",)
    ran = run("prune", *model, *tokens, *rest)
    assert ran.status == (1 if message in FILES else 2)
    assert message in ran.err
    assert ran.err.startswith("secateurs: ")
    assert len(ran.err.strip().splitlines()) == 1
    assert not (tmp_path / "r").exists()


class Untrainable(nn.Module):
    """Runs, but not in train mode."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise RuntimeError("output size is too small")
        return self.fc(self.net(x))


def test_a_network_that_cannot_train_is_found_first(run, images, tmp_path):
    args = ("--data", f"folder:{images}", "--method", "l1", "--macs", 0.5, "--out", tmp_path / "r")
    spec = f"python:{__name__}:Untrainable"
    ran = run("prune", spec, *args)
    assert ran.status == 1
    line = "does not train on images of 3x32x32: output size is too small (test_prune.py:"
    assert line in ran.err
    assert "). --image-size resizes them." in ran.err
    assert not (tmp_path / "r").exists()
    save_file(Untrainable().state_dict(), tmp_path / "w.safetensors")
    assert run("prune", spec, *args, "--weights", tmp_path / "w.safetensors", "--recover", "none").status == 0


def four(n: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n))


@pytest.mark.parametrize("options", [(), ("--num-classes", 2)])
def test_a_factory_that_takes_no_number_of_classes(run, images, tmp_path, options):
    args = ("--data", f"folder:{images}", "--method", "l1", "--macs", 0.5, "--out", tmp_path / "r")
    ran = run("prune", f"python:{__name__}:four", *args, *options)
    assert ran.err.endswith(
        "four has 4 outputs and the data 2 classes: the factory has no parameter num_classes, so that --num-classes does not "
        "reach it. Give it one, or give the data that the network is for.\n"
    )
    assert ran.status == 1


def test_the_try_leaves_the_network_and_the_random_draws_as_they_were():
    model = nn.Sequential(sc.build(NET), nn.Dropout(0.5)).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    data = sc.Data([(torch.randn(2, 3, 32, 32, generator=torch.Generator()), torch.zeros(2, dtype=torch.long))])
    Purpose().check_trains(model, data, NET)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("option", [("--pretrain-epochs", 1), ("--pretrain-lr", 0.1)])
def test_training_first_is_not_for_a_network_with_weights(run, images, tmp_path, option):
    save_file(sc.build(NET, num_classes=2).state_dict(), tmp_path / "w.safetensors")
    args = ("--weights", tmp_path / "w.safetensors", "--data", f"folder:{images}", "--macs", 0.5)
    ran = run("prune", NET, *args, *option, "--out", tmp_path / "r")
    assert ran.status == 2
    assert f"{option[0]} applies to training a network that has no --weights" in ran.err
    assert not (tmp_path / "r").exists()


def test_an_untrained_network_is_said_to_be_one(run, images, tmp_path):
    args = ("--data", f"folder:{images}", "--method", "l1", "--macs", 0.5, "--recover", "none")
    ran = run("prune", NET, *args, "--pretrain-epochs", 0, "--out", tmp_path / "r")
    assert ran.status == 0
    assert "pruned untrained, with random weights" in ran.err


def test_an_unwritable_place_is_found_first(run, job, tmp_path):
    (tmp_path / "file").write_text("")
    ran = run(*job, "--out", tmp_path / "file" / "r")
    assert ran.status == 1
    assert "cannot be written to" in ran.err
    ran = run(*job, "--out", tmp_path / "file")
    assert ran.status == 1
    assert "is a file" in ran.err


def test_a_budget_is_asked_for(run, images, tmp_path):
    ran = run("prune", NET, "--data", f"folder:{images}", "--method", "l1", "--out", tmp_path / "r")
    assert ran.status == 2
    assert "--macs 0.5" in ran.err


def test_resume_where_there_is_nothing_to_resume(run, job, tmp_path):
    ran = run(*job, "--out", tmp_path / "r", "--resume")
    assert ran.status == 0, ran.err
    assert "holds nothing to resume from: the run starts from the beginning." in ran.err


def test_interrupted_before_there_is_anything_to_go_on_from(run, job, tmp_path, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Purpose, "check_trains", interrupt)
    ran = run(*job, "--out", tmp_path / "r")
    assert ran.status == 130
    assert ran.err == "Interrupted.\n"


@pytest.mark.parametrize(
    ("tokens", "advice"),
    [
        (("--pretrain-lr", 1e30), r"a --pretrain-lr below 1e\+30, with --force"),
        (("--lr", 1e30), r"an --lr below 1e\+30, with --weights .*r/pretrained\.safetensors and another --out"),
        (
            ("--method", "npn", "--set", "lr=10", "--set", "epochs=2"),
            r"a lower --set lr=…, with --weights .* and another --out",
        ),
    ],
)
def test_advice_on_a_loss_that_is_not_finite_can_be_followed(run, job, tmp_path, monkeypatch, tokens, advice):
    if "npn" in tokens:
        monkeypatch.setattr(NPNPruner, "penalty", lambda self: float("nan"))
    rest = [t for k, v in zip(job[2::2], job[3::2], strict=True) if k not in tokens for t in (k, v)]
    ran = run(*job[:2], *rest, *tokens, "--precision", "fp32", "--out", tmp_path / "r")
    assert ran.status == 1
    assert re.search(advice, ran.err), ran.err
    assert "clip_norm" not in ran.err


def test_a_finished_run_whose_card_is_damaged(run, job, tmp_path):
    assert run(*job, "--out", tmp_path / "r").status == 0
    card = json.loads((tmp_path / "r" / "card.json").read_text())
    del card["cut"]
    (tmp_path / "r" / "card.json").write_text(json.dumps(card))
    ran = run(*job, "--out", tmp_path / "r", "--resume")
    assert ran.status == 1
    assert "card.json is not valid: field 'cut': field required" in ran.err


def test_a_damaged_run_file(run, job, tmp_path):
    (tmp_path / "run.json").write_text("{")
    ran = run(*job, "--out", tmp_path, "--resume")
    assert ran.status == 1
    assert "damaged" in ran.err


def test_a_node_that_the_cut_changes_costs_no_work(run, images, tmp_path):
    """The network that was trained first stays, and the corrected command goes on with it."""
    job = ("prune", NET, "--data", f"folder:{images}", "--batch-size", 16, "--pretrain-epochs", 1, "--macs", 0.5)
    job = (*job, "--method", "l1", "--out", tmp_path / "r")
    ran = run(*job, "--recover", "mimic:1", "--nodes", "conv1,plain")
    assert ran.status == 2
    assert "keeps what is done so far: with --resume" in ran.err
    trained = (tmp_path / "r" / "pretrained.safetensors").stat().st_mtime_ns
    ran = run(*job, "--recover", "mimic:1,finetune:1", "--nodes", "plain,bn2", "--resume")
    assert ran.status == 0, ran.err
    assert "recovery has not begun, and its settings have changed: recover" in ran.err
    assert (tmp_path / "r" / "pretrained.safetensors").stat().st_mtime_ns == trained
    card = json.loads((tmp_path / "r" / "card.json").read_text())
    assert card["recover"][0]["nodes"] == ["plain", "bn2"]
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert (record["finished"], record["settings"]["recover"]) == (True, card["recover"])
    assert "it differs in recover" in run(*job, "--recover", "mimic:1", "--resume").err


def test_an_artifact_is_not_pruned_into_its_own_folder(run, job, images, tmp_path):
    assert run(*job, "--out", tmp_path / "r").status == 0
    args = ("--data", f"folder:{images}", "--method", "l1", "--macs", 0.5, "--out", tmp_path / "r", "--force")
    ran = run("prune", tmp_path / "r", *args)
    assert ran.status == 2
    assert f"The artifact {tmp_path / 'r'} is where this run would write" in ran.err
    assert "--weights" not in ran.err


def test_a_budget_above_the_networks_cost(run, images, tmp_path):
    args = ("--data", f"folder:{images}", "--pretrain-epochs", 0, "--recover", "none", "--method", "l1")
    ran = run("prune", NET, *args, "--macs", 5e9, "--out", tmp_path / "r")
    assert ran.status == 0, ran.err
    cost = sc.count(sc.build(NET, num_classes=2), torch.zeros(1, 3, 32, 32))
    assert f"the budget is met already, nothing will be cut: {NET} has {cost.macs:,} MACs" in ran.err
    card = json.loads((tmp_path / "r" / "card.json").read_text())
    assert card["after"]["macs"] == cost.macs
    assert "is met already" not in run("prune", NET, *args, "--macs", 0.9, "--out", tmp_path / "s").err


def test_a_run_that_met_an_image_it_could_not_read_is_resumed_without_it(run, images, tmp_path):
    pytest.importorskip("datasets")
    shutil.copytree(images, tmp_path / "images")
    job = ("prune", NET, "--data", f"hf:{tmp_path / 'images'}", "--batch-size", 16, "--pretrain-epochs", 1,
           "--recover-epochs", 1, "--method", "l1", "--macs", 0.5, "--out", tmp_path / "r")  # fmt: skip
    broken = tmp_path / "images" / "train" / "light" / "03.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    ran = run(*job)
    assert ran.status == 1
    assert "03.png cannot be read: " in ran.err
    assert "pass --skip-unreadable to skip them" in ran.err
    ran = run(*job, "--skip-unreadable", "--resume")
    assert ran.status == 0, ran.err
    card = json.loads((tmp_path / "r" / "card.json").read_text())
    assert card["data"]["skip_unreadable"] is True
    assert card["data"]["skipped"] == {"train": 1, "val": 0}
    ran = run("evaluate", tmp_path / "r")  # as the card says
    assert ran.status == 0, ran.err


def test_rounds(run, images, tmp_path):
    job = ("prune", NET, "--data", f"folder:{images}", "--method", "l1", "--macs", 0.4, "--pretrain-epochs", 0)
    job = (*job, "--recover-epochs", 0, "--rounds", 2, "--schedule", "cubic", "--out", tmp_path / "r")
    ran = run(*job)
    assert ran.status == 0, ran.err
    assert "round 1 of 2: at most " in ran.err
    assert "after round 1 " in ran.out
    settings = json.loads((tmp_path / "r" / "run.json").read_text())["settings"]
    assert (settings["rounds"], settings["schedule"]) == (2, "cubic")
    assert (tmp_path / "r" / "round-1" / "card.json").is_file()
    assert "finished already" in run(*job, "--resume").err
    ran = run(*job[:5], "l2-stripes", *job[6:-1], tmp_path / "s")
    assert ran.status == 2
    assert "--rounds 2: l2-stripes cuts stripes" in ran.err
    assert "--method l2" in ran.err
    ran = run(*job, "--lr-schedule", "step")
    assert (ran.status, "--lr-schedule" in ran.err) == (2, True)
