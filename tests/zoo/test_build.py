"""Specs: what they build, and what they say when they name nothing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from secateurs.errors import SpecError
from secateurs.zoo import build, names

FACTORIES = """
from torch import nn

def net(num_classes=4):
    return nn.Linear(3, num_classes)

def fixed():
    return nn.Linear(3, 2)

def number():
    return 3

constant = 5
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"factories_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    return name


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet56", r"Did you mean zoo:resnet56\?"),
        ("zoo:", "not a valid model spec"),
        ("tim:resnet18", r"'tim' is not a valid model family.*Did you mean timm\?"),
        ("zoo:resnet57", "Did you mean resnet56"),
        ("python:module", "python:package.module:"),
        ("python:../x:net", "python:package.module:"),
        ("python:nowhere.at.all:net", "no module nowhere"),
    ],
)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build(spec)


def test_bad_option() -> None:
    with pytest.raises(SpecError, match=r"zoo:resnet20 could not be built.*depth"):
        build("zoo:resnet20", depth=3)


def test_names() -> None:
    assert "resnet110" in names("zoo")
    with pytest.raises(SpecError, match="Did you mean zoo"):
        names("zo")


def test_python_factory(factories: str) -> None:
    assert build(f"python:{factories}:net", num_classes=9).out_features == 9
    assert build(f"python:{factories}:fixed", num_classes=9).out_features == 2
    with pytest.raises(SpecError, match=r"has no 'nets'. Did you mean net"):
        build(f"python:{factories}:nets")
    with pytest.raises(SpecError, match="returned an int"):
        build(f"python:{factories}:number")
    with pytest.raises(SpecError, match="constant is an int"):
        build(f"python:{factories}:constant")


def test_python_module_whose_import_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SpecError, match="needs_more needs not_installed_anywhere"):
        build("python:needs_more:net")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import torch\nnet = torch.nn.Linear(1, 1)", "net is a network already; it must be a class or function"),
        ("def net(:\n  pass", r"is not valid Python: invalid syntax \(.*line 1\)"),
        ("def net():\n  pass\n 1 / 0", r"is not valid Python: unindent.*line 3"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
    ],
)
def test_python_modules_that_do_not_serve(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"bad_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpecError, match=message):
        build(f"python:{name}:net")


def test_random_weights_follow_the_seed() -> None:
    torch.manual_seed(1)
    one = build("zoo:small_cnn").state_dict()
    torch.manual_seed(1)
    two = build("zoo:small_cnn").state_dict()
    torch.manual_seed(2)
    three = build("zoo:small_cnn").state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["fc.weight"], three["fc.weight"])


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_torchvision_and_timm() -> None:
    for spec in ("torchvision:googlenet", "torchvision:mobilenet_v3_small", "timm:resnet18"):
        model = build(spec, num_classes=6)
        assert isinstance(model, nn.Module)
        assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 6), spec
    segmented = build("torchvision:lraspp_mobilenet_v3_large", num_classes=3).eval()(torch.zeros(1, 3, 64, 64))
    assert segmented["out"].shape == (1, 3, 64, 64)
    with pytest.raises(SpecError, match=r"timm has no model 'resnt50'. Did you mean resnet50"):
        build("timm:resnt50")
