"""Artifacts and weights from strangers: whatever is in a file, or in its place, gives the network or one clear error that
names the file. Nothing hangs, nothing is changed."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import secateurs as sc
from secateurs.artifact import CARD, MODEL, PLAN
from secateurs.cli import main
from secateurs.errors import shown
from secateurs.plans.plan import _digest
from secateurs.zoo import load_state
from tests.damage import bound


def image() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with everything in it: widened, cut, its stripes cut, a card as the command line makes it."""
    torch.manual_seed(0)
    wide = sc.widen(sc.build("zoo:small_cnn"), image(), {"conv1": 50})
    once = sc.prune(wide, image(), "l1", sc.Budget(macs=0.6))
    graph = sc.trace(once.model, image())
    name = next(iter(graph.kernels))
    kept = torch.rand(graph.kernels[name], generator=torch.Generator().manual_seed(0)) < 0.7
    group = [g for g in graph.groups if g.prunable][-1]
    plan = graph.plan({group.name: range(group.size // 2)}, stripes={name: kept})
    small: Any = sc.apply(once.model, plan)
    from secateurs import artifact
    from secateurs.artifact.provenance import source_of
    from secateurs.plans.stripes import summary

    small.get_submodule(name.removesuffix(".weight")).kernels["cpu float32 2x3x16x16"] = "gemm"
    card = {
        **once.card(),
        "source": source_of(once.model),
        "stripes": summary(plan),
        "history": [{"event": "start"}],
        "data": {"data": "digits", "normalize": "none", "batch_size": 64, "image_size": None},
        "budget": {"macs": 0.6, "params": None, "align": 1},
        "recover": [],
        "seed": 0,
        "earlier": [{"method": "l1", "before": {"macs": 1, "params": 2, "top1": 90.0, "top5": None, "loss": 0.5}}],
        "seconds": 1.5,
    }
    folder = artifact.save(tmp_path_factory.mktemp("whole") / "run", small, plan, card)
    assert sc.load(folder)(image()).shape == (2, 10)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def state_of(folder: Path) -> dict[str, Any]:
    """Everything that is in a folder."""
    return {
        str(p.relative_to(folder)): (p.lstat().st_mode, p.read_bytes() if p.is_file() else None)
        for p in sorted(folder.rglob("*"))
    }


def refused(use: Callable[[], Any], folder: Path, *names: str) -> str:
    """That it fails with one clear error that names what is meant, and changes nothing."""
    before = state_of(folder)
    with pytest.raises(sc.SecateursError) as caught:
        use()
    assert state_of(folder) == before
    message = str(caught.value)
    for name in names:
        assert name in message, message
    assert len(message) < 2000
    message.encode()
    return message


def harmless(use: Callable[[], Any], folder: Path, name: str) -> str | None:
    """The same, where it may as well work; what was said if it did not."""
    message = None
    try:
        use()
    except sc.SecateursError as error:
        message = str(error)
    assert message is None or (name in message and len(message) < 2000), message
    return message


# -- in the place of a file ------------------------------------------------------------------------------------------------


def bomb() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    return content.getvalue()


PLACES: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda path: None,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a looping link": lambda path: path.symlink_to(path.name),
    "a folder": lambda path: path.mkdir(),
    "a FIFO": lambda path: os.mkfifo(path),
    "a socket": bound,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "an empty file": lambda path: path.write_bytes(b""),
    "random bytes": lambda path: path.write_bytes(random.Random(0).randbytes(5000)),
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"format": "secateurs", "version": 1})),
    "a zip bomb": lambda path: path.write_bytes(bomb()),
    "deep lists": lambda path: path.write_bytes(b"[" * 300_000),
    "deep objects": lambda path: path.write_bytes(b'{"a":' * 5_000 + b"0" + b"}" * 5_000),
    "a number": lambda path: path.write_bytes(b"9" * 100_000),
    "text that is not UTF-8": lambda path: path.write_bytes(b'{"format": "secateurs\xff", "version": 1}'),
    "control characters": lambda path: path.write_bytes(b'{"format": "\\u001b[2J\\ud800", "version": "\\u001b[2J"}'),
}


