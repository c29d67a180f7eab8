"""`hf:USER/NAME`: from a local cache, offline, with an artifact's files only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs import artifact
from secateurs.artifact import hub
from secateurs.cli import main
from secateurs.testing.networks import images

constants = pytest.importorskip("huggingface_hub.constants")
huggingface_hub = pytest.importorskip("huggingface_hub")
FILES = ("card.json", "plan.json", "model.safetensors", "README.md")
COMMITS = {"main": "1" * 40, "v1": "2" * 40}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    result = sc.prune(sc.build("zoo:small_cnn", num_classes=4), images(1), "l1", sc.Budget(macs=0.6))
    return result.save(tmp_path_factory.mktemp("saved") / "r")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub._fetched.cache_clear()
    return tmp_path / "cache"


def put(
    cache: Path, folder: Path, name: str = "me/net", revision: str = "main", files: tuple[str, ...] = FILES
) -> Path:
    """Files of a repository in the cache, as huggingface_hub lays them out."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMITS[revision]
    for place in (snapshot, repository / "refs", repository / "blobs"):
        place.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(COMMITS[revision])
    for file in files:
        blob = repository / "blobs" / f"{revision}-{file}"
        shutil.copy(folder / file, blob)
        (snapshot / file).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_it_loads_what_was_saved(cache: Path, saved: Path) -> None:
    put(cache, saved)
    model = sc.load("hf:me/net")
    assert same(model, sc.load(saved))
    assert sc.card("hf:me/net") == sc.card(saved)
    assert same(sc.load(Path("hf:me/net"), sc.build("zoo:small_cnn", num_classes=4)), model)
    again = sc.prune(sc.build("hf:me/net"), images(1), "l2", sc.Budget(macs=0.8))
    again.save(cache.parent / "again")
    assert sc.load(cache.parent / "again") is not None


def test_a_revision(cache: Path, saved: Path, tmp_path: Path) -> None:
    other = sc.prune(sc.build("zoo:small_cnn", num_classes=4), images(1), "l1", sc.Budget(macs=0.3)).save(
        tmp_path / "o"
    )
    put(cache, saved)
    put(cache, other, revision="v1")
    assert sc.card("hf:me/net@v1") == sc.card(other)
    assert sc.card(f"hf:me/net@{COMMITS['v1']}") == sc.card(other)
    assert sc.card("hf:me/net") == sc.card(saved)


def test_only_an_artifacts_files_are_asked_for(cache: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, asked = put(cache, saved), []

    def download(repository: str, file: str, revision: str | None = None) -> str:
        asked.append((repository, file, revision))
        return str(snapshot / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    sc.load("hf:me/net")
    sc.load("hf:me/net")
    commit = COMMITS["main"]
    assert asked == [
        ("me/net", "card.json", None),
        ("me/net", "plan.json", commit),
        ("me/net", "model.safetensors", commit),
    ]


def test_what_is_no_artifact_is_not_fetched(
    cache: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "card.json").write_text('{"format": "other"}')
    snapshot, asked = put(cache, tmp_path, files=("card.json",)), []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda r, f, revision=None: asked.append(f) or str(snapshot / f)
    )
    with pytest.raises(sc.ArtifactError, match="hf:me/net is not a Secateurs artifact"):
        sc.load("hf:me/net")
    assert asked == ["card.json"]


def test_a_damaged_copy(cache: Path, saved: Path) -> None:
    snapshot = put(cache, saved)
    blob = (snapshot / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(sc.ArtifactError, match=r"model\.safetensors is damaged"):
        sc.load("hf:me/net")


def raising(error: str, *args: Any) -> Callable[..., Any]:
    kind = getattr(import_module("huggingface_hub.errors"), error)

    def download(*_: Any, **__: Any) -> Any:
        made = kind.__new__(kind)
        Exception.__init__(made, *(args or (error,)))
        raise made

    return download


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "hf:me/net@v1 is gated: ask for access"),
        ("RepositoryNotFoundError", "There is no repository me/net on the hub that you may read"),
        ("RevisionNotFoundError", "me/net has no revision v1"),
        ("EntryNotFoundError", r"hf:me/net@v1 is not a Secateurs artifact: it has no card\.json"),
        ("HfHubHTTPError", r"card\.json of hf:me/net@v1 could not be fetched: HfHubHTTPError"),
        ("HFValidationError", "hf:me/net@v1 is not a valid name"),
    ],
)
def test_what_a_hub_answers(cache: Path, monkeypatch: pytest.MonkeyPatch, error: str, message: str) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", raising(error))
    with pytest.raises(sc.ArtifactError, match=message):
        sc.load("hf:me/net@v1")


