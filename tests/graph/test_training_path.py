"""Couplings that exist only in training, and parameters that no run used: followed, refused or named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.graph.modes import mode_reads
from secateurs.graph.runs import Runs
from tests.networks import conv, fraction, head, image


def cut(model: nn.Module, keep: float = 0.5, **options: Any) -> tuple[nn.Module, nn.Module]:
    """The sliced and the masked network, in training mode."""
    graph = sc.trace(model, image(), **options)
    plan = graph.plan(fraction(graph, keep, seed=3))
    assert sc.verify(model, plan, image()) <= 1e-5
    return sc.apply(model, plan).train(), sc.mask(model, plan).train()


class Supervised(nn.Module):
    """In training a head reads another layer, too. No parameter is idle in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q, self.r = conv(3, 8), conv(3, 8), conv(8, 6)
        self.head, self.out = nn.Conv2d(8, 4, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Any:
        p, q = self.p(x).relu(), self.q(x).relu()
        out = self.head(p), self.out(self.r(q).relu())
        return (*out, self.head(q)) if self.training else out


def test_layers_that_are_coupled_in_training_only() -> None:
    model = Supervised().eval()
    graph = sc.trace(model, image())
    assert graph["p"] is graph["q"]
    assert graph["r"].prunable
    assert graph.warnings == ()
    for a, b in zip(*(net(image()) for net in cut(model)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_number_that_only_training_makes_from_a_width_keeps_nothing() -> None:
    """As in DropBlock, whose scale is made from the size of a mask."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = conv(3, 8), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            if self.training:
                mask = (torch.rand_like(y) < 0.9).float()
                y = y * mask * mask.numel() / mask.sum()
                return self.out(y).mean() + (F.normalize(y) * y.shape[1] ** -0.5).square().mean()
            return self.out(y)

    model = Scaled().eval()
    group = sc.trace(model, image())["a"]
    assert (group.prunable, group.exact) == (True, True)
    cut(model)[0](image()).backward()


class Targeted(nn.Module):
    """A head that needs targets."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out, self.aux = conv(3, 8), conv(8, 6), nn.Conv2d(6, 4, 1), nn.Conv2d(8, 4, 1)

    def targets(self, y: Any) -> Tensor:
        if y is None:
            raise ValueError("no targets")
        return y

    def forward(self, x: Tensor, y: Any = None) -> Any:
        f = self.a(x).relu()
        out = self.out(self.b(f).relu())
        if not self.training:
            return out
        y = self.targets(y)
        aux = F.interpolate(self.aux(f), y.shape[-2:])
        return F.cross_entropy(out, y) + 0.4 * F.cross_entropy(aux, y.long())


def test_targets_that_nobody_gave() -> None:
    model = Targeted().eval()
    graph = sc.trace(model, image())
    assert graph["a"].consumers == ("b", "aux")
    assert graph.warnings == ()
    small, masked = cut(model)
    y = torch.zeros(2, 12, 12, dtype=torch.int64)
    assert small(image(), y).item() == pytest.approx(masked(image(), y).item(), rel=1e-5)


class Strict(Targeted):
    """Looks into its targets."""

    def targets(self, y: Any) -> Tensor:
        if type(y) is not dict:
            raise ValueError("no dict of targets")
        return y["mask"]


def test_targets_that_are_given() -> None:
    y = {"mask": torch.zeros(2, 12, 12, dtype=torch.int64)}
    for given in ((y,), {"y": y}):
        graph = sc.trace(Strict(), image(), example_targets=given)
        assert graph["a"].consumers == ("b", "aux")
        assert graph.warnings == ()
    plain = torch.zeros(2, 12, 12, dtype=torch.int64)
    assert sc.trace(Targeted(), image(), example_targets=plain)["a"].consumers == ("b", "aux")
    result = sc.prune(Strict(), image(), "l1", sc.Budget(macs=0.5), example_targets=(y,))
    result.model.train()(image(), y).backward()
    assert result.warnings == ()


def test_targets_that_do_not_fit() -> None:
    with pytest.raises(sc.TraceError, match="in training mode on these inputs and targets: ValueError: no dict"):
        sc.trace(Strict(), image(), example_targets=torch.zeros(2))


def test_a_head_that_cannot_be_reached_keeps_what_only_it_can_read() -> None:
    model = Strict().eval()
    graph = sc.trace(model, image())
    assert str(graph["a"].reason).startswith("aux may read it")
    assert graph["b"].prunable
    (told,) = graph.warnings
    assert "(ValueError: no dict of targets)" in told
    result = sc.prune(model, image(), "l1", sc.Budget(macs=0.8), report=(said := []).append)
    result.model.train()(image(), {"mask": torch.zeros(2, 12, 12, dtype=torch.int64)})
    assert told in said
    assert list(result.warnings) == result.card()["warnings"] == [told]


class Flagged(nn.Module):
    """A head behind a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.h, self.aux = conv(3, 8), conv(8, 8), head(8), nn.Sequential(conv(8, 8), head(8))
        self.flag = False

    def forward(self, x: Tensor) -> Any:
        y = self.a(x).relu()
        return (self.h(self.b(y)), self.aux(y)) if self.flag else self.h(self.b(y))


def test_a_head_that_no_run_uses_is_named() -> None:
    (told,) = sc.trace(Flagged().eval(), image()).warnings
    assert told.startswith("No run used aux: if channels that are read there (such as a or b) are cut")


def test_a_network_whose_code_asks_for_no_mode_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class DropPath(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.rand(len(x), 1, 1, 1) if self.training else x

    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.Dropout(), DropPath(), conv(8, 4), head(4)).eval()
    passes: list[Any] = []
    run = Runs._pass
    monkeypatch.setattr(Runs, "_pass", lambda *args, **named: (passes.append(args), run(*args, **named))[1])
    assert sc.trace(model, image())["0"].prunable
    assert len(passes) == 1
    sc.trace(Supervised(), image())
    assert len(passes) == 3


def test_reads_of_a_mode_are_seen_and_nothing_is_left() -> None:
    model = Supervised().train()
    with mode_reads() as reads:
        model(image())
        model.eval()
        assert not model.training
        with mode_reads() as inner:
            assert not inner
    assert model in reads
    assert not hasattr(nn.Module, "training")
    assert not model.training


def test_code_in_training_that_only_fits_the_uncut_network() -> None:
    class Sized(Supervised):
        def forward(self, x: Tensor) -> Any:
            q = self.q(x).relu()
            out = self.out(self.r(q).relu())
            return (out, q.view(len(q), 8, -1).mean(1)) if self.training else out

    graph = sc.trace(Sized().eval(), image())
    assert not graph["q"].prunable
    assert graph["r"].prunable


def test_code_in_training_that_depends_on_a_width() -> None:
    class Depends(Supervised):
        def forward(self, x: Tensor) -> Any:
            q = self.q(x).relu()
            out = self.out(self.r(q).relu())
            if self.training and q.shape[1] % 4:
                raise ValueError("a multiple of four, please")
            return out

    graph = sc.trace(Depends().eval(), image())
    assert not graph["q"].prunable
    assert graph["r"].prunable


def test_targets_with_values_that_a_loop_waits_for() -> None:
    class Waits(Targeted):
        def targets(self, y: Any) -> Tensor:
            while y.sum() > 0:
                y = y - 1
            return y

    assert sc.trace(Waits().eval(), image())["b"].prunable
