from __future__ import annotations

import json

import pytest
import torch

import secateurs as sc

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
    assert onto.status == 1
    assert "a" in onto.err
    assert (tmp_path / "a" / "model.safetensors").is_file()
    refused = run("prune", tmp_path / "a", *data, "--pretrain-epochs", 1, "--macs", 0.5, "--out", tmp_path / "c")
    assert refused.status == 1


def test_stripes_are_told_and_drawn(run, images, tmp_path):
    pytest.importorskip("matplotlib")
    pruned = run("prune", "zoo:small_cnn", "--data", f"folder:{images}", *QUICK, "--pretrain-epochs", 1, "--method", "pff",
                 "--set", "epochs=1", "--macs", 0.5, "--out", tmp_path / "a")  # fmt: skip
    assert pruned.status == 0, pruned.err
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    kept, of = (sum(layer[k] for layer in card["stripes"]) for k in ("stripes", "of_stripes"))
    line = f"stripes: {kept:,} of {of:,} stay ({kept / of:.1%})"
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
    assert refused.status == 1
    assert "shapes.png is there already: --force replaces it" in refused.err
    assert all(p.read_text() == "mine" for p in (tmp_path / "p").iterdir())
    assert run("inspect", tmp_path / "a", "--pictures", tmp_path / "p", "--force").status == 0
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (tmp_path / "p").iterdir())
    (tmp_path / "file").touch()
    for folder, reason in (("file", "is a file: give a folder"), ("file/p", "cannot be written to: Not a directory")):
        refused = run("inspect", tmp_path / "a", "--pictures", tmp_path / folder)
        assert refused.status == 1
        assert f"--pictures {tmp_path / folder} {reason}" in refused.err
    assert "give --pictures with it" in run("inspect", tmp_path / "a", "--force").err
    record = json.loads(run("inspect", tmp_path / "a", "--json").out)
    assert record["stripes"] == card["stripes"]
    assert run("inspect", "zoo:small_cnn", "--pictures", tmp_path / "q").status == 1
