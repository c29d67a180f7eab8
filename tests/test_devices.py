"""What PyTorch was built for is not what can be used: simulated, a CUDA build on a machine without an NVIDIA driver."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import secateurs as sc
from secateurs.cli import main
from secateurs.devices import VARIABLE, accelerator, default_device


@pytest.fixture(autouse=True)
def _no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `pip install torch` on Linux without a GPU: CUDA is named as the accelerator, and cannot be used."""
    monkeypatch.setattr(torch._C, "_accelerator_getAccelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch._C, "_accelerator_deviceCount", lambda: 0, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch.accelerator.current_accelerator() == torch.device("cuda")


@pytest.mark.usefixtures("no_driver")
def test_an_accelerator_that_cannot_be_used_is_none() -> None:
    assert accelerator() is None
    assert default_device() == torch.device("cpu")


def test_an_accelerator_that_can_be_used_is_named_as_tensors_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
    assert default_device() == torch.device("cuda", 1)


def test_each_of_several_processes_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert default_device() == torch.device("cuda", 3)


def test_the_default_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "cpu")
    assert default_device() == torch.device("cpu")
    monkeypatch.setenv(VARIABLE, "fridge")
    with pytest.raises(sc.ConfigError, match=r"^SECATEURS_DEVICE=fridge cannot be used here"):
        default_device()


@pytest.mark.usefixtures("no_driver")
def test_commands_that_take_data_run_on_the_cpu(tmp_path: Path) -> None:
    save_file(sc.build("zoo:small_cnn", num_classes=10).state_dict(), tmp_path / "w.safetensors")
    network = ("zoo:small_cnn", "--weights", str(tmp_path / "w.safetensors"))
    run = ("--data", "digits", "--method", "l1", "--macs", "0.5", "--recover", "none", "--out", str(tmp_path / "run"))
    assert main(["prune", *network, *run]) == 0
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert main(["evaluate", "--model", *network, "--data", "digits"]) == 0
