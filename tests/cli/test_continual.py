from __future__ import annotations

import json

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
