"""An artifact never runs code of its own choosing, and fetches nothing, unless the user says so."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.artifact import CARD, MODEL, PLAN
from secateurs.cli import main
from secateurs.data.spec import remote

NET = """
import torch
import secateurs as sc


def network(num_classes=10):
    torch.manual_seed(0)
    return sc.build("zoo:small_cnn", num_classes=num_classes)
"""


def image() -> torch.Tensor:
    return torch.zeros(1, 3, 16, 16)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    result = sc.prune(sc.build("zoo:small_cnn"), image(), "l1", sc.Budget(macs=0.5))
    return result.save(tmp_path_factory.mktemp("saved") / "run")


def with_source(saved: Path, target: Path, **source: Any) -> Path:
    shutil.copytree(saved, target)
    card = json.loads((target / CARD).read_text())
    card["source"] = {"spec": "zoo:small_cnn", "num_classes": None, **source}
    card["data"] = {"data": "digits", "normalize": "none", "batch_size": 64, "image_size": 16}
    (target / CARD).write_text(json.dumps(card))
    return target


@pytest.fixture
def own(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact of a network that a module of the user's makes. The module is there, and notes when it is imported."""
    (tmp_path / "users_net.py").write_text(f"open('imported', 'w').close()\n{NET}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "users_net", raising=False)
    return with_source(saved, tmp_path / "run", spec="python:users_net:network")


class TestCode:
    def test_is_not_imported(self, own: Path) -> None:
        for use in (sc.load, lambda folder: sc.build(str(folder))):
            with pytest.raises(
                sc.ArtifactError, match=r"module users_net would be imported and network called"
            ) as error:
                use(own)
            assert str(own / CARD) in str(error.value)
            assert "trust_code=True" in str(error.value)
            assert "model=…" in str(error.value)
        assert "users_net" not in sys.modules
        assert not Path("imported").exists()

    def test_is_imported_by_those_who_trust_it(self, own: Path, saved: Path) -> None:
        expected = sc.load(saved)(image())
        for load in (sc.load, lambda folder, **how: sc.build(str(folder), **how).eval()):
            assert torch.equal(load(own, trust_code=True)(image()), expected)
        assert Path("imported").exists()

    def test_is_not_needed_with_the_model(self, own: Path, saved: Path) -> None:
        assert torch.equal(sc.load(own, sc.build("zoo:small_cnn"))(image()), sc.load(saved)(image()))
        assert "users_net" not in sys.modules

    def test_a_network_in_memory_is_pruned_further(self, own: Path) -> None:
        first = sc.prune(sc.build("python:users_net:network"), image(), "l1", sc.Budget(macs=0.6))
        second = sc.prune(first.model, image(), "l1", sc.Budget(macs=0.6))
        again = sc.load(second.save("twice"), trust_code=True)
        assert torch.equal(again(image()), second.model.eval()(image()))
        with pytest.raises(sc.ArtifactError, match="would be imported"):
            sc.load("twice")

    @pytest.mark.parametrize("command", ["evaluate", "inspect", "prune"])
    def test_on_the_command_line(self, own: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        more = ["--method", "l1", "--macs", "0.5", "--recover", "none", "--image-size", "16", "--out", "out"]
        arguments = [command, str(own), *(more if command == "prune" else [])]
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert "the module users_net would be imported" in said
        assert "--trust-code" in said
        assert "trust_code" not in said
        assert not Path("imported").exists()
        assert not Path("out").exists()
        assert main([*arguments, "--trust-code"]) == 0
        assert Path("imported").exists()

    def test_a_model_given_to_evaluate(self, own: Path) -> None:
        assert main(["evaluate", str(own), "--model", "zoo:small_cnn"]) == 0
        assert not Path("imported").exists()

    def test_what_a_command_made_itself_is_pruned_by_its_next_stage(self, own: Path) -> None:
        command = ["prune", "python:users_net:network", "--method", "l1", "--macs", "0.6", "--then", "l1:0.3"]
        more = ["--pretrain-epochs", "0", "--recover", "none", "--image-size", "16", "--out", "out"]
        assert main([*command, *more]) == 0


@pytest.mark.parametrize("spec", ["python:os:abort", "python:", "python:a", "zoo", "hub:x", "", "os:abort"])
def test_specs_that_are_not_followed(saved: Path, tmp_path: Path, spec: str) -> None:
    with pytest.raises(sc.ArtifactError, match=r"card\.json: (its network comes from|the network zoo cannot be built)"):
        sc.load(with_source(saved, tmp_path / "run", spec=spec))


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "DEFAULT"}, {"weights_backbone": "DEFAULT"}, {"pretrained": True}, {"pretrained": 1},
        {"pretrained_cfg": {"url": "https://example.com"}}, {"checkpoint_path": "/etc/passwd"}, {"cache_dir": "/tmp"},
        {"model_name": "hf-hub:a/b"}, {"name": "resnet18"}, {"anything": {"a": 1}}, {"anything": [{"url": "x"}]},
        {"hf_hub_id": "a/b"}, {"state_dict": "x"}, {"file": "x"}, {"path": "/tmp"},
    ],
)  # fmt: skip
def test_options_that_are_not_passed_on(saved: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(sc.ArtifactError, match=rf"card\.json: its network is built with {next(iter(options))}="):
        sc.load(with_source(saved, tmp_path / "run", **options))


def test_options_that_are_only_figures_are(tmp_path: Path) -> None:
    model = sc.build("zoo:alexnet_bn", small=True, in_channels=3)
    folder = sc.prune(model, torch.zeros(1, 3, 32, 32), "l1", sc.Budget(macs=0.5)).save(tmp_path / "run")
    assert isinstance(sc.load(folder), nn.Module)
    from secateurs.artifact.provenance import _loads

    for option, value in (("drop_path_rate", 0.1), ("drop_path", 0.1), ("weights", None), ("pretrained", False),
                          ("init_weights", True), ("act_layer", "relu"), ("depths", [2, 2, 6])):  # fmt: skip
        assert not _loads(option, value), option


def test_data_that_would_be_fetched(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = with_source(saved, tmp_path / "run")
    card = json.loads((folder / CARD).read_text())
    card["data"]["data"] = "hf:somebody/somewhat"
    (folder / CARD).write_text(json.dumps(card))
    assert main(["evaluate", str(folder)]) == 2
    assert "hf:somebody/somewhat would be fetched from the network: give it as --data" in capsys.readouterr().err
    assert main(["evaluate", str(folder), "--data", "digits"]) == 0


def test_which_data_is_remote(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    for spec in ("digits", "folder:/data", f"hf:{tmp_path}", f"hf:{tmp_path}?label=x", f"wds:{tmp_path}/a.tar,b.tar"):
        assert not remote(spec), spec
    for spec in ("hf:cifar10", "hf:a/b?label=x", "hf:hf://a", "wds:https://a/b.tar", "wds:a.tar,https://a/b.tar",
                 "wds:a.tar?val=https://a"):  # fmt: skip
        assert remote(spec), spec


# -- watched ---------------------------------------------------------------------------------------------------------------

WATCHED = """
import json, os, sys, traceback
folders, weights, out = json.loads(sys.argv[1])
import torch
import secateurs as sc
from pathlib import Path
from secateurs.cli.evaluate import evaluate  # below the parser, which compiles annotations
from secateurs.cli.inspect import inspect

def use(folder):
    for read in (sc.load, sc.build, inspect, lambda f: evaluate(Path(f))):
        try:
            read(folder)
        except sc.SecateursError:
            pass

def weigh(path):
    try:
        sc.build("zoo:small_cnn", weights=path)
    except sc.SecateursError:
        pass

use(folders.pop("good"))   # what our own code imports for such work is imported from here on
for good in weights.pop("good"):
    weigh(good)
seen, watching = [], False

def watch(event, args):
    if not watching:
        return
    if event == "open":
        path, mode, flags = args
        if isinstance(mode, str) and set("wax+") & set(mode) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen.append([event, str(path)])
    elif event in ("import", "exec", "compile", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove",
                   "os.rename", "os.mkdir", "subprocess.Popen", "pickle.find_class", "socket.connect", "ctypes.dlopen",
                   "marshal.loads", "code.__new__"):
        seen.append([event, repr(args)[:200], "".join(traceback.format_stack(limit=6))])

sys.addaudithook(watch)
watching = True
for folder in folders.values():
    use(folder)
for path in weights["bad"]:
    weigh(path)
watching = False
open(out, "w").write(json.dumps(seen))
"""


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch payload",))


def test_nothing_is_run_whatever_a_file_holds(saved: Path, tmp_path: Path) -> None:
    """Every kind of file, read by a process that notes all imports, all code that is run, all processes, connections and
    files that are written."""
    (tmp_path / "evil.py").write_text("open('evil', 'w').close()\n\n\ndef network(**_):\n    pass\n")
    folders = {"good": with_source(saved, tmp_path / "good")}
    for i, source in enumerate((
        {"spec": "python:os:abort"}, {"spec": "python:evil:network"}, {"spec": "evil:network"}, {"weights": "DEFAULT"},
        {"spec": "zoo:small_cnn", "__class__": "evil"}, {"spec": "zoo:evil.network"}, {"factory": "python:evil:network"},
        {"widen": [{"shapes": {"__import__": [1]}, "attributes": [["", "__class__", 3]]}]},
    )):  # fmt: skip
        folders[f"source{i}"] = with_source(saved, tmp_path / f"source{i}", **source)
    harmful = pickle.dumps(Payload())
    for name in (CARD, PLAN, MODEL):
        folders[name] = with_source(saved, tmp_path / f"pickle-{name}")
        (folders[name] / name).write_bytes(harmful)
    bad = [tmp_path / name for name in ("bare.pt", "zip.pt", "legacy.pt", "model.pt", "some.safetensors")]
    bad[0].write_bytes(harmful)
    torch.save({"model": Payload()}, bad[1])
    torch.save({"model": Payload()}, bad[2], _use_new_zipfile_serialization=False)
    torch.save(nn.Linear(2, 2), bad[3])
    bad[4].write_bytes(harmful)
    torch.save(sc.build("zoo:small_cnn").state_dict(), tmp_path / "good.pt")
    (tmp_path / "broken.pt").write_bytes(b"\x80\x02}q\x00")
    weights = {"good": [str(tmp_path / "good.pt"), str(tmp_path / "broken.pt")], "bad": [str(p) for p in bad]}
    arguments = json.dumps([{k: str(v) for k, v in folders.items()}, weights, str(tmp_path / "seen.json")])
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert not seen, "\n".join(map(str, seen))
    assert not (tmp_path / "payload").exists()
    assert not (tmp_path / "evil").exists()
