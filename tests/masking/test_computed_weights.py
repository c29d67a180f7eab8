"""Consumers whose weight is computed from their parameters are masked and gated in the weight that they read."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import secateurs as sc
from secateurs.masking import Gates

KEPT = list(range(1, 16, 2))


class Positive(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return F.softplus(w)


class Scaled(nn.Module):
    """Two parameters, of which one is not zero at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1, 16, 1, 1))

    def forward(self, w: Tensor) -> Tensor:
        return (w + 1) * self.scale


class ByHand(nn.Conv2d):
    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__(16, 4, 1)
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.compute(self.weight), self.bias)


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("co,nchw->nohw", self.w.sigmoid(), x)


class Factors(nn.Module):
    """What consumes the channels is consumed itself, in the product that gives the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3, 16))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, (self.u @ self.v).exp()[:, :, None, None])


class Hyper(nn.Module):
    """A layer computes the weight, and PyTorch's own code reads that layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.z, self.layer = nn.Parameter(torch.randn(5)), nn.Linear(5, 4 * 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.layer(self.z).view(4, x.shape[1], 1, 1))


class Elsewhere(nn.Module):
    """Other code computes with a layer's weight: a method, or a function of the module."""

    def __init__(self, by_function: bool) -> None:
        super().__init__()
        self.layer, self.by_function = nn.Conv2d(16, 4, 1), by_function

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, positive(self.layer) if self.by_function else self.positive(), self.layer.bias)

    def positive(self) -> Tensor:
        return F.softplus(self.layer.weight)


def positive(layer: nn.Module) -> Tensor:
    return F.softplus(layer.weight)


def old(layer: nn.Module, dim: int = 0) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer, dim=dim)


def pruned(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(layer, "weight", 0.4)
    return layer


def parametrized(layer: nn.Module, by: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", by)


READERS: dict[str, Callable[[], nn.Module]] = {
    "softplus": lambda: parametrized(nn.Conv2d(16, 4, 1), Positive()),
    "two parameters": lambda: parametrized(nn.Conv2d(16, 4, 1), Scaled()),
    "by hand": lambda: ByHand(F.softplus),
    "by hand, turned": lambda: ByHand(lambda w: F.softplus(w.transpose(0, 1).flatten(2)).unflatten(2, (1, 1)).transpose(0, 1)),
    "by hand, normalized": lambda: ByHand(lambda w: w / w.square().sum((0, 2, 3), keepdim=True).sqrt()),
    "by hand, stacked": lambda: ByHand(lambda w: torch.stack([w.exp(), w.cos()]).mean(0)),
    "einsum": Einsum,
    "factors": Factors,
    "hypernetwork": Hyper,
    "elsewhere, by a method": lambda: Elsewhere(False),
    "elsewhere, by a function": lambda: Elsewhere(True),
    "weight norm, dim 1": lambda: parametrizations.weight_norm(nn.Conv2d(16, 4, 3), dim=1),
    "weight norm, transposed": lambda: parametrizations.weight_norm(nn.ConvTranspose2d(16, 4, 3)),
    "old weight norm, dim 1": lambda: old(nn.Conv2d(16, 4, 3), 1),
    "old weight norm, transposed": lambda: old(nn.ConvTranspose2d(16, 4, 3)),
    "pruning mask": lambda: pruned(nn.Conv2d(16, 4, 1)),
}  # fmt: skip
LINEAR = {
    "weight norm, dim 1",
    "weight norm, transposed",
    "old weight norm, dim 1",
    "old weight norm, transposed",
    "pruning mask",
}
LAYERS = {
    *LINEAR,
    "softplus",
    "two parameters",
    "by hand",
    "by hand, turned",
    "by hand, normalized",
    "by hand, stacked",
}


def network(name: str) -> tuple[nn.Module, Tensor, nn.Module]:
    """A network, an input, and its last layer alone."""
    torch.manual_seed(0)
    reader = READERS[name]()
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), reader).eval()
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        model(x)
    return model, x, reader


def silenced(model: nn.Module, x: Tensor, factors: Tensor) -> Tensor:
    """What the last layer makes of its input channels times these factors: (16,) or (N, 16)."""
    with torch.no_grad():
        return model[2](model[1](model[0](x)) * factors.view(-1, 16, 1, 1))


def zero_one() -> Tensor:
    return torch.zeros(16).index_fill(0, torch.tensor(KEPT), 1)


