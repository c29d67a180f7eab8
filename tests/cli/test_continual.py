from __future__ import annotations

import json

import pytest
import torch

import secateurs as sc
from secateurs.methods.pff.method import PFFPruner

QUICK = ("--batch-size", 16, "--recover", "none")


def test_an_artifact_is_pruned_further(run, images, tmp_path):
    data = ("--data", f"folder:{images}", *QUICK)
    first = run("prune", "zoo:small_cnn", *data, "--pretrain-epochs", 1, "--method", "l1", "--macs", 0.6,
                "--out", tmp_path / "a")  # fmt: skip
    assert first.status == 0, first.err
    again = (
        "prune",
        tmp_path / "a",
        *data,
        "--method",
        "pff",
        "--set",
        "epochs=1",
        "--macs",
        0.5,
        "--out",
        tmp_path / "b",
    )
    second = run(*again)
    assert second.status == 0, second.err
    assert "no --weights" not in second.err
    a, b = (json.loads((tmp_path / n / "card.json").read_text()) for n in "ab")
    assert b["before"]["macs"] == a["after"]["macs"]
    assert b["before"]["top1"] == a["after"]["top1"]
    assert b["after"]["macs"] <= 0.5 * b["before"]["macs"]
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    assert sc.count(sc.load(tmp_path / "b"), torch.zeros(1, 3, 32, 32)).macs == b["after"]["macs"]
    (tmp_path / "elsewhere").rename(tmp_path / "a")
    assert "finished already" in run(*again, "--resume").err
    onto = run("prune", tmp_path / "a", *data, "--method", "l1", "--macs", 0.5, "--out", tmp_path / "a", "--force")
    assert onto.status == 2
    assert "a" in onto.err
    assert (tmp_path / "a" / "model.safetensors").is_file()
    refused = run("prune", tmp_path / "a", *data, "--pretrain-epochs", 1, "--macs", 0.5, "--out", tmp_path / "c")
    assert refused.status == 2


def test_images_are_read_as_the_card_says(run, images, tmp_path):
    """By default they would be normalized for ImageNet, and the figures of the network would be others."""
    first = run("prune", "zoo:small_cnn", "--data", f"folder:{images}", "--normalize", "none", *QUICK, "--pretrain-epochs", 1,
                "--method", "l1", "--macs", 0.6, "--out", tmp_path / "a")  # fmt: skip
    assert first.status == 0, first.err
    a = json.loads((tmp_path / "a" / "card.json").read_text())
    assert a["data"]["normalize"] == "none"
    for name, data in (("given", ["--data", f"folder:{images}"]), ("recorded", [])):
        again = run("prune", tmp_path / "a", *data, "--batch-size", 16, "--method", "l1", "--macs", 0.6,
                    "--recover", "none", "--out", tmp_path / name)  # fmt: skip
        assert again.status == 0, again.err
        b = json.loads((tmp_path / name / "card.json").read_text())
        assert b["data"] == {**a["data"], "batch_size": 16}
        assert b["before"]["top1"] == a["after"]["top1"]
        assert b["before"]["loss"] == a["after"]["loss"]
    other = run("prune", tmp_path / "a", "--normalize", "imagenet", "--batch-size", 16, "--method", "l1", "--macs", 0.6,
                "--recover", "none", "--out", tmp_path / "other")  # fmt: skip
    assert other.status == 0, other.err
    assert json.loads((tmp_path / "other" / "card.json").read_text())["data"]["normalize"] == "imagenet"


