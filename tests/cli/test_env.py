"""What `secateurs env` says of an environment that is whole, and of one that is broken."""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from secateurs.cli import environment
from tests.cli.conftest import Run


def test_versions_devices_and_compilers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "SLOW", [name for name in environment.PACKAGES if name != "torch"])
    text = run("env")
    assert text.status == 0
    assert platform.python_version() in text.out
    assert re.search(rf"^torch +{re.escape(version_of('torch'))}, built for ", text.out, re.MULTILINE)
    assert f"{environment._cpu()['cores']} cores" in text.out
    assert bool(re.search("^accelerator +none: ", text.out, re.MULTILINE)) == (not torch.accelerator.is_available())


def test_a_default_device_that_cannot_be_used_is_a_problem(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "probe", lambda names: {})
    assert "cpu (SECATEURS_DEVICE)" in run("env").out  # as it is in tests
    monkeypatch.setenv("SECATEURS_DEVICE", "fridge:0")
    assert "SECATEURS_DEVICE=fridge:0 does not name a device" in run("env").out
    assert len(json.loads(run("env", "--json").out)["problems"]) == 1


def version_of(name: str) -> str:
    return str(environment._version(name))


def test_as_json(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "probe", lambda names: {})
    found = json.loads(run("env", "--json").out)
    assert found["packages"]["torch"] == version_of("torch")
    assert found["python"]["version"] == platform.python_version()
    assert found["problems"] == []


def test_broken_packages_are_reported_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('libfreetype.so.6: cannot open shared object file')")
    (tmp_path / "datasets.py").write_text("import os; os.abort()")
    (tmp_path / "onnxruntime.py").write_text("import sys; print('hello'); sys.exit(3)")
    (tmp_path / "sklearn.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = environment.probe(["matplotlib", "datasets", "onnxruntime", "scikit-learn"])
    assert "ImportError: libfreetype.so.6: cannot open" in found["matplotlib"]["problem"]
    assert "ends the process when it is imported (SIGABRT)" in found["datasets"]["problem"]
    assert "ends the process when it is imported (status 3)" in found["onnxruntime"]["problem"]
    assert found["scikit-learn"] == {}


def test_a_package_that_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("import time; time.sleep(60)")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = environment.probe(["onnxruntime"], patience=1.0)
    assert "is not imported within 1 s" in found["onnxruntime"]["problem"]


def test_a_torchvision_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('compiled with different CUDA major versions.')")
    monkeypatch.syspath_prepend(str(tmp_path))
    (note,) = environment.probe(["torchvision"])["torchvision"]["notes"]
    assert note.startswith("torchvision ")
    assert "different CUDA major versions. Install the release that matches this torch." in note


def test_what_is_missing_and_what_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"torchvision", "scikit-learn"}
    monkeypatch.setattr(environment, "_version", lambda name: None if name in absent else "1.0")
    monkeypatch.setattr(environment, "probe", lambda names: {"timm": {"problem": "cannot be imported: Oops."}})
    out = run("env").out
    assert "- timm 1.0 cannot be imported: Oops." in out
    assert "- torchvision, for models torchvision:NAME: pip install 'secateurs[vision]' torch==1.0\n" in out
    assert "- scikit-learn, for the digits" in out
    assert "- numpy" not in out


@pytest.mark.parametrize(
    ("tools", "cure"),
    [
        ({"ninja": "1.11"}, "install a C++ compiler"),
        ({"c++": "c++ 12.2"}, "used: pip install ninja."),
        ({"c++": "c++ 12.2", "ninja": "1.11"}, ""),
    ],
)
def test_a_compiler_for_the_stripe_kernels(tools: dict[str, str], cure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(environment, "first_line", lambda command: tools.get(command[0], ""))
    line, problem = environment._kernels("")
    assert cure in problem
    assert bool(cure) == bool(problem)
    assert ("compiled when they are first used" in line) == (not cure)


def test_a_gpu_that_this_pytorch_has_no_kernels_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Devices:
        @staticmethod
        def get_device_properties(index: int) -> Any:
            return type("Properties", (), {"name": "Old GPU", "total_memory": 2**33})

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch, "get_device_module", lambda device: Devices)
    found = environment._torch("torch")
    assert found["accelerators"] == [{"device": "xpu:0", "name": "Old GPU", "memory": 2**33, "bf16": False}]
    (note,) = found["notes"]
    assert note.startswith("xpu:0 cannot be used: ")
    assert "--device cpu" in note


def test_a_device_that_cannot_be_used(run: Run, tmp_path: Path) -> None:
    ran = run("prune", "zoo:small_cnn", "--macs", "0.5", "--device", "xpu", "--out", tmp_path / "run")
    assert ran.status == 2
    assert "--device xpu cannot be used here: " in ran.err
    assert "`secateurs env` shows which devices can." in ran.err


@pytest.mark.parametrize(
    ("torch", "torchvision", "says"),
    [
        ("2.6.0", "0.22.1", "torch 2.6.0 needs torchvision 0.21: pip install 'torchvision==0.21.*'."),
        ("2.13.0+cpu", "0.29.1", "torch 2.13.0+cpu needs torchvision 0.28: pip install 'torchvision==0.28.*'."),
        ("2.13.0+cpu", "0.28.0", "Install the build of it that belongs to this torch."),
        ("3.0.0", "0.28.0", "Install the build of it that belongs to this torch."),
    ],
)
def test_the_torchvision_that_fits_is_named(torch: str, torchvision: str, says: str) -> None:
    assert environment._fitting(torch, torchvision) == says
