"""The options that say which channels may be cut, and how far."""

from __future__ import annotations

import json

import pytest
import torch

import secateurs as sc
from secateurs.cli.limits import LimitOptions

NET = "zoo:small_cnn"
QUICK = (
    *("--batch-size", 16, "--pretrain-epochs", 0, "--recover", "none", "--no-calibrate", "--method", "l1"),
    *("--exclude", "stem", "--ratio", "conv1=0.3", "--min-channels", "plain.*=9", "--max-cut", 0.95),
)


def shown(ran) -> dict[str, str]:
    """By group, the last column of `inspect`."""
    lines = [line.split("  ") for line in ran.out.splitlines()]
    return {parts[0].strip(): parts[-1].strip() for parts in lines if len(parts) > 3}


def test_inspect_shows_them(run):
    ran = run("inspect", NET, "--exclude", "stem", "--ratio", "conv1=0.3", "--min-channels", 9, "--exclude", "fc")
    assert ran.status == 0, ran.err
    found = shown(ran)
    assert found["stem.0"] == "excluded by --exclude stem"
    assert found["conv1"] == "yes, keeps 12 by --ratio conv1=0.3"
    assert found["plain.0"] == "yes, keeps at least 9 by --min-channels 9"
    assert found["plain.3"] == "with --scope all, keeps at least 9 by --min-channels 9"
    assert found["fc"] == "reaches the model's output"  # whatever the user says
    assert "112 of 138 channels may be cut, 72 of them without --scope all" in ran.out


def test_inspect_and_prune_take_the_same_ratios(run, images, tmp_path):
    alone, both = ("--ratio", "plain.3=0.5"), ("--ratio", "plain=0.5")
    prune = ("prune", NET, "--data", f"folder:{images}", *QUICK[:-8], "--out", tmp_path / "r")
    for ran in (run("inspect", NET, *alone), run(*prune, *alone)):
        assert ran.status == 2
        assert "plain.3 is on a shortcut, and only --scope all cuts those" in " ".join(ran.err.split())
    said = "not reached by --ratio plain=0.5: it is on a shortcut, and only --scope all cuts those"
    found = shown(run("inspect", NET, *both))
    assert (found["plain.0"], found["plain.3"]) == ("yes, keeps 16 by --ratio plain=0.5", said)
    assert shown(run("inspect", NET, *both, "--scope", "all"))["plain.3"].endswith("keeps 20 by --ratio plain=0.5")
    record = json.loads(run("inspect", NET, *alone, "--scope", "all", "--json").out)
    assert record["lowest"].keys() == {"all"}  # with the other, the ratio is refused
    ran = run(*prune, *both)
    assert ran.status == 0, ran.err
    assert f"plain.3: {said}" in " ".join(ran.err.split())


def test_inspect_shows_what_is_not_among_the_only_ones(run):
    found = shown(run("inspect", NET, "--only", "conv1", "--only", "plain.0", "--max-cut", "conv1=0"))
    assert found["stem.0"] == found["plain.3"] == "not in --only conv1 --only plain.0"
    assert found["conv1"] == "kept whole by --max-cut conv1=0"
    assert found["plain.0"] == "yes"


def test_json(run):
    record = json.loads(run("inspect", NET, "--ratio", "conv1=0.3", "--exclude", "stem", "--json").out)
    groups = {g["name"]: g for g in record["groups"]}
    graph = sc.trace(sc.build(NET), torch.zeros(1, 3, 32, 32))
    assert record["lowest"]["internal"]["macs"] == graph.cost({"conv1": 12, "plain.0": 1}).macs
    assert record["lowest"]["all"]["macs"] == graph.cost({"conv1": 12, "plain.0": 1, "plain.3": 1}).macs
    assert groups["conv1"]["limit"] == "keeps 12 by --ratio conv1=0.3"
    assert (groups["conv1"]["least"], groups["conv1"]["most"]) == (12, 12)
    assert "limit" not in groups["plain.0"]


def test_prune(run, images, tmp_path):
    job = ("prune", NET, "--data", f"folder:{images}", *QUICK, "--macs", 0.5)
    ran = run(*job, "--out", tmp_path / "r")
    assert ran.status == 0, ran.err
    assert "stem.0: excluded by --exclude stem" in ran.err
    assert "conv1: keeps 12 by --ratio conv1=0.3" in ran.err
    card = json.loads((tmp_path / "r" / "card.json").read_text())
    assert 0.4 < card["after"]["macs"] / card["before"]["macs"] <= 0.5
    assert card["limits"] == {
        "exclude": ["stem"], "ratios": {"conv1": 0.3}, "min_channels": {"plain.*": 9}, "max_cut": {"*": 0.95},
    }  # fmt: skip
    plan = json.loads((tmp_path / "r" / "plan.json").read_text())
    assert "stem.0" not in plan["groups"]
    assert len(plan["groups"]["conv1"]) == 12
    # The same run, finished; and another one.
    assert run(*job, "--out", tmp_path / "r", "--resume").status == 0
    other = run(*job, "--exclude", "plain.3", "--out", tmp_path / "r", "--resume")
    assert other.status == 2
    assert "is another run: it differs in limits" in other.err


