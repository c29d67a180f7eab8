"""With real clocks: nothing is said of how long anything takes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.latency import build, modeled, runtimes, stopwatch
from secateurs.latency.geometry import DEPTHWISE, Geometry
from secateurs.latency.runtimes import in_torch, repeats
from secateurs.latency.stopwatch import Stopwatch
from tests.networks import conv, head

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PLAIN = ((3, 3), (1, 1), (1, 1), (1, 1))
KINDS = {
    "convolution": Geometry("convolution", 2, (6, 6), *PLAIN, norm=True, added=True, activation="relu"),
    "depthwise": Geometry("convolution", 2, (6, 6), *PLAIN, DEPTHWISE, norm=True, activation="hardtanh"),
    "grouped": Geometry("convolution", 2, (6, 6), *PLAIN, 4, activation="silu"),
    "transposed": Geometry("convolution", 2, (6, 6), (2, 2), (2, 2), (0, 0), (1, 1), transposed=True),
    "one axis": Geometry("convolution", 2, (6,), (3,), (1,), (1,), (1,)),
    "linear": Geometry("linear", 2, activation="gelu"),
    "norm": Geometry("norm", 2, (6, 6), activation="sigmoid"),
    "maximum": Geometry("pooling", 2, (6, 6), (2, 2), (2, 2), (0, 0), mode="max"),
    "mean": Geometry("pooling", 2, (6, 6), (2, 2), (2, 2), (0, 0), mode="mean"),
    "global": Geometry("pooling", 2, (6, 6), mode="global"),
    "concatenation": Geometry("concatenation", 2, (6, 6), inputs=2),
    "sum": Geometry("pointwise", 2, (6, 6), inputs=2),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 16), nn.ReLU(), head(16)).eval()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(in_torch, "SPAN", 0.0)
    monkeypatch.setattr(repeats, "SPAN", 0.0)
    monkeypatch.setattr(build, "FEWEST", (2, 1))
    monkeypatch.setattr(build, "PATIENCE", 0.0)
    measure = Stopwatch.measure
    monkeypatch.setattr(Stopwatch, "measure", lambda self, plan, **_: measure(self, plan, seconds=0.0, most=0.0))
    confirm = Stopwatch.confirm
    monkeypatch.setattr(Stopwatch, "confirm", lambda self, net, **_: confirm(self, net, seconds=0.0, most=0.0))


def skip_without(runtime: Any) -> sc.Target:
    target = sc.Target(runtime, threads=1)
    if target.missing or (not target.in_torch and torch.__version__.startswith("2.6.")):
        pytest.skip("not installed, or PyTorch 2.6")
    return target


@pytest.mark.parametrize("runtime", ["torch-cpu", "onnxruntime", "openvino"])
def test_every_kind_of_piece_is_measured_in_every_runtime(runtime: Any, hasty: None) -> None:
    target = skip_without(runtime)
    for name, geometry in KINDS.items():
        found = runtimes.measure(geometry, [(8, 8), (12, 12)] if geometry.square else [(8, 8), (13, 13)], target)
        assert len(found) == 2, name
        assert all(0 < seconds < 10 for seconds in found), name


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"channels_last": True}, {"mode": "compile"}])
def test_settings_of_pytorch(settings: dict[str, Any], hasty: None) -> None:
    (found,) = runtimes.measure(KINDS["convolution"], [(8, 8)], sc.Target("torch-cpu", **settings))
    assert found > 0


@pytest.mark.parametrize("runtime", ["torch-cpu", "onnxruntime"])
def test_a_network_is_cut_to_a_budget_of_time(runtime: Any, hasty: None) -> None:
    target = skip_without(runtime)
    model = network()
    result = sc.prune(model, X, "l1", sc.Budget(ms=1e6, macs=0.5, target=target), scope="all")
    assert result.latency is not None
    assert result.latency.goal == 1.0
    assert result.latency.ratio > 0
    assert result.latency.before > 0
    assert result.latency.tries >= 1
    assert result.after.macs <= 0.5 * result.before.macs


def test_a_file_that_stands_for_a_cut_network(hasty: None) -> None:
    target = skip_without("onnxruntime")
    model = network()
    graph = sc.trace(model, X)
    plan = graph.plan({g.name: range(g.size // 2) for g in graph.groups if g.prunable})
    with stopwatch(model, X, target) as watch:
        assert watch.measure(plan).ratio > 0
        assert not watch.exact
        assert watch.confirm(sc.apply(model, plan)).ratio > 0


def test_a_fit_is_read_again(hasty: None) -> None:
    model, graph = network(), sc.trace(network(), X)
    groups = [g for g in graph.groups if g.prunable]
    make = functools.partial(modeled, model, graph, X, sc.Target("torch-cpu", threads=1), groups=groups)
    said: list[str] = []
    first = make(report=said.append)
    assert any("latency model of torch-cpu, 1 thread: within" in line for line in said)
    told = len(said)
    assert make(report=said.append).fit == first.fit
    assert all("is in doubt" in line for line in said[told:])  # on a busy machine