def test_stripes_are_told_and_drawn(run, images, tmp_path):
    pytest.importorskip("matplotlib")
    pruned = run("prune", "zoo:small_cnn", "--data", f"folder:{images}", *QUICK, "--pretrain-epochs", 1, "--method", "pff",
                 "--set", "epochs=1", "--macs", 0.5, "--out", tmp_path / "a")  # fmt: skip
    assert pruned.status == 0, pruned.err
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    kept, of = (sum(layer[k] for layer in card["stripes"]) for k in ("stripes", "of_stripes"))
    line = f"stripes: {kept:,} of {of:,} kept ({kept / of:.1%})"
    assert line in pruned.out
    plan = sc.Plan.from_json((tmp_path / "a" / "plan.json").read_text())
    assert kept == sum(len(v) for v in plan.stripes.values())
    index = 0
    for name, places in plan.stripes.items():
        positions = plan.shapes[name][2] * plan.shapes[name][3]
        index += len({p // positions for p in places}) * positions
    assert f"{index:,} index entries" in pruned.out
    ran = run("inspect", tmp_path / "a", "--pictures", tmp_path / "p")
    assert ran.status == 0, ran.err
    assert line in ran.out
    assert f"on 3x32x32: {card['after']['macs']:,} MACs" in ran.out
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["norms.png", "shapes.png", "shares.png"]
    for path in (tmp_path / "p").iterdir():
        path.write_text("mine")
    refused = run("inspect", tmp_path / "a", "--pictures", tmp_path / "p")
    assert refused.status == 2
    assert "shapes.png already exists: --force replaces it" in refused.err
    assert all(p.read_text() == "mine" for p in (tmp_path / "p").iterdir())
    assert run("inspect", tmp_path / "a", "--pictures", tmp_path / "p", "--force").status == 0
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (tmp_path / "p").iterdir())
    (tmp_path / "file").touch()
    for folder, reason in (("file", "is a file: give a folder"), ("file/p", "cannot be written to: Not a directory")):
        refused = run("inspect", tmp_path / "a", "--pictures", tmp_path / folder)
        assert refused.status == 2
        assert f"--pictures {tmp_path / folder} {reason}" in refused.err
    assert "give --pictures with it" in run("inspect", tmp_path / "a", "--force").err
    record = json.loads(run("inspect", tmp_path / "a", "--json").out)
    assert record["stripes"] == card["stripes"]
    assert run("inspect", "zoo:small_cnn", "--pictures", tmp_path / "q").status == 2


THEN = ("--method", "l1", "--macs", 0.6, "--then", "pff:0.3", "--set", "pff.epochs=1")


def test_then_is_the_second_command(run, images, tmp_path):
    """`--then` is what two commands do, its figure a share of the network that the first one began with."""
    data = ("--data", f"folder:{images}", "--batch-size", 16, "--recover-epochs", 1)
    ran = run("prune", "zoo:small_cnn", *data, "--pretrain-epochs", 1, *THEN, "--out", tmp_path / "both")
    assert ran.status == 0, ran.err
    assert f"then pff, on {tmp_path / 'both' / '1-l1'}" in ran.err
    rows = [line.split()[:2] for line in ran.out.splitlines()]
    assert [" ".join(row) for row in rows if row and row[0] in ("before", "after")] == [
        "before 2.99M", "after l1", "after the", "after recovery",
    ]  # fmt: skip
    card = json.loads((tmp_path / "both" / "card.json").read_text())
    (first,) = card["earlier"]
    assert first["method"] == "l1"
    assert card["before"]["macs"] <= 0.6 * first["before"]["macs"]
    assert 0.29 * first["before"]["macs"] < card["after"]["macs"] <= 0.3 * first["before"]["macs"]

    told = run("evaluate", tmp_path / "both", "--data", f"folder:{images}")
    assert [line.split()[2] for line in told.out.splitlines() if line.startswith("the original")] == ["2.99M"]

    weights = tmp_path / "both" / "1-l1" / "pretrained.safetensors"
    one = run("prune", "zoo:small_cnn", "--weights", weights, *data, *THEN[:4], "--out", tmp_path / "a")
    assert one.status == 0, one.err
    macs = int(0.3 * first["before"]["macs"])
    two = run("prune", tmp_path / "a", *data, "--method", "pff", "--set", "epochs=1", "--macs", macs, "--out",
              tmp_path / "b")  # fmt: skip
    assert two.status == 0, two.err
    assert (tmp_path / "b" / "plan.json").read_bytes() == (tmp_path / "both" / "plan.json").read_bytes()
    inputs = torch.zeros(1, 3, 32, 32)
    assert torch.equal(sc.load(tmp_path / "b")(inputs), sc.load(tmp_path / "both")(inputs))


def test_then_goes_on_where_it_was_killed(run, images, tmp_path, monkeypatch):
    data = ("--data", f"folder:{images}", *QUICK, "--pretrain-epochs", 1)
    job = ("prune", "zoo:small_cnn", *data, *THEN, "--out", tmp_path / "r")

    def interrupt(pruner: PFFPruner) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PFFPruner, "advance", interrupt)
        killed = run(*job)
    assert killed.status == 130
    assert "with --resume continues" in killed.err
    assert not (tmp_path / "r" / "card.json").exists()
    again = run(*job)
    assert again.status == 2
    assert "1-l1 holds an artifact" in again.err
    ran = run(*job, "--resume")
    assert ran.status == 0, ran.err
    assert "1-l1 is finished already" in ran.err
    assert sc.load(tmp_path / "r") is not None
    assert run(*job, "--resume").err.count("is finished already") == 2
    changed = run(*job, "--resume", "--set", "pff.lr=0.01")
    assert changed.status == 2
    assert "is another run: it differs in method.lr" in changed.err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ("--then", "pff:0.6"),
            "--then pff:0.6: 1,791,638 of 2,986,064 MACs are left at that point, so nothing would be cut",
        ),
        (("--then", "pff:1.8e6"), "--then pff:1.8e6: 1,791,638 of 2,986,064 MACs are left at that point"),
        (("--then", "l2:0.5", "--then", "pff:0.55"), "--then pff:0.55: 1,493,032 of 2,986,064 MACs"),
        (("--then", "pff:x"), "--then pff:x: write METHOD:MACS"),
        (("--then", "pff epochs=2:0.3"), "--then 'pff epochs=2:0.3': write METHOD:MACS (pff:0.3)"),
        (("--then", "pff:0.3 lrr=1"), "secateurs: lrr=1: there is no such setting. pff's settings are"),
        (("--then", "pff:0.3 lr=1", "--set", "pff.lr=2"), "--then 'pff:0.3 lr=1' and --set pff.lr=2 both set lr"),
        (("--then", "l2:0.5,pff:0.3"), "names several methods: give --then l2:0.5 --then pff:0.3."),
        (("--then", "pff:"), "--then pff:: write METHOD:MACS"),
        (("--then", "pff 0.3"), "--then 'pff 0.3': write METHOD:MACS"),
        (("--then", ":0.3"), "--then :0.3: write METHOD:MACS"),
        (("--then", "pff : 1.8e+6"), "--then 'pff : 1.8e+6': 1,791,638 of 2,986,064 MACs are left at that point"),
        (("--then", "python:secateurs:PFFF:0.3"), "'python:secateurs:PFFF': secateurs has no 'PFFF'"),
        (("--then", "python:secateurs:L2"), "--then python:secateurs:L2: l2 needs a budget"),
        (("--then", "pff:0.3", "--set", "pff.lr=50%"), "--set pff.lr=50%: write --set pff.lr=0.5."),
        (
            ("--then", "pff:0.3", "--set", "pff.lr=1,epochs=2"),
            "--set pff.lr=1,epochs=2 has a comma: give the option several times, --set pff.lr=1 --set epochs=2.",
        ),
        (("--then", "nothing:0.3"), "nothing"),
        (("--then", "pff:0.3", "--then", "l2:0.2"), "Cut stripes last: --method l2 --then pff:MACS."),
        (("--then", "l2"), "--then l2: l2 needs a budget"),
        (("--then", "pff:0.0001"), "--then pff:0.0001: The budget"),
        (("--then", "pff:0.3", "--set", "pff.lrr=1"), "--set pff.lrr=1: there is no such setting. pff's settings are"),
        (("--then", "pff:0.3", "--set", "npn.lr=1"), "--set npn.lr=1: there is no such setting. l1's settings are"),
    ],
)
def test_then_is_refused_before_any_work(run, images, tmp_path, options, expected):
    job = ("prune", "zoo:small_cnn", "--data", f"folder:{images}", "--method", "l1", "--macs", 0.6)
    ran = run(*job, *options, "--out", tmp_path / "r")
    assert ran.status == 2
    assert expected in ran.err
    assert not list((tmp_path / "r").rglob("*.safetensors"))


def test_what_then_would_replace_is_safe(run, images, tmp_path):
    data = ("--data", f"folder:{images}", *QUICK, "--pretrain-epochs", 1)
    assert run("prune", "zoo:small_cnn", *data, *THEN[:4], "--out", tmp_path / "r").status == 0
    before = (tmp_path / "r" / "model.safetensors").read_bytes()
    ran = run("prune", "zoo:small_cnn", *data, *THEN, "--out", tmp_path / "r")
    assert ran.status == 2
    assert "holds an artifact" in ran.err
    assert not (tmp_path / "r" / "1-l1").exists()
    assert (tmp_path / "r" / "model.safetensors").read_bytes() == before
