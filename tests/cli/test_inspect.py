from __future__ import annotations

import importlib.util
import inspect
import json
import re

import numpy as np
import pytest
import torch
from rich.console import Console

import secateurs as sc
from secateurs.cli import options
from secateurs.cli.inspect import inspect as verb


def test_table(run):
    ran = run("inspect", "zoo:small_cnn")
    assert ran.status == 0
    assert "plain.3, conv2" in ran.out
    assert "with --scope all" in ran.out
    assert "reaches the model's output" in ran.out
    assert "2,986,384 MACs (5.97M FLOPs), 46,106 parameters" in ran.out
    assert run("inspect", "--model", "zoo:small_cnn").out == ran.out


def test_narrow_terminals_have_fewer_columns_and_whole_names(run, monkeypatch):
    def at(width: int) -> list[str]:
        terminal = Console(width=width, force_terminal=True, no_color=True, highlight=False, markup=False)
        monkeypatch.setattr(options, "out", lambda: terminal)
        lines = re.sub("\x1b\\[[0-9;]*m", "", run("inspect", "torchvision:shufflenet_v2_x0_5").out).splitlines()
        assert max(map(len, lines)) <= width
        return lines

    assert "made by" in at(240)[0]
    narrow = at(80)
    assert "made by" not in narrow[0]
    names = [g.name for g in sc.trace(sc.build("torchvision:shufflenet_v2_x0_5"), torch.zeros(1, 3, 224, 224)).groups]
    assert [line.split()[0] for line in narrow if line[:1].strip("─ ")][1 : len(names) + 1] == names


def test_off_a_terminal_no_line_ends_in_blanks(run):
    assert all(line == line.rstrip() for line in run("inspect", "zoo:resnet20").out.splitlines())


def test_an_input_that_the_network_refuses(run):
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    ran = run("inspect", "timm:test_vit", "--input", "3,100,100")
    assert ran.status == 1
    assert "does not run on an input of 3x100x100: AssertionError: Input height (100)" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_json_agrees_with_the_graph(run):
    record = json.loads(run("inspect", "zoo:resnet20", "--json").out)
    model = sc.build("zoo:resnet20")
    graph = sc.trace(model, torch.zeros(1, 3, 32, 32))
    assert record["flops"] == 2 * record["macs"] == 2 * graph.cost().macs
    assert [g["name"] for g in record["groups"]] == [g.name for g in graph.groups]
    first = record["groups"][0]
    without = graph.cost(graph.sizes * (np.arange(len(graph.groups)) > 0)).macs
    assert first["macs_share"] == pytest.approx(1 - without / record["macs"], abs=1e-6)
    assert record["lowest"]["all"]["macs"] < record["lowest"]["internal"]["macs"] < record["macs"]


def test_input_shape(run):
    record = json.loads(run("inspect", "zoo:resnet20", "--input", "3,64,64", "--json").out)
    assert record["input"] == [3, 64, 64]
    for wrong in ("3,a,b", "3,0,5"):
        ran = run("inspect", "zoo:resnet20", "--input", wrong)
        assert ran.status == 2
        assert "write the shape of one input" in ran.err
    ran = run("inspect", "zoo:resnet20", "--input", "5,32,32")
    assert ran.status == 1
    assert "does not run on an input of 5x32x32: " in ran.err
    assert "--input gives another shape" in ran.err


def test_usual_shapes(run):
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    assert json.loads(run("inspect", "timm:test_efficientnet", "--json").out)["input"] == [3, 160, 160]
    assert json.loads(run("inspect", "torchvision:squeezenet1_1", "--json").out)["input"] == [3, 224, 224]


@pytest.mark.parametrize(
    ("spec", "hint"),
    [("zoo:resnet57", "resnet56"), ("resnet56", "Did you mean zoo:resnet56"), ("zo:resnet56", "Did you mean zoo")],
)
def test_unknown_model(run, spec, hint):
    ran = run("inspect", spec)
    assert ran.status == 2
    assert hint in ran.err


def test_the_example_in_help_is_the_real_output(run):
    shown = inspect.getdoc(verb).split("$ secateurs inspect zoo:small_cnn\n")[1].split("```")[0]
    real = run("inspect", "zoo:small_cnn").out
    assert [line.split() for line in shown.splitlines() if line.strip("─ ")] == [
        line.split() for line in real.splitlines() if line.strip("─ ")
    ]


def test_an_artifact_of_a_network_without_a_spec(run, tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    sc.prune(model, torch.randn(1, 3, 8, 8), "l2", sc.Budget(macs=0.5), progress="silent").save(tmp_path / "own")
    ran = run("inspect", tmp_path / "own")
    assert ran.status != 0
    assert "does not record how to build its network. In Python pass a fresh one, secateurs.load(" in ran.err
    assert "the command line takes artifacts of networks that were built from a spec" in ran.err
