"""Batch norms folded, branches merged, and the memory format chosen: always the same function."""

from __future__ import annotations

import importlib.util
import logging
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import secateurs as sc
from secateurs.deploy import deployed, layout
from secateurs.deploy.fold import folded_, merged_
from secateurs.graph.copies import copied
from secateurs.graph.inputs import call, map_tensors, tensors
from secateurs.surgery.compare import apart
from tests.networks import CASES, Case, randomize


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return tensors(call(model, inputs))


def _norms(model: nn.Module) -> int:
    return sum(isinstance(m, _BatchNorm) for m in model.modules())


@pytest.mark.parametrize("case", CASES.values(), ids=lambda c: c.name)
def test_folding_changes_nothing(case: Case) -> None:
    model, inputs = case.make(), case.inputs()
    due, folded = _outputs(model, inputs), copied(model)
    count = folded_(folded, inputs)
    assert count == _norms(model) - _norms(folded)
    for a, b in zip(_outputs(folded, inputs), due, strict=True):
        assert apart(a, b) < (1e-4 if b.dtype is torch.float32 else 2e-2)


def _layers(**named: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return randomize(nn.Sequential(OrderedDict(named))).eval()


@pytest.mark.parametrize(
    ("layer", "norm", "x"),
    [
        (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), torch.randn(2, 4, 9)),
        (nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), torch.randn(2, 4, 9, 9)),
        (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), torch.randn(2, 4, 9, 9)),
        (nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6), torch.randn(2, 4, 5, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), torch.randn(2, 4, 9, 9)),
        (nn.Linear(4, 6), nn.BatchNorm1d(6), torch.randn(5, 4)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_every_layer_that_a_norm_follows(layer: nn.Module, norm: nn.Module, x: Tensor) -> None:
    model = _layers(layer=layer, norm=norm, relu=nn.ReLU()).double()
    due = _outputs(model, x.double())
    assert folded_(model, x.double()) == 1
    assert not _norms(model)
    torch.testing.assert_close(_outputs(model, x.double()), due, rtol=1e-9, atol=1e-9)


class _Twice(nn.Module):
    """A layer whose output something else reads, one that runs twice, and one whose weight is another's."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.twice, self.one, self.other = (nn.Conv2d(4, 4, 1) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(5))
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.read(x)
        x = self.norms[0](y) + y
        x = self.norms[1](self.twice(self.norms[2](self.twice(x))))
        return self.norms[3](self.one(x)) * self.norms[4](self.other(x))


@pytest.mark.parametrize(
    ("model"),
    [
        _Twice(),
        _layers(layer=nn.ConvTranspose2d(4, 4, 3, groups=2), norm=nn.BatchNorm2d(4)),
        _layers(layer=nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), norm=nn.BatchNorm2d(4)),
        _layers(layer=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4, track_running_stats=False)),
        _layers(layer=nn.Conv2d(4, 4, 1), relu=nn.ReLU(), norm=nn.BatchNorm2d(4)),
    ],
    ids=["shared", "grouped transposed", "computed", "no statistics", "not adjacent"],
)
def test_what_cannot_be_folded_stays(model: nn.Module) -> None:
    x = torch.randn(2, 4, 6, 6)
    due, before = _outputs(model.eval(), x), _norms(model)
    assert folded_(model, x) == 0
    assert _norms(model) == before
    torch.testing.assert_close(_outputs(model, x), due)


class _Heads(nn.Module):
    """A head that runs once for each scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.head = _layers(conv=nn.Conv2d(4, 6, 3, padding=1), norm=nn.BatchNorm2d(6), relu=nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return self.head(x), self.head(nn.functional.avg_pool2d(x, 2))


def test_a_layer_and_its_norm_that_run_several_times() -> None:
    model, x = _Heads().eval(), torch.randn(2, 3, 8, 8)
    due = model(x)
    assert folded_(model, x) == 1
    assert not _norms(model)
    for found, one in zip(model(x), due, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-5, atol=1e-5)


class _OwnNorms(_Heads):
    """A head that is shared by two scales, and a norm for each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(4, 6, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return self.first(self.head(x)), self.second(self.head(nn.functional.avg_pool2d(x, 2)))


class _RawOnce(_Heads):
    """A head whose norm is left out in one of its two runs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return self.head(x), self.head.conv(nn.functional.avg_pool2d(x, 2))


@pytest.mark.parametrize("kind", [_OwnNorms, _RawOnce])
def test_a_layer_that_another_norm_or_none_follows_in_some_run_stays(kind: type[_Heads]) -> None:
    model, x = kind().eval(), torch.randn(2, 3, 8, 8)
    before = _norms(model)
    assert folded_(model, x) == 0
    assert _norms(model) == before


def test_a_linear_layer_whose_norm_is_over_another_axis_stays() -> None:
    model = _layers(layer=nn.Linear(4, 6), norm=nn.BatchNorm1d(6))
    assert folded_(model, torch.randn(2, 6, 4)) == 0


def test_stripes_are_folded() -> None:
    model = _layers(a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 8, 3), norm=nn.BatchNorm2d(8), c=nn.Conv2d(8, 4, 1))
    x = torch.randn(2, 3, 9, 9)
    small = sc.prune(model, x, "l2-stripes", sc.Budget(macs=0.6)).model
    due = _outputs(small, x)
    assert any(isinstance(m, sc.StripeConv2d) for m in small.modules())
    assert folded_(small, x) == 1
    torch.testing.assert_close(_outputs(small, x), due, rtol=1e-5, atol=1e-5)


class _Branches(nn.Module):
    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.wrong = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1), wrong

    def reparameterize(self) -> None:
        weight = self.a.weight + nn.functional.pad(self.b.weight, (1, 1, 1, 1))
        self.a.weight = nn.Parameter(weight.detach())
        self.a.bias = nn.Parameter((self.a.bias + self.b.bias).detach() * (2 if self.wrong else 1))
        del self.b

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x) if hasattr(self, "b") else self.a(x)


