"""`--config` and `--print-config`: options from a file, overridden on the command line, with errors that name the key."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from secateurs.cli import app
from secateurs.cli.config import schema

NET = "zoo:small_cnn"


def written(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def printed(run: Any, *tokens: object) -> dict[str, Any]:
    ran = run("prune", *tokens, "--print-config")
    assert ran.status == 0, ran.err
    return yaml.safe_load(ran.out)


def test_a_file_has_all_options_in_the_types_that_yaml_has(run, tmp_path):
    file = written(tmp_path, """
model: zoo:resnet20
method: epruner
macs: 60e6              # text for YAML, which wants a point
lr: 1e-3
set: {beta: 0.7, init: l1, inner: true, name: "1"}
ratio: {layer1.*: 0.5}
min-channels: 8
max_cut: {"*": .9, conv1: 0.5}
exclude: fc
only: [layer1.*, layer2.*]
recover: [mimic:1, finetune:2]
milestones: [1, 2.5]
calibrate: false
rounds: 3
schedule: cubic
device: null
out: runs/r20
""")  # fmt: skip
    found = printed(run, "--config", file)
    assert (found["model"], found["macs"], found["lr"], found["out"]) == ("zoo:resnet20", 6e7, 1e-3, "runs/r20")
    assert found["set"] == ["beta=0.7", "init=l1", "inner=true", 'name="1"']
    assert (found["ratio"], found["min_channels"], found["max_cut"]) == (
        ["layer1.*=0.5"],
        ["8"],
        ["*=0.9", "conv1=0.5"],
    )
    assert (found["exclude"], found["only"]) == (["fc"], ["layer1.*", "layer2.*"])
    assert (found["recover"], found["milestones"]) == ("mimic:1,finetune:2", "1,2.5")
    assert (found["calibrate"], found["rounds"], found["schedule"], found["device"]) == (False, 3, "cubic", None)
    assert (found["weight_decay"], found["align"]) == (5e-4, None)  # what the file leaves out
    assert not {"resume", "force", "config", "print_config", "trust_code"} & found.keys()


@pytest.mark.parametrize("command", ["prune", "redesign", "compare-criteria", "sensitivity"])
def test_what_is_printed_can_be_fed_back(run, tmp_path, command):
    ran = run(command, "--print-config")
    assert ran.status == 0, ran.err
    values = yaml.safe_load(ran.out)
    assert values["model"] is None  # it has to be given
    again = run(command, "--config", written(tmp_path, ran.out), "--print-config")
    assert again.out == ran.out
    needed = {"compare-criteria": ("--layer", "conv1"), "sensitivity": ("--share", 0.5, 0.75)}.get(
        command, ("--out", "o")
    )
    full = run(command, NET, *needed, "--batch-size", 7, "--seed", 3, "--print-config")
    again = run(command, "--config", written(tmp_path, full.out), "--print-config")
    assert again.out == full.out
    assert {**values, **yaml.safe_load(full.out)}["batch_size"] == 7


def test_the_command_line_overrides_the_file(run, tmp_path):
    file = written(tmp_path, "model: zoo:resnet20\nmacs: 0.3\nexclude: [a, b]\ncalibrate: false\nout: x\nseed: 5\n")
    found = printed(
        run, "zoo:small_cnn", "--config", file, "--macs", 0.5, "--exclude", "c", "--calibrate", "--out", "y"
    )
    assert (found["model"], found["macs"], found["exclude"]) == ("zoo:small_cnn", 0.5, ["c"])
    assert (found["calibrate"], found["out"], found["seed"]) == (True, "y", 5)
    assert printed(run, f"--config={file}", "--model", "zoo:vgg16")["model"] == "zoo:vgg16"


@pytest.mark.parametrize(("text", "tokens", "kept", "gone"), [
    ("recover_epochs: 2", ("--recover", "mimic:1"), ("recover", "mimic:1"), "recover_epochs"),
    ("recover: [mimic:1, finetune:2]", ("--recover-epochs=4",), ("recover_epochs", 4.0), "recover"),
    ("milestones: [1, 2]\ngamma: 0.5", ("--lr-schedule", "cosine"), ("lr_schedule", "cosine"), "milestones"),
])  # fmt: skip
def test_the_command_line_takes_the_place_of_what_excludes_it(run, images, tmp_path, text, tokens, kept, gone):
    file = written(tmp_path, f"model: {NET}\ndata: folder:{images}\nmacs: 0.9\nmethod: l1\npretrain_epochs: 0\n{text}")
    found = printed(run, "--config", file, *tokens)
    assert found[kept[0]] == kept[1]
    assert found[gone] is None
    both = written(tmp_path, f"{text}\n{tokens[0].strip('-').partition('=')[0]}: {kept[1]}", "both.yaml")
    ran = run("prune", NET, "--config", both, "--data", f"folder:{images}", "--macs", 0.9, "--out", tmp_path / "r")
    assert "mutually exclusive" in ran.err


def test_a_run_from_a_file_is_the_run_from_the_command_line(run, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, f"""
model: {NET}
data: folder:{images}
method: l1
set: {{ranking: layer}}
macs: 0.5
pretrain_epochs: 0
recover_epochs: 0
out: from/file
""")  # fmt: skip
    (tmp_path / "sub").mkdir()
    file = file.rename(tmp_path / "sub" / "run.yaml")
    ran = run("prune", "--config", file)
    assert ran.status == 0, ran.err
    assert (tmp_path / "from" / "file" / "card.json").exists()  # relative to the working directory, as everywhere
    tokens = ["--data", f"folder:{images}", "--method", "l1", "--set", "ranking=layer", "--macs", 0.5]
    ran = run("prune", NET, *tokens, "--pretrain-epochs", 0, "--recover-epochs", 0, "--out", "line")
    assert ran.status == 0, ran.err
    settings = [json.loads((tmp_path / f / "run.json").read_text())["settings"] for f in ("from/file", "line")]
    assert settings[0] == settings[1]
    assert (tmp_path / "from/file/plan.json").read_bytes() == (tmp_path / "line/plan.json").read_bytes()
    ran = run("prune", "--config", file, "--resume")
    assert "finished already" in ran.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mac: 0.5", "mac is not an option of prune. Did you mean macs"),
        ("macs: half", "macs must be a number, not 'half'."),
        ("macs: true", "macs must be a number, not True."),
        ("macs: [0.5]", "macs must be a valid number, not [0.5]."),
        ("method: 3", "method must be a valid string, not 3."),
        ("seed: x", "seed must be a valid integer, not 'x'."),
        ("seed: 1.5", "seed must be a valid integer, not 1.5."),
        ("align: 0", "align must be greater than or equal to 1, not 0."),
        ("calibrate: 1", "calibrate must be a valid boolean, not 1."),
        ("lr_schedule: step", "lr_schedule must be 'onecycle', 'cosine' or 'constant', not 'step'."),
        ("schedule: cosine", "schedule must be 'linear' or 'cubic', not 'cosine'."),
        ("exclude: [1]", "exclude must be text, or a list of texts, not [1]."),
        ("set: 2020-01-01", "set must be a mapping, or NAME=VALUE or a list of those"),
        ("set: {a: 2020-01-01}", "set must have values that JSON has, too"),
        ("recover: []", "recover must be values with commas, or a list of them, not []."),
        ("resume: true", "resume is given on the command line only."),
        ("trust_code: true", "trust_code is given on the command line only."),
        ("- macs", "must hold options by name"),
        ("macs: 0.5\nmacs: 0.4", "is not valid YAML: line 1: macs is given twice."),
        ("set: [1", "is not valid YAML: line 1: "),
        ("macs: !!python/object:os.system 1", "is not valid YAML: line 1: "),
        ("mac: 0.5\nseed: x", "seed must be a valid integer, not 'x'. mac is not an option"),
    ],
)
def test_errors_name_the_file_and_the_key(run, tmp_path, text, message):
    file = written(tmp_path, text)
    for also in ((), ("--print-config",)):
        ran = run("prune", NET, "--out", tmp_path / "r", "--config", file, *also)
        assert ran.status == 2
        assert f"{file}" in ran.err
        assert message in ran.err
        assert len(ran.err.splitlines()) == 1
        assert ran.out == ""
    assert not (tmp_path / "r").exists()


def test_files_that_cannot_be_read(run, tmp_path):
    ran = run("prune", NET, "--out", "x", "--config", tmp_path / "nowhere.yaml")
    assert ran.status == 2
    assert "nowhere.yaml cannot be read: No such file or directory" in ran.err
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "it is not text in UTF-8" in run("prune", NET, "--out", "x", "--config", tmp_path / "b.yaml").err
    ran = run("prune", NET, "--out", "x", "--config")
    assert ran.status == 2
    assert "--config requires an argument" in ran.err
    ran = run("env", "--config", tmp_path / "b.yaml")
    assert (ran.status, "--config" in ran.err) == (2, True)


def test_what_has_to_be_given_is_still_asked_for(run, tmp_path):
    ran = run("prune", "--config", written(tmp_path, "macs: 0.5\nout: x\n"))
    assert ran.status == 2
    assert "needs a MODEL" in ran.err


def test_json_and_toml(run, tmp_path):
    body = {"macs": 0.5, "set": {"ranking": "layer"}, "exclude": ["a"]}
    found = printed(run, NET, "--config", written(tmp_path, json.dumps(body), "run.json"))
    assert (found["macs"], found["set"], found["exclude"]) == (0.5, ["ranking=layer"], ["a"])
    file = written(tmp_path, 'macs = 0.5\nexclude = ["a"]\n[set]\nranking = "layer"\n', "run.toml")
    if sys.version_info >= (3, 11):
        assert printed(run, NET, "--config", file) == found
        ran = run("prune", NET, "--out", "x", "--config", written(tmp_path, "macs =", "run.toml"))
        assert "run.toml is not valid TOML" in ran.err
    else:
        assert "TOML requires Python 3.11" in run("prune", NET, "--out", "x", "--config", file).err


def test_the_schema_has_every_option_of_the_command():
    found = schema(app, "prune").model_json_schema()
    assert found["additionalProperties"] is False
    assert (found["properties"]["rounds"]["default"], found["properties"]["rounds"]["anyOf"][0]["minimum"]) == (1, 1)
    for name in ("macs", "rounds", "batch_size", "exclude", "recover"):
        assert found["properties"][name]["description"]