def test_a_further_cut_keeps_to_them(run, images, tmp_path):
    job = ("prune", NET, "--data", f"folder:{images}", *QUICK, "--macs", 0.6, "--then", "l2:0.4")
    ran = run(*job, "--out", tmp_path / "r")
    assert ran.status == 0, ran.err
    small = sc.load(tmp_path / "r")
    assert small.stem[0].out_channels == 16
    assert small.conv1.out_channels == 12  # not 30% of these again
    assert small.plain[0].out_channels >= 9
    cards = [json.loads((tmp_path / "r" / where / "card.json").read_text()) for where in ("1-l1", "")]
    assert [card["limits"]["ratios"] for card in cards] == [{"conv1": 0.3}, {"conv1": 1.0}]


def test_ratios_alone(run, images, tmp_path):
    ran = run("prune", NET, "--data", f"folder:{images}", *QUICK, "--out", tmp_path / "r")
    assert ran.status == 0, ran.err
    assert json.loads((tmp_path / "r" / "plan.json").read_text())["groups"].keys() == {"conv1"}


def test_what_cannot_be_met(run, images, tmp_path):
    ran = run("prune", NET, "--data", f"folder:{images}", *QUICK, "--macs", 0.2, "--out", tmp_path / "r")
    assert ran.status == 2
    assert "The lowest budget that can be met is --macs 0." in ran.err
    assert (
        "--exclude stem, --min-channels plain.*=9, --max-cut 0.95 and --ratio conv1=0.3 limit what may be cut"
        in ran.err
    )
    assert not (tmp_path / "r").exists()


def test_redesign_leaves_what_is_excluded_as_it_is(run, images, tmp_path):
    ran = run(
        *("redesign", NET, "--data", f"folder:{images}", "--batch-size", 16, "--epochs", 0, "--recover-epochs", 0),
        *("--method", "l1", "--exclude", "stem", "--min-channels", "conv1=30", "--out", tmp_path / "r"),
    )
    assert ran.status == 0, ran.err
    pruned = sc.load(tmp_path / "r" / "pruned")
    assert pruned.stem[0].out_channels == 16
    assert pruned.conv1.out_channels >= 30
    widths = json.loads((tmp_path / "r" / "redesign.json").read_text())["widths"]
    assert widths["conv1"][:2] == [40, 60]
    assert "stem.0" not in widths
    assert json.loads((tmp_path / "r" / "pruned" / "card.json").read_text())["limits"]["exclude"] == ["stem"]


def test_options() -> None:
    options = LimitOptions(("a", "b*"), (), ("x=0.5", "y=1"), ("8", "z.*=16"), ("0.9",))
    assert options.limits() == sc.Limits(
        exclude=["a", "b*"], ratios={"x": 0.5, "y": 1.0}, min_channels={"*": 8, "z.*": 16}, max_cut=0.9
    )
    assert not LimitOptions().limits()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--ratio", "0.5"), "--ratio 0.5: write PATTERN=NUMBER, such as layer4.*=0.5."),
        (("--ratio", "=0.5"), "--ratio =0.5: write PATTERN=NUMBER"),
        (("--ratio", "conv1=half"), "--ratio conv1=half: write PATTERN=NUMBER"),
        (("--ratio", "conv1=1.5"), "--ratio conv1=1.5 is not valid: it must be a fraction above 0, up to 1."),
        (
            ("--min-channels", "few"),
            "--min-channels few: write PATTERN=NUMBER, such as layer4.*=16, or 8 for all layers.",
        ),
        (("--min-channels", "0"), "--min-channels 0 is not valid: it must be a whole number of channels, 1 or more."),
        (("--max-cut", "conv1=2"), "--max-cut conv1=2 is not valid: it must be a fraction from 0 to 1."),
        (("--exclude", "convl"), "--exclude convl matches no layer that makes channels. Did you mean conv2 or conv1?"),
    ],
)
def test_what_is_not_valid(run, given, message):
    ran = run("inspect", NET, *given)
    assert ran.status == 2
    assert f"secateurs: {message}" in ran.err
