"""Artifacts: what is saved comes back, what is damaged is refused, what is killed leaves the old one whole."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import secateurs as sc
from secateurs import artifact
from secateurs.artifact import CARD, MODEL, NEW, PLAN, README, STAGED
from secateurs.artifact.folder import own_readme

OLD_CARD = """
{"format": "secateurs", "version": 1, "source": {"spec": "zoo:small_cnn", "num_classes": 10}, "method": {"name": "l1",
"ranking": "global"}, "before": {"macs": 746944, "params": 46106, "top1": 10.03, "top5": 50.42, "loss": 2.3}, "cut": {"macs":
445056, "params": 27842, "top1": 10.03, "top5": 50.42, "loss": 2.302}, "after": {"macs": 445056, "params": 27842, "top1": 10.03,
"top5": 50.42, "loss": 2.302}, "error": 0.0, "stripes": [{"layer": "stem.0", "kernel": [3, 3], "filters": 11, "of_filters": 11,
"stripes": 61, "of_stripes": 99, "shares": [[0.5, 0.6], [0.7, 1.0]], "index": 99}], "history": [{"epoch": 1, "lr": 0.05}],
"versions": {"secateurs": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.7"}, "data": {"data": "digits", "normalize": "none",
"batch_size": 128, "image_size": 16}, "budget": {"macs": 0.6, "params": null, "align": 1}, "recover": [], "seed": 0, "earlier":
[{"method": "l1", "before": {"macs": 746944, "params": 46106, "top1": 10.03, "top5": 50.42, "loss": 2.3}}], "seconds": 9.0,
"kernels": {"stem.0": {"cpu float32 1x3x16x16": "gemm"}}}
"""


def image() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return sc.build("zoo:small_cnn")


@pytest.fixture(scope="module")
def result(model: nn.Module) -> sc.Result:
    return sc.prune(model, image(), "l1", sc.Budget(macs=0.5))


@pytest.fixture
def saved(result: sc.Result, tmp_path: Path) -> Path:
    return result.save(tmp_path / "run")


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key]), key


def change_card(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, **changes}))


class TestRoundTrip:
    def test_from_the_source(self, result: sc.Result, saved: Path) -> None:
        loaded = sc.load(str(saved))
        assert_equal(loaded, result.model)
        assert not loaded.training
        assert sorted(p.name for p in saved.iterdir()) == [README, CARD, MODEL, PLAN]

    def test_into_a_model_which_is_left_as_it_is(self, model: nn.Module, result: sc.Result, saved: Path) -> None:
        fresh = sc.build("zoo:small_cnn")
        before = {k: v.clone() for k, v in fresh.state_dict().items()}
        assert_equal(sc.load(saved, model=fresh), result.model)
        for key, value in before.items():
            assert torch.equal(fresh.state_dict()[key], value)

    def test_what_is_read_says_where_it_came_from(self, saved: Path, result: sc.Result) -> None:
        plan, card = artifact.read(saved)
        assert plan == result.plan
        assert card.source is not None
        assert card.source.record() == {"spec": "zoo:small_cnn", "num_classes": None}
        assert (card.before, card.cut, card.after) == (result.before, result.cut, result.after)
        assert card.method is not None
        assert card.method.name == "l1"

    def test_fields_of_a_later_version_are_kept(self, saved: Path, result: sc.Result) -> None:
        change_card(
            saved, later={"a": [1, None]}, source={"spec": "zoo:small_cnn", "num_classes": None, "in_channels": 3}
        )
        card = artifact.read(saved)[1]
        assert card.model_dump()["later"] == {"a": [1, None]}
        assert card.source is not None
        assert card.source.options == {"in_channels": 3}
        assert_equal(sc.load(saved), result.model)

    def test_a_card_of_the_first_version(self, saved: Path, result: sc.Result) -> None:
        """As `result.save` wrote it before cards had a schema, word for word but for the digests."""
        card = json.loads((saved / CARD).read_text())
        old = json.loads(OLD_CARD)
        (saved / CARD).write_text(json.dumps({**old, "files": card["files"]}))
        read = artifact.read(saved)[1]
        assert read.calibrated == read.cut  # it was saved before there was calibration
        assert [name for name, _ in read.networks()] == ["before", "after l1", "after the cut"]
        assert read.data is not None
        assert read.data.normalize == "none"
        assert_equal(sc.load(saved), result.model)

    def test_tied_and_half_precision_weights(self, tmp_path: Path) -> None:
        def build() -> nn.Module:
            torch.manual_seed(1)
            net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)).half()
            net[2].weight = net[1].weight
            return net

        result = sc.prune(build(), image().half(), "l1", sc.Budget(macs=0.6), scope="all")
        loaded = sc.load(result.save(tmp_path / "run"), model=build())
        assert_equal(loaded, result.model)
        assert loaded[1].weight is loaded[2].weight
        assert loaded[0].weight.dtype is torch.float16

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_a_network_loads_in_its_own_number_format(self, tmp_path: Path, dtype: torch.dtype) -> None:
        """The spec builds float32, which has neither the bits of a double nor the format that the signature records."""
        result = sc.prune(sc.build("zoo:small_cnn").to(dtype), image().to(dtype), "l1", sc.Budget(macs=0.6))
        loaded = sc.load(result.save(tmp_path / "run"))
        assert_equal(loaded, result.model)
        assert {p.dtype for p in loaded.parameters()} == {dtype}
        assert torch.equal(loaded(image().to(dtype)), result.model.eval()(image().to(dtype)))

    def test_a_card_of_arrays_and_of_numbers_that_json_does_not_have(self, result: sc.Result, tmp_path: Path) -> None:
        card = {
            **result.card(),
            "a": np.int64(3),
            "b": torch.tensor([1.0, float("nan")]),
            "c": float("inf"),
            "d": Path("x"),
            5: (1, 2),
        }
        artifact.save(tmp_path / "run", result.model, result.plan, card)
        text = (tmp_path / "run" / CARD).read_text()
        read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert {k: read[k] for k in ("a", "b", "c", "d", "5")} == {
            "a": 3, "b": [1.0, None], "c": None, "d": "x", "5": [1, 2],
        }  # fmt: skip

    def test_the_kernels_of_stripe_convolutions(self, model: nn.Module, result: sc.Result, tmp_path: Path) -> None:
        name, conv = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
        kept = torch.rand(conv.out_channels, *conv.kernel_size, generator=torch.Generator().manual_seed(0)) < 0.5
        plan = sc.trace(model, image()).plan({}, stripes={f"{name}.weight": kept})
        small: Any = sc.apply(model, plan)
        small.get_submodule(name).kernels["cpu float32 2x3x16x16"] = "gemm"
        artifact.save(tmp_path / "run", small, plan, result.card())
        loaded = sc.load(tmp_path / "run", model)
        assert loaded.get_submodule(name).kernels == {"cpu float32 2x3x16x16": "gemm"}
        assert torch.equal(loaded(image()), small.eval()(image()))
        change_card(tmp_path / "run", kernels={name: {"cpu float32 2x3x16x16": "of another version"}, "gone": {}})
        assert not sc.load(tmp_path / "run", model).get_submodule(name).kernels

    def test_any_folder(self, result: sc.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A nested one, one whose name is not UTF-8, the working directory, a link."""
        strange = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
        assert_equal(sc.load(result.save(strange)), result.model)
        assert_equal(sc.load(result.save(strange, overwrite=True)), result.model)
        assert_equal(sc.load(result.save(tmp_path / "a" / "b" / "c")), result.model)
        (tmp_path / "here").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "here")
        monkeypatch.chdir(tmp_path / "here")
        for folder in (".", tmp_path / "link", tmp_path / "here"):
            assert_equal(sc.load(result.save(folder, overwrite=True)), result.model)
        assert (tmp_path / "link").is_symlink()
        assert sorted(os.listdir(".")) == [README, CARD, MODEL, PLAN]

    def test_no_pickle(self, result: sc.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def used(*_: object, **__: object) -> None:
            raise AssertionError("pickle was used")

        for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
            monkeypatch.setattr(pickle, name, used)
        for name in ("save", "load"):
            monkeypatch.setattr(torch, name, used)
        saved = result.save(tmp_path / "run")
        assert_equal(sc.load(saved), result.model)
        for path in saved.iterdir():
            raw = path.read_bytes()
            assert not raw.startswith((b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK\x03\x04"))
            assert b"torch._utils" not in raw
            assert b"_rebuild_tensor" not in raw


class TestDamage:
    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(sc.ArtifactError, match=r"no folder .*nowhere"):
            sc.load(tmp_path / "nowhere")

    @pytest.mark.parametrize("name", [PLAN, MODEL, CARD])
    def test_missing_file(self, saved: Path, name: str) -> None:
        (saved / name).unlink()
        with pytest.raises(sc.ArtifactError, match=rf"not a complete artifact: {name} is missing"):
            sc.load(saved)

    @pytest.mark.parametrize("name", [PLAN, MODEL, CARD])
    @pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
    def test_truncated(self, saved: Path, name: str, share: float) -> None:
        raw = (saved / name).read_bytes()
        (saved / name).write_bytes(raw[: int(share * len(raw))])
        with pytest.raises(sc.ArtifactError, match=rf"{name} is (damaged|empty|not valid)"):
            sc.load(saved)

    @pytest.mark.parametrize("name", [PLAN, MODEL])
    def test_flipped_bit(self, saved: Path, name: str) -> None:
        raw = bytearray((saved / name).read_bytes())
        for at in random.Random(0).sample(range(len(raw)), 5):
            flipped = bytearray(raw)
            flipped[at] ^= 1 << 4
            (saved / name).write_bytes(flipped)
            with pytest.raises(sc.ArtifactError, match=rf"{name} is damaged.*digest"):
                sc.load(saved)

    @pytest.mark.parametrize("text", ["[]", "3", '{"a": 1}', '{"format": "other", "version": 1}', "\xff\xfe"])
    def test_another_card(self, saved: Path, text: str) -> None:
        (saved / CARD).write_bytes(text.encode("latin-1"))
        with pytest.raises(sc.ArtifactError, match=r"card\.json is not valid"):
            sc.load(saved)

    @pytest.mark.parametrize("files", [None, [], {}, {PLAN: "0"}, "x"])
    def test_card_without_digests(self, saved: Path, files: Any) -> None:
        change_card(saved, files=files)
        with pytest.raises(sc.ArtifactError, match=r"card\.json is not valid: field 'files|digest"):
            sc.load(saved)

    @pytest.mark.parametrize("name", ["before", "cut", "after", "source", "data", "error"])
    def test_card_of_other_things(self, saved: Path, name: str) -> None:
        change_card(saved, **{name: "x"})
        with pytest.raises(sc.ArtifactError, match=rf"card\.json is not valid: field '{name}': .*'x'"):
            sc.load(saved)

    @pytest.mark.parametrize("version", [2, 99, None, "1"])
    def test_newer_version(self, saved: Path, version: Any) -> None:
        """Said before anything else of what it does not understand."""
        change_card(saved, version=version, files={})
        with pytest.raises(sc.ArtifactError, match=rf"version {version}.*reads versions up to 1: upgrade"):
            sc.load(saved)

    def test_wrong_model(self, saved: Path) -> None:
        with pytest.raises(sc.PlanError, match="another network"):
            sc.load(saved, model=sc.build("zoo:resnet20"))
        with pytest.raises(sc.ArtifactError, match="does not fit"):
            sc.load(saved, model=sc.build("zoo:small_cnn", num_classes=7))

    def test_a_larger_model_of_the_same_family(self, saved: Path) -> None:
        """Its keys are not to be renamed: nobody wrote the file by hand."""
        model = sc.build("zoo:small_cnn")
        model.more = nn.Linear(2, 2)
        with pytest.raises(
            sc.ArtifactError, match=r"2 missing: more\.weight.* The artifact is of another network"
        ) as error:
            sc.load(saved, model=model)
        assert "rename" not in str(error.value)

    def test_cut_model(self, saved: Path, result: sc.Result) -> None:
        with pytest.raises(sc.PlanError, match="already cut"):
            sc.load(saved, model=result.model)

    def test_no_source(self, model: nn.Module, tmp_path: Path) -> None:
        plain = copy.deepcopy(model)
        del plain.secateurs_source
        path = sc.prune(plain, image(), "l1", sc.Budget(macs=0.5)).save(tmp_path / "run")
        with pytest.raises(sc.ArtifactError, match=r"pass a fresh one, secateurs.load\(.*model="):
            sc.load(path)

    def test_file_in_the_place_of_the_folder(self, result: sc.Result, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("mine")
        with pytest.raises(sc.ArtifactError, match="run is a file"):
            result.save(tmp_path / "run")
        with pytest.raises(sc.ArtifactError, match="no folder"):
            sc.load(tmp_path / "run")
        with pytest.raises(sc.ArtifactError, match="Cannot save"):
            result.save(tmp_path / "run" / "below")
        assert (tmp_path / "run").read_text() == "mine"


class TestSavingOver:
    @pytest.fixture
    def other(self, model: nn.Module) -> sc.Result:
        return sc.prune(model, image(), "index", sc.Budget(macs=0.3))

    def test_on_request_only(self, saved: Path, result: sc.Result, other: sc.Result) -> None:
        with pytest.raises(sc.ArtifactError, match=r"already holds an artifact.*overwrite=True"):
            other.save(saved)
        assert_equal(sc.load(saved), result.model)
        other.save(saved, overwrite=True)
        assert_equal(sc.load(saved), other.model)

    @pytest.mark.parametrize("name", [MODEL, PLAN, CARD])
    @pytest.mark.parametrize("text", ["", '{"format": "another"}', "[]", "\0"])
    def test_never_over_what_is_somebody_elses(self, result: sc.Result, tmp_path: Path, name: str, text: str) -> None:
        (tmp_path / name).write_text(text)
        for overwrite in (False, True):
            with pytest.raises(sc.ArtifactError, match=f"has {name}, which is not part of an artifact"):
                result.save(tmp_path, overwrite=overwrite)
        assert [p.name for p in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_text() == text

    @pytest.mark.parametrize("make", [Path.touch, lambda p: p.mkdir() or (p / "notes.txt").touch(), os.mkfifo])
    def test_never_over_a_folder_of_somebody_elses(self, saved: Path, result: sc.Result, make: Any) -> None:
        make(saved / NEW)
        with pytest.raises(sc.ArtifactError, match=r"has \.new, which is not part of an artifact"):
            result.save(saved, overwrite=True)
        assert sorted(p.name for p in saved.iterdir()) == [NEW, README, CARD, MODEL, PLAN]

    def test_beside_files_of_other_names(self, result: sc.Result, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        assert_equal(sc.load(result.save(tmp_path)), result.model)
        assert (tmp_path / "notes.txt").read_text() == "mine"

    def test_what_else_is_there_stays(self, saved: Path, other: sc.Result) -> None:
        (saved / "checkpoints" / "3").mkdir(parents=True)
        (saved / "checkpoints" / "3" / "state").write_bytes(b"abc")
        with (saved / "metrics.jsonl").open("a") as log:
            log.write("one\n")
            other.save(saved, overwrite=True)
            log.write("two\n")
        assert (saved / "checkpoints" / "3" / "state").read_bytes() == b"abc"
        assert (saved / "metrics.jsonl").read_text() == "one\ntwo\n"
        assert_equal(sc.load(saved), other.model)
        assert sorted(p.name for p in saved.iterdir()) == [README, CARD, "checkpoints", "metrics.jsonl", MODEL, PLAN]

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
    @pytest.mark.parametrize("step", ["write_text", "fsync", "rename", "save_file"])
    def test_disk_full(
        self, saved: Path, result: sc.Result, other: sc.Result, monkeypatch: pytest.MonkeyPatch, step: str, code: int
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(code, os.strerror(code))

        place = {"write_text": Path, "fsync": os, "rename": os, "save_file": safetensors.torch}[step]
        with monkeypatch.context() as patch:
            patch.setattr(place, step, full)
            with pytest.raises(
                sc.ArtifactError, match=rf"Cannot save to .*{os.strerror(code)}.*Existing files were not changed"
            ):
                other.save(saved, overwrite=True)
            with pytest.raises(sc.ArtifactError):
                other.save(saved.parent / "fresh")
        assert_equal(sc.load(saved), result.model)
        assert sorted(p.name for p in saved.iterdir()) == [README, CARD, MODEL, PLAN]
        assert not (saved.parent / "fresh").exists()

    @pytest.mark.parametrize("moves", range(5))
    def test_stopped_among_the_last_moves(
        self, saved: Path, result: sc.Result, other: sc.Result, monkeypatch: pytest.MonkeyPatch, moves: int
    ) -> None:
        """Once it is committed the new artifact counts, wherever its files are; the next save tidies up."""
        real, left = os.replace, [moves]

        def replace(*args: Any) -> None:
            if not left[0]:
                raise OSError(errno.EIO, "gone")
            left[0] -= 1
            real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            other.save(saved, overwrite=True)
        assert (saved / NEW).exists() == (moves < 4)
        assert_equal(sc.load(saved), other.model)
        result.save(saved, overwrite=True)
        assert_equal(sc.load(saved), result.model)
        assert not (saved / NEW).exists()
        assert own_readme(saved)

    def test_what_a_killed_save_left_goes_at_the_next_one(self, saved: Path, other: sc.Result) -> None:
        (saved / STAGED).mkdir()
        (saved / STAGED / CARD).write_text("half wri")
        sc.load(saved)
        other.save(saved, overwrite=True)
        assert_equal(sc.load(saved), other.model)
        assert sorted(p.name for p in saved.iterdir()) == [README, CARD, MODEL, PLAN]

    def test_what_no_save_left_stays(self, saved: Path, result: sc.Result, other: sc.Result) -> None:
        (saved / STAGED).mkdir()
        (saved / STAGED / "notes.txt").write_text("mine")
        with pytest.raises(sc.ArtifactError, match=r"\.saving/notes\.txt is not part of an artifact: move it"):
            other.save(saved, overwrite=True)
        assert (saved / STAGED / "notes.txt").read_text() == "mine"
        assert_equal(sc.load(saved), result.model)

    def test_two_processes_do_not_write_over_each_other(
        self, saved: Path, result: sc.Result, other: sc.Result, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A second save waits for the first, and gives up without touching what that one writes."""
        monkeypatch.setattr(artifact.saving, "PATIENCE", 0.2)
        with artifact.saving._staging(saved) as staged:
            (staged / CARD).write_text("being written")
            with pytest.raises(sc.ArtifactError, match="Another process is saving to"):
                other.save(saved, overwrite=True)
            assert (staged / CARD).read_text() == "being written"
        other.save(saved, overwrite=True)
        assert_equal(sc.load(saved), other.model)
        assert sorted(p.name for p in saved.iterdir()) == [README, CARD, MODEL, PLAN]

    def test_killed(self, tmp_path: Path) -> None:
        """Saving two artifacts in turn, killed at any moment: one of the two is there, whole."""
        run = tmp_path / "run"
        script = f"""
import torch, secateurs as sc
torch.manual_seed(0)
model, x = sc.build("zoo:small_cnn"), torch.zeros(1, 3, 16, 16)
found = [sc.prune(model, x, "index", sc.Budget(macs=share)) for share in (0.3, 0.6)]
found[0].save({str(run)!r})
(__import__("pathlib").Path({str(run)!r}) / "metrics.jsonl").write_text("kept")
print("ready", flush=True)
while True:
    for result in found:
        result.save({str(run)!r}, overwrite=True)
"""
        draw = random.Random(0)
        sizes, expected = set(), set()
        torch.manual_seed(0)
        model = sc.build("zoo:small_cnn")
        for share in (0.3, 0.6):
            expected.add(sc.prune(model, image()[:1], "index", sc.Budget(macs=share)).after.params)
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            for _ in range(20):  # stopped in its tracks, looked at, and on
                time.sleep(draw.uniform(0.002, 0.02))
                child.send_signal(signal.SIGSTOP)
                os.waitpid(child.pid, os.WUNTRACED)
                sizes.add(sum(p.numel() for p in sc.load(run).parameters()))
                child.send_signal(signal.SIGCONT)
        finally:
            child.kill()
            child.communicate()
        sizes.add(sum(p.numel() for p in sc.load(run).parameters()))
        assert (run / "metrics.jsonl").read_text() == "kept"
        assert sizes <= expected

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    @pytest.mark.parametrize("first", [True, False])
    def test_killed_before_each_of_its_steps(
        self, result: sc.Result, other: sc.Result, tmp_path: Path, first: bool
    ) -> None:
        """What is there is whole, and the next save leaves nothing but the artifact."""
        run, points = tmp_path / "run", 0
        for step in range(1, 100):
            if not first:
                result.save(run, overwrite=True)
            child = os.fork()
            if not child:
                _die_before(step)
                other.save(run, overwrite=True)
                os._exit(0)
            if not os.waitpid(child, 0)[1]:
                break
            points += 1
            if (run / CARD).exists() or (run / NEW).exists():
                loaded = sum(p.numel() for p in sc.load(run).parameters())
                assert loaded in {other.after.params, *([] if first else [result.after.params])}
            else:
                assert first
                with pytest.raises(sc.ArtifactError):
                    sc.load(run)
            other.save(run, overwrite=True)
            assert sorted(p.name for p in run.iterdir()) == [README, CARD, MODEL, PLAN]
            assert_equal(sc.load(run), other.model)
            if first:
                shutil.rmtree(run)
        assert points > 12
        assert sorted(p.name for p in run.iterdir()) == [README, CARD, MODEL, PLAN]


def _die_before(step: int) -> None:
    """End this process before the step-th time that it opens, makes, moves or removes something on disk."""
    left = step

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            left -= 1
            if not left:
                os._exit(9)

    sys.addaudithook(watch)