def test_branches_are_merged_where_the_model_offers_it() -> None:
    model, x = _layers(block=_Branches(), head=nn.Conv2d(8, 2, 1)), torch.randn(2, 3, 8, 8)
    merged = deployed(model, x, seconds=0.01)
    assert not hasattr(merged.block, "b")
    assert hasattr(model.block, "b")  # the given one is as it was
    torch.testing.assert_close(_outputs(merged, x), _outputs(model, x), rtol=1e-4, atol=1e-5)


def test_a_merge_that_changes_the_network_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    model, x = _layers(block=_Branches(wrong=True), norm=nn.BatchNorm2d(8)), torch.randn(2, 3, 8, 8)
    with caplog.at_level(logging.WARNING, "secateurs"):
        merged = deployed(model, x, seconds=0.01)
    assert hasattr(merged.block, "b")
    assert "merging branches was left out" in caplog.text
    torch.testing.assert_close(_outputs(merged, x), _outputs(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0", "efficientnet_b0"])
def test_blocks_of_timm(name: str) -> None:
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    model, x = randomize(sc.build(f"timm:{name}")).eval(), torch.randn(1, 3, 64, 64)
    merged = copied(model)
    merged_(merged)
    folded_(merged, x)
    assert not _norms(merged)
    a, b = _outputs(merged, x)[0], _outputs(model, x)[0]
    assert float((a - b).abs().max() / b.abs().max()) < 1e-4


def test_the_faster_memory_format_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _layers(a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 4, 3)), torch.randn(1, 3, 12, 12)
    for last, plain in ((1.0, 2.0), (2.0, 1.0)):
        times = {"channels last": [last] * 7, "as it is": [plain] * 7}
        monkeypatch.setattr(layout, "in_turn", lambda programs, seconds, times=times: times)
        found = deployed(model, map_tensors(lambda t: t, x))
        assert found.b.weight.is_contiguous(memory_format=torch.channels_last) is (last < plain)


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(sc.TraceError, match=r"expects \(N, 3, H, W\)"):
        deployed(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.randn(1, 4, 8, 8))


def test_a_result_deploys_itself() -> None:
    model = _layers(a=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), relu=nn.ReLU(), b=nn.Conv2d(8, 4, 3))
    x = torch.randn(1, 3, 12, 12)
    result = sc.prune(model, x, "l1", sc.Budget(macs=0.6))
    for fast in (result.deploy(seconds=0.01), result.deploy(x, seconds=0.01)):
        assert not _norms(fast)
        torch.testing.assert_close(_outputs(fast, x), _outputs(result.model, x), rtol=1e-4, atol=1e-5)
    assert _norms(result.model) == 1