@pytest.mark.parametrize("name", READERS)
def test_the_weight_is_masked_and_not_what_it_is_computed_from(name: str) -> None:
    model, x, _ = network(name)
    plan = sc.trace(model, x).plan({"0": KEPT})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    due = silenced(model, x, zero_one())
    masked = sc.mask(model, plan)
    for twin in (masked, copy.deepcopy(masked)):
        with torch.no_grad():
            torch.testing.assert_close(twin(x), due)
    torch.testing.assert_close(sc.apply(model, plan)(x), due)
    assert sc.verify(model, plan, x) <= 1e-5
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert {k: v.shape for k, v in masked.state_dict().items()} == {k: v.shape for k, v in before.items()}


@pytest.mark.parametrize("name", ["weight norm, dim 1", "softplus", "by hand"])
def test_masked_networks_can_be_differentiated(name: str) -> None:
    model, x, _ = network(name)
    masked = sc.mask(model, sc.trace(model, x).plan({"0": KEPT}))
    masked(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in masked.parameters())


def test_a_layers_weight_that_other_code_computes_with() -> None:
    """The layer is PyTorch's own; the model reads its weight."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(self.a(x), self.b.weight.exp(), self.b.bias)

    model, x = Net().eval(), torch.rand(2, 3, 8, 8)
    assert sc.verify(model, sc.trace(model, x).plan({"a": KEPT}), x) <= 1e-5


@pytest.mark.parametrize("name", READERS)
def test_gates_scale_the_weight(name: str) -> None:
    model, x, _ = network(name)
    group = sc.trace(model, x)["0"]
    soft = torch.rand(16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    whole = model(x).detach()
    with Gates(model, [group]) as gates:
        for factors in (zero_one(), soft):
            gates.set({"0": factors})
            torch.testing.assert_close(model(x).detach(), silenced_by_hand(name, factors.detach()))
        model(x).sum().backward()
        assert soft.grad is not None
        assert bool((soft.grad != 0).any())
        rows = torch.stack([zero_one(), soft.detach()])
        gates.set({"0": rows})
        if name in LAYERS:
            torch.testing.assert_close(model(x).detach(), silenced_by_hand(name, rows))
        elif not name.startswith("elsewhere"):  # such a layer is never called: its hooks do not run
            with pytest.raises(sc.ConfigError, match="takes no per-sample gates"):
                model(x)
    torch.testing.assert_close(model(x).detach(), whole)


def silenced_by_hand(name: str, factors: Tensor) -> Tensor:
    model, x, _ = network(name)
    return silenced(model, x, factors)


@pytest.mark.parametrize("name", sorted(LINEAR | {"softplus", "two parameters"}))
def test_gates_are_folded_where_the_weight_scales(name: str) -> None:
    model, x, _ = network(name)
    graph = sc.trace(model, x)
    factors = zero_one() * 0.5
    due = silenced_by_hand(name, factors)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with Gates(model, [graph["0"]]) as gates:
        if name == "softplus":
            with pytest.raises(sc.ConfigError, match="does not scale channel by channel"):
                gates.fold_({"0": factors})
            assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        else:
            gates.fold_({"0": factors})
            torch.testing.assert_close(model(x).detach(), due)


def test_nothing_is_folded_if_one_weight_does_not_scale() -> None:
    class Tanh(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w.tanh()

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    parametrize.register_parametrization(model[4], "weight", Tanh())
    groups = [g for g in sc.trace(model, torch.zeros(1, 3, 12, 12)).groups if g.prunable]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(sc.ConfigError, match="does not scale channel by channel"):
        Gates(model, groups).fold_({g.name: torch.full((g.size,), 0.5) for g in groups})
    assert len(groups) == 2
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("write", ["item", "view"])
def test_a_map_that_the_code_fills_is_not_taken_for_a_constant(write: str) -> None:
    """Axes are followed through what is computed from constants and weights, until an activation is written there."""

    class Padded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out = torch.zeros(len(x), 4, 14, 14)
            if write == "item":
                out[:, :, 1:-1, 1:-1] = x
            else:
                out.narrow(2, 1, 12).narrow(3, 1, 12).copy_(x)
            return out

    layers = nn.Conv2d(3, 4, 1), Padded(), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)
    model = nn.Sequential(*layers).eval()
    parametrize.register_parametrization(model[4], "weight", Positive())
    x = torch.randn(2, 3, 12, 12)
    graph = sc.trace(model, x)
    plan = graph.plan({"2": KEPT[:4], "3": [0, 2, 5]})
    assert sc.verify(model, plan, x) <= 1e-5
    with torch.inference_mode():
        torch.testing.assert_close(sc.mask(model, plan)(x), sc.apply(model, plan)(x))