def test_offline_and_not_in_the_cache(cache: Path, saved: Path) -> None:
    with pytest.raises(sc.ArtifactError, match=r"card\.json of hf:me/net is not in the local cache, and the hub"):
        sc.load("hf:me/net")
    put(cache, saved, files=("card.json", "plan.json"))
    with pytest.raises(sc.ArtifactError, match=r"model\.safetensors of hf:me/net is not in the local cache"):
        sc.card("hf:me/net")


def test_without_a_network_it_fails_at_once(
    cache: Path, saved: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is tried again, or logged; what is in the cache is used."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing answers
    for module in ("file_download", "utils._http"):
        monkeypatch.setattr(import_module(f"huggingface_hub.{module}").time, "sleep", lambda s: pytest.fail("it waits"))
    with pytest.raises(sc.ArtifactError, match=r"card\.json of hf:me/net is not in the local cache, and the hub"):
        sc.load("hf:me/net")
    put(cache, saved)
    assert same(sc.load("hf:me/net"), sc.load(saved))
    assert not caplog.records


NAMES = ["hf:net", "hf:", "hf:../../etc/passwd", "hf:me/net@", "hf:me/net@a b", "hf:a/b/c", "hf:me/net\n"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_none(cache: Path, name: str) -> None:
    with pytest.raises(sc.ArtifactError, match="is not a valid name: write hf:USER/NAME"):
        sc.load(name)


def test_without_the_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(sc.ArtifactError, match=r"pip install 'secateurs\[hub\]'"):
        sc.load("hf:me/net")


def test_nothing_is_saved_there(cache: Path, saved: Path) -> None:
    plan, model = artifact.read(saved)[0], sc.load(saved)
    with pytest.raises(sc.ArtifactError, match="save to a folder, and upload that"):
        artifact.save("hf:me/net", model, plan, {})
    assert not Path("hf:me").exists()


def test_code_that_its_card_names_is_not_run(cache: Path, saved: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(saved, theirs)
    body = json.loads((theirs / "card.json").read_text())
    body["source"] = {"spec": "python:os:abort"}
    (theirs / "card.json").write_text(json.dumps(body))
    put(cache, theirs)
    with pytest.raises(sc.ArtifactError, match="its network comes from python:os:abort"):
        sc.load("hf:me/net")


def test_the_command_line(
    cache: Path, saved: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache, saved)
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "hf:me/net"]) == 0
    assert "channels may be cut" in capsys.readouterr().out
    assert main(["bench", "hf:me/net", "--target", "torch-cpu", "--seconds", "0.1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["artifact"] == "hf:me/net"
    assert main(["export", "hf:me/net", "--to", "pt2"]) == 0
    assert (tmp_path / "model.pt2").exists()
    assert main(["report", "hf:me/net"]) == 0
    assert (tmp_path / "report.html").exists()
    assert main(["bench", "hf:me/net", "--save"]) == 2
    assert "--save" in capsys.readouterr().err
    assert main(["evaluate", "hf:me/other"]) == 1
    assert "is not in the local cache" in capsys.readouterr().err
    assert not (tmp_path / "hf:me").exists()


def test_evaluate_and_prune_offline_in_a_process_of_their_own(cache: Path, saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    put(cache, saved)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    code = (
        "from secateurs.cli import main; import sys; "
        "sys.exit(main(['prune', 'hf:me/net', '--data', 'digits', '--normalize', 'none', '--method', 'l1', '--macs', '0.9', "
        "'--num-classes', '4', '--recover', 'none', '--out', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p")], env=environment, capture_output=True, text=True
    )
    assert "has 4 outputs and the data 10 classes" in done.stderr, done.stderr  # it was found, and read