@pytest.mark.parametrize("name", [CARD, PLAN, MODEL])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_in_a_files_place(folder: Path, name: str, place: str) -> None:
    (folder / name).unlink()
    PLACES[place](folder / name)
    for use in (
        lambda: sc.load(folder),
        lambda: sc.build(str(folder)),
        lambda: sc.load(folder, sc.build("zoo:small_cnn")),
    ):
        message = refused(use, folder, str(folder), name)
        assert "\x1b" not in message


@pytest.mark.parametrize("name", [CARD, PLAN, MODEL])
@pytest.mark.parametrize("command", ["evaluate", "inspect", "prune"])
@pytest.mark.parametrize("place", ["a FIFO", "a folder", "an empty file", "deep lists"])
def test_the_same_from_the_command_line(
    folder: Path, name: str, command: str, place: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (folder / name).unlink()
    PLACES[place](folder / name)
    before = state_of(folder)
    more = ["--macs", "0.5", "--out", str(tmp_path / "out")] if command == "prune" else []
    assert main([command, str(folder), *more]) == 1
    said = capsys.readouterr().err
    assert said.startswith("secateurs: ")
    assert len(said.splitlines()) == 1
    assert name in said
    assert state_of(folder) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [CARD, PLAN, MODEL])
def test_cut_off_anywhere(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        (folder / name).write_bytes(content[: int(share * len(content))])
        refused(lambda: sc.load(folder), folder, str(folder), name)


@pytest.mark.parametrize("name", [CARD, PLAN, MODEL])
def test_what_may_not_be_read(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / name).chmod(0)
    real = os.open

    def as_a_user(path: Any, *rest: Any) -> int:  # root may read everything
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *rest)

    monkeypatch.setattr(os, "open", as_a_user)
    with pytest.raises(sc.ArtifactError, match=rf"{name} cannot be read: Permission denied"):
        sc.load(folder)


