"""Weights from files: every wrapping that is about, and nothing that would run code."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secateurs.errors import ArtifactError
from secateurs.zoo import build, load_state
from secateurs.zoo.weights import put


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return build("zoo:small_cnn").state_dict()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state", "net"])
def test_wrapped_states(tmp_path: Path, state: dict, suffix: str, wrapper: str | None) -> None:
    prefixed = {f"_orig_mod.module.{key}": value for key, value in state.items()}
    path = tmp_path / f"w{suffix}"
    torch.save({wrapper: prefixed, "epoch": 3} if wrapper else prefixed, path)
    loaded = load_state(path)
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_half_precision_safetensors_load_into_float(tmp_path: Path, state: dict) -> None:
    save_file({key: v.half() if v.is_floating_point() else v for key, v in state.items()}, tmp_path / "w.safetensors")
    model = build("zoo:small_cnn", weights=tmp_path / "w.safetensors")
    assert model.fc.weight.dtype is torch.float32
    assert torch.equal(model.fc.weight, state["fc.weight"].half().float())


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("bare", [False, True], ids=["torch.save", "pickle"])
def test_code_in_a_file_is_not_run(tmp_path: Path, bare: bool) -> None:
    path, target = tmp_path / "w.pt", tmp_path / "ran"
    if bare:
        path.write_bytes(pickle.dumps(Payload(target)))
    else:
        torch.save({"model": Payload(target)}, path)
    with pytest.raises(ArtifactError, match="would run code"):
        load_state(path)
    assert not target.exists()


def test_whole_model_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(ArtifactError, match=r"save `model.state_dict\(\)` instead, preferably"):
        load_state(tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.6])
def test_truncated(tmp_path: Path, state: dict, suffix: str, share: float) -> None:
    path = tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ArtifactError, match=r"truncated|damaged|readable"):
        load_state(path)


def test_garbage_and_absence(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"hello, I am a text file\n" * 9)
    (tmp_path / "w.onnx").write_bytes(b"x")
    torch.save({"epoch": 3}, tmp_path / "no.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, message in [
        ("w.pt", "damaged|truncated"),
        ("w.onnx", "type .onnx are not read"),
        ("absent.pt", "no such file"),
        ("", "is a folder"),
        ("no.pt", "maps names to tensors, but 'epoch'"),
        ("list.pt", "does not contain a state dict, but of type list"),
    ]:
        with pytest.raises(ArtifactError, match=message):
            load_state(tmp_path / name)


def test_misfits_are_named(tmp_path: Path, state: dict) -> None:
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match=r"fc.weight is \(10, 40\) in the file and \(3, 40\).*num_classes"):
        build("zoo:small_cnn", weights=tmp_path / "w.safetensors", num_classes=3)
    del state["fc.bias"]
    state["extra.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match=r"1 missing: fc.bias. 1 unexpected: extra.weight"):
        build("zoo:small_cnn", weights=tmp_path / "w.safetensors")


def test_states_without_batch_counters_load(tmp_path: Path, state: dict) -> None:
    save_file({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "w.safetensors")
    build("zoo:small_cnn", weights=tmp_path / "w.safetensors")


class Shared(nn.Module):
    """A batch norm and a buffer, each under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.BatchNorm2d(4)
        self.b = self.a
        self.register_buffer("grid", torch.zeros(3), persistent=False)
        self.register_buffer("same", self.grid, persistent=False)


def test_what_is_shared_in_the_model_may_be_missing_in_the_file() -> None:
    model = Shared()
    state = {key: x + 2 for key, x in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    put(model, state, "weights.pt", "the network")
    assert torch.equal(model.b.weight, torch.full((4,), 3.0))
    assert not model.a.num_batches_tracked
    with pytest.raises(ArtifactError, match=r"a\.weight and b\.weight are one tensor in the model and differ"):
        put(model, {**state, "b.weight": torch.zeros(4)}, "weights.pt", "the network")