def test_a_folder_whose_name_is_not_utf8(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strange = os.fsdecode(os.fsencode(folder.parent) + b"/caf\xe9")
    os.rename(folder, strange)
    assert sc.load(strange)(image()).shape == (2, 10)
    assert main(["evaluate", strange, "--data", "digits", "--image-size", "16"]) == 0
    assert "caf\\xe9" in capsys.readouterr().out
    os.truncate(Path(strange) / PLAN, 10)
    with pytest.raises(sc.ArtifactError, match=r"caf\\xe9/plan\.json is damaged") as caught:
        sc.load(strange)
    str(caught.value).encode()


# -- what a file says ------------------------------------------------------------------------------------------------------


def deep() -> Any:
    value: Any = 0
    for _ in range(500):
        value = [value]
    return value


VALUES = {
    "null": None, "-1": -1, "0": 0, "1e308": 1e308, "2**62": 2**62, "2**70": 2**70, "true": True, "text": "x",
    "control characters": "\x1b[2J", "a surrogate": "\ud800", "an empty list": [], "an empty object": {},
    "a list of lists": [[[]]], "nested deeply": deep(),
}  # fmt: skip


def fields(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a tree of JSON; of a list the first and the last."""
    if path:
        yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        if not isinstance(tree, list) or key in (0, len(tree) - 1):
            yield from fields(value, (*path, key))


def changed(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    tree = copy.deepcopy(tree)
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return tree


def signed(folder: Path, plan: Any) -> None:
    """Write a plan with digests that fit, as whoever means harm does."""
    body = {k: v for k, v in plan.items() if k != "digest"} if isinstance(plan, dict) else plan
    (folder / PLAN).write_text(json.dumps({**body, "digest": _digest(body)}))
    card = json.loads((folder / CARD).read_text())
    card["files"][PLAN] = hashlib.sha256((folder / PLAN).read_bytes()).hexdigest()
    (folder / CARD).write_text(json.dumps(card))


def use_card(folder: Path) -> None:
    """All that is read from a card."""
    from secateurs import artifact
    from secateurs.report import outcome, stripes_line
    from secateurs.runs.stages import earlier

    sc.load(folder)
    _, card = artifact.read(folder)
    outcome(card.networks())
    earlier(card)
    stripes_line([layer.model_dump() for layer in card.stripes])
    if card.source is not None:
        assert isinstance(card.source.spec, str)


@pytest.mark.parametrize("value", VALUES)
def test_every_field_of_a_card(folder: Path, value: str) -> None:
    card = json.loads((folder / CARD).read_text())
    # The plans within it are the next test's.
    places = [p for p in fields(card) if p[:2] != ("source", "plans") or len(p) <= 4]
    assert len(places) > 80
    said = 0
    for path in places:
        (folder / CARD).write_text(json.dumps(changed(card, path, VALUES[value])))
        said += harmless(lambda: use_card(folder), folder, str(folder)) is not None
    assert said > 20


@pytest.mark.parametrize("value", VALUES)
def test_every_field_of_a_plan(folder: Path, value: str) -> None:
    plan = json.loads((folder / PLAN).read_text())
    assert not [part for part in ("groups", "shapes", "kept", "attributes", "consumes", "stripes") if not plan[part]]
    said = 0
    for path in fields(plan):
        signed(folder, changed(plan, path, VALUES[value]))
        said += harmless(lambda: sc.load(folder), folder, str(folder)) is not None
    assert said > 20


def test_a_plan_of_impossible_sizes_takes_no_memory(folder: Path) -> None:
    plan = json.loads((folder / PLAN).read_text())
    for size in (2**33, 2**40, 2**62, 2**70):
        for name, shape in plan["shapes"].items():
            for axis in range(len(shape)):
                signed(folder, changed(plan, ("shapes", name, axis), size))
                refused(lambda: sc.load(folder), folder, PLAN)


def test_a_network_of_impossible_size_is_not_made(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    for name, value in (("num_classes", 2**31 - 1), ("in_channels", 2**60), ("in_channels", -3)):
        (folder / CARD).write_text(json.dumps(changed(card, ("source", name), value)))
        refused(lambda: sc.load(folder), folder, CARD)


# -- weights ---------------------------------------------------------------------------------------------------------------


NET = "zoo:small_cnn"


def cyclic(key: str) -> dict[str, Any]:
    state: dict[str, Any] = {}
    state[key] = state
    return state


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"state_dict": value}
    return value


def network() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return sc.build(NET).state_dict()


def with_(key: str, value: Callable[[torch.Tensor], Any]) -> Callable[[], Any]:
    def state() -> Any:
        own = network()
        return {**own, key: value(own[key])}

    return state


CONTENTS: dict[str, tuple[Callable[[], Any], str]] = {
    "itself as state_dict": (lambda: cyclic("state_dict"), "state dict"),
    "itself as model": (lambda: cyclic("model"), "state dict"),
    "many wrappers": (lambda: nested(200), "state dict"),
    "a list": (lambda: [1, 2], "of type list"),
    "a deep key": (lambda: {tuple([()] * 9): 1}, "a tuple"),
    "control characters": (lambda: {"\x1b[2J": 1}, "maps names to tensors"),
    "sparse": (with_("fc.weight", lambda w: w.to_sparse()), "fc.weight is sparse"),
    "meta": (with_("fc.weight", lambda w: w.to("meta")), "fc.weight has no values"),
    "integers": (with_("fc.weight", lambda w: w.int()), "fc.weight is int32 in the file and float32"),
    "bools": (with_("fc.weight", lambda w: w > 0), "fc.weight is bool in the file"),
    "complex": (with_("fc.weight", lambda w: w.to(torch.complex64)), "fc.weight is complex64"),
    "NaN": (with_("fc.weight", lambda w: w * float("nan")), "fc.weight has NaN values"),
    "NaN in half precision": (with_("fc.weight", lambda w: w.half() * float("nan")), "fc.weight has NaN values"),
    "infinity": (with_("fc.bias", lambda w: w - float("inf")), "fc.bias has infinite values"),
    "NaN in a buffer": (with_("stem.1.running_var", lambda w: w * float("nan")), "stem.1.running_var has NaN values"),
    "a huge view": (with_("fc.weight", lambda w: w[:1, :1].expand(2**30, 2**30)), "of another shape"),
    "a counter as a float": (with_("stem.1.num_batches_tracked", lambda w: w.float()), "float32 in the file and int64"),
    "names twice": (with_("fc.weight", lambda w: w), "twice"),
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("content", CONTENTS)
def test_what_a_pt_file_holds(tmp_path: Path, content: str, legacy: bool) -> None:
    make, message = CONTENTS[content]
    state = make()
    if content == "names twice":
        state["module.fc.weight"] = state["fc.weight"]
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    said = refused(lambda: sc.build(NET, weights=tmp_path / "w.pt"), tmp_path, str(tmp_path / "w.pt"), message)
    assert "\x1b" not in said


@pytest.mark.parametrize("content", ["integers", "bools", "NaN", "infinity", "NaN in a buffer"])
def test_what_a_safetensors_file_holds(tmp_path: Path, content: str) -> None:
    make, message = CONTENTS[content]
    save_file(make(), tmp_path / "w.safetensors")
    refused(lambda: sc.build(NET, weights=tmp_path / "w.safetensors"), tmp_path, "w.safetensors", message)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_in_the_place_of_weights(
    tmp_path: Path, place: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"w{suffix}"
    PLACES[place](path)
    refused(lambda: sc.build(NET, weights=path), tmp_path, str(path))
    assert main(["evaluate", "--model", NET, "--weights", str(path)]) == 1
    said = capsys.readouterr().err
    assert str(path) in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_good_weights_of_any_age_and_precision_load(tmp_path: Path, legacy: bool, dtype: torch.dtype) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in network().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    model = sc.build(NET, weights=tmp_path / "w.pt")
    assert torch.equal(model.get_parameter("fc.weight"), state["fc.weight"].float())


def test_bytes_of_a_pt_file_changed_at_random(tmp_path: Path) -> None:
    """Whatever comes of it, it is the state dict or one clear error."""
    draw = random.Random(0)
    for legacy in (False, True):
        torch.save({"a": torch.arange(9.0)}, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
        content = (tmp_path / "w.pt").read_bytes()
        for _ in range(150):
            other = bytearray(content)
            for at in draw.sample(range(len(other)), 3):
                other[at] = draw.randrange(256)
            (tmp_path / "w.pt").write_bytes(other)
            harmless(lambda: load_state(tmp_path / "w.pt"), tmp_path, "w.pt")


def resaved(folder: Path, **tensors: torch.Tensor) -> None:
    """Other weights, with a digest that fits."""
    save_file({**load_file(folder / MODEL), **tensors}, folder / MODEL)
    card = json.loads((folder / CARD).read_text())
    card["files"][MODEL] = hashlib.sha256((folder / MODEL).read_bytes()).hexdigest()
    (folder / CARD).write_text(json.dumps(card))


def test_weights_of_an_artifact(folder: Path) -> None:
    own = load_file(folder / MODEL)
    kept = next(key for key in own if key.endswith(".kept"))
    for key, tensor, message in (
        ("fc.weight", own["fc.weight"] * float("nan"), "fc.weight has NaN values"),
        ("fc.weight", own["fc.weight"].int(), "fc.weight is int32 in the file and float32 in the model"),
        ("fc.weight", own["fc.weight"][:, :1].contiguous(), "of another shape"),
        ("extra", torch.zeros(1), "1 unexpected: extra"),
        (kept, ~own[kept], "does not have the plan's stripes"),
    ):
        resaved(folder, **{**own, key: tensor})
        refused(lambda: sc.load(folder), folder, str(folder / MODEL), message)
        save_file(own, folder / MODEL)


def test_tied_weights_that_are_stored_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

    from secateurs.zoo.weights import load_into

    model, other = Tied(), Tied()
    state = dict(model.state_dict())
    del state["a.weight"]
    save_file(state, tmp_path / "w.safetensors")
    load_into(other, tmp_path / "w.safetensors", "Tied")
    assert torch.equal(other.a.weight, model.a.weight)


def test_names_are_shown_without_control_characters() -> None:
    assert shown("a\x1b[2J\nb") == "a\\x1b[2J\\nb"
    assert shown("caf\udce9") == "caf\\xe9"
    assert shown("\ud800") == "\\ud800"
