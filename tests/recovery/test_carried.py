"""What cut channels carried, put into biases."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc


class Slimmed(nn.Module):
    """A convolution whose norm has γ = 0 on every other channel, and something that reads it."""

    def __init__(self, *layers: nn.Module, padding: int = 0, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=padding)
        self.bn = nn.BatchNorm2d(width)
        self.rest = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(F.relu(self.bn(self.conv(x))))


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def head() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "bias": lambda: Slimmed(nn.Conv2d(8, 6, 3), *head()),
    "bias and norm": lambda: Slimmed(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), *head()),
    "norm only": lambda: Slimmed(nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), *head()),
    "padded producer": lambda: Slimmed(nn.Conv2d(8, 6, 3), *head(), padding=1),
    "strided": lambda: Slimmed(nn.Conv2d(8, 6, 3, stride=2), *head()),
    "reflected": lambda: Slimmed(nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), *head()),
    "linear": lambda: Slimmed(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    "flattened": lambda: Slimmed(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(32, 5)),
    "grouped": lambda: Slimmed(nn.Conv2d(8, 6, 3, groups=2), *head()),
    "transposed": lambda: Slimmed(nn.ConvTranspose2d(8, 6, 1), *head()),
    "depthwise": lambda: Slimmed(
        nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 6, 1), *head()
    ),
    "max pooling": lambda: Slimmed(nn.MaxPool2d(2), nn.Hardswish(), nn.Conv2d(8, 6, 3), *head()),
    "residual": lambda: nn.Sequential(nn.Conv2d(3, 6, 3), Block(6), *head()),
}


def slim(model: nn.Module) -> nn.Module:
    """γ = 0 on every other channel of every norm but one that follows a layer which reads them."""
    generator = torch.Generator().manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data.uniform_(0.5, 1.5, generator=generator)
            m.bias.data.uniform_(0.2, 1, generator=generator)
            m.running_mean.normal_(generator=generator)
            m.running_var.uniform_(0.5, 2, generator=generator)
    first = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    first.weight.data[::2] = 0
    return model.eval()


def images(n: int = 4, seed: int = 1) -> Tensor:
    return torch.rand(n, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def cut(model: nn.Module, name: str, kept: list[int], **options: Any) -> sc.Result:
    """Pruned of exactly these channels."""

    class Chosen(sc.Method):
        def check(self, task: Any) -> None: ...
        def feasible(self, task: Any) -> None: ...
        def select(self, task: Any) -> Any:
            return {name: kept}

    return sc.prune(model, images(2), Chosen(), **options)


def group_of(model: nn.Module) -> str:
    return "1.conv1" if isinstance(model, nn.Sequential) else "conv"


@pytest.mark.parametrize("kind", NETWORKS)
def test_constants_are_folded_exactly_without_data(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = slim(NETWORKS[kind]())
    name = group_of(model)
    size = sc.trace(model, images(1))[name].size
    kept = list(range(1, size, 2))
    told: list[str] = []
    result = cut(model, name, kept, report=told.append)
    plain = cut(model, name, kept, calibrate=False)
    x = images(8, seed=2)
    with torch.no_grad():
        due, found, without = model(x), result.model(x), plain.model(x)
    assert float((due - found).abs().max() / due.abs().max()) < 1e-5
    assert float((due - without).abs().max() / due.abs().max()) > 1e-2
    assert "calibrated: constants that cut channels carried put into 1 layer" in told
    result.save(tmp_path / "a")
    loaded = sc.load(tmp_path / "a", model=model)
    assert torch.equal(loaded(x), result.model(x))


def test_with_zero_padding_the_best_constant() -> None:
    torch.manual_seed(0)
    model = slim(Slimmed(nn.Conv2d(8, 6, 3, padding=1)))
    result, plain = (cut(model, "conv", [1, 3, 5, 7], calibrate=c) for c in (True, False))
    with torch.no_grad():
        lost = model(images()) - plain.model(images())  # (N, 6, H, W), the same for all images
        apart = model(images()) - result.model(images())
    torch.testing.assert_close(result.model.rest[0].bias - plain.model.rest[0].bias, lost.mean((0, 2, 3)))
    torch.testing.assert_close(apart[..., 1:-1, 1:-1], (lost - lost.mean((0, 2, 3), keepdim=True))[..., 1:-1, 1:-1])
    assert apart.square().mean() < 0.2 * lost.square().mean()


def test_a_layer_without_bias_and_norm_is_left_alone_and_named() -> None:
    model = slim(Slimmed(nn.Conv2d(8, 6, 3, bias=False), nn.ReLU(), *head()))
    told: list[str] = []
    result = cut(model, "conv", [1, 3, 5, 7], report=told.append)
    assert "calibrated: no bias or norm to hold those of 1 layer (rest.0)" in told
    assert result.history == [{"event": "calibrated", "images": 0, "norms": 0, "layers": [], "left": ["rest.0"]}]


def test_layers_without_bias_before_and_after_the_last_norm() -> None:
    model = slim(
        Slimmed(nn.Conv2d(8, 6, 1, bias=False), nn.ReLU(), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(600, 5, False))
    )
    kept = {"conv": [1, 3, 5, 7], "rest.0": [0, 1]}

    class Chosen(sc.Method):
        def check(self, task: Any) -> None: ...
        def feasible(self, task: Any) -> None: ...
        def select(self, task: Any) -> Any:
            return kept

    result = sc.prune(model, images(2), Chosen(), calibrate=[images(40)])
    assert result.history == [{"event": "calibrated", "images": 40, "norms": 2, "layers": [], "left": ["rest.4"]}]


def test_a_forward_with_state_is_run_on_copies() -> None:
    class Counting(Slimmed):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(8, 6, 3), *head())
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += x.mean((0, 2, 3))
            return super().forward(x)

    model = slim(Counting())
    for calibrate in (True, [images(40)]):
        result = cut(model, "conv", [1, 3, 5, 7], calibrate=calibrate)
        assert torch.equal(model.seen, torch.zeros(3))
        assert bool(result.model.seen.isfinite().all())


def test_an_output_that_goes_to_a_norm_and_elsewhere_is_left_alone() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    model = slim(Slimmed(Both()))
    result = cut(model, "conv", [1, 3, 5, 7])
    assert result.history[0]["left"] == ["rest.0.conv"]
    assert torch.equal(result.model.rest[0].norm.running_mean, model.rest[0].norm.running_mean)


@pytest.mark.parametrize("zero", [True, False])
def test_only_what_cannot_depend_on_the_input_is_a_constant(zero: bool) -> None:
    """The example inputs are all zero: every channel is constant on them."""
    model = slim(Slimmed(nn.Conv2d(8, 6, 3), *head()))
    if not zero:
        model.bn.weight.data.fill_(1e-3)

    class Chosen(sc.Method):
        def check(self, task: Any) -> None: ...
        def feasible(self, task: Any) -> None: ...
        def select(self, task: Any) -> Any:
            return {"conv": [1, 3, 5, 7]}

    result = sc.prune(model, torch.zeros(2, 3, 12, 12), Chosen())
    assert bool(result.history) == zero


def test_filters_of_zeros_are_constants() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(384, 5)).eval()
    model[0].weight.data[::2] = 0
    model[0].bias.data.fill_(0.7)
    result = cut(model, "0", [1, 3, 5, 7])
    torch.testing.assert_close(result.model(images()), model(images()))


def test_networks_without_norms_hold_the_mean_over_images() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(864, 5),
    ).eval()
    batches = [images(20, seed=3), images(33, seed=4)]
    result = cut(model, "0", [0, 2, 5], calibrate=batches)
    plain = cut(model, "0", [0, 2, 5], calibrate=False)
    masked = sc.mask(model, result.plan)
    with torch.no_grad():
        x = torch.cat(batches)
        lost = (model[:3](x) - masked[:3](x)).double().mean((0, 2, 3))
    torch.testing.assert_close((result.model[2].bias - plain.model[2].bias).double(), lost, rtol=1e-5, atol=1e-6)
    assert result.history == [{"event": "calibrated", "images": 53, "norms": 0, "layers": ["2"], "left": []}]
    assert torch.equal(model[2].bias, masked[2].bias)


@pytest.mark.parametrize("init", ["merge", "exemplar"])
def test_what_is_lost_with_the_weights_that_a_method_gives_the_cut_network(init: str) -> None:
    """EPruner's exemplars stand in for the channels that they represent, but not for all that these carried."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 1))
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = images(32, seed=3)
    method = sc.EPruner(init=init)  # type: ignore[arg-type]
    plain, result = (sc.prune(model, x[:1], method, ratios={"0": 0.5}, calibrate=how, seed=1) for how in (False, [x]))
    assert result.history[-1]["layers"] == ["2"]
    kept = list(result.plan.groups["0"])
    with torch.no_grad():
        read = model[:2](x)
        lost = (model[2](read) - plain.model[2](read[:, kept])).double().mean((0, 2, 3))
        wanted, before, after = (m(x).log_softmax(1) for m in (model, plain.model, result.model))
    assert torch.equal(result.model[2].weight, plain.model[2].weight)
    assert torch.equal(plain.model[2].weight, model[2].weight[:, kept]) == (init == "exemplar")
    torch.testing.assert_close((result.model[2].bias - plain.model[2].bias).double(), lost, rtol=1e-5, atol=1e-6)
    missed = [float(F.kl_div(y, wanted, reduction="batchmean", log_target=True)) for y in (before, after)]
    assert missed[1] < missed[0]


def test_a_method_that_replaces_layers_of_the_cut_network() -> None:
    class Replaces(sc.L1):
        def initialize(self, task: Any, selection: Any, small: nn.Module) -> None:
            small.add_module("2", nn.Sequential(small[2]))  # type: ignore[index]

    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    result = sc.prune(nn.Sequential(*layers).eval(), images(2), Replaces(), sc.Budget(macs=0.5), [images(8)])
    assert not any(h["layers"] for h in result.history if h["event"] == "calibrated")
    assert result.model(images(2)).isfinite().all()


def test_means_that_do_harm_are_left_out() -> None:
    """After a deep cut at random the layers before have changed too, and what a channel carried may be far off."""
    kept = []
    for seed in range(3):
        torch.manual_seed(seed)
        widths = (3, 12, 12, 12)
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)).eval()
        for layer in (m for m in model if isinstance(m, nn.Conv2d | nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias)
        x = 4 * torch.randn(32, 3, 8, 8)
        plain, result = (
            sc.prune(model, x[:1], "random", sc.Budget(macs=0.15), seed=seed, calibrate=how) for how in (False, [x])
        )
        with torch.no_grad():
            wanted, before, after = (m(x).log_softmax(1) for m in (model, plain.model, result.model))
        missed = [float(F.kl_div(y, wanted, reduction="batchmean", log_target=True)) for y in (before, after)]
        filled = bool(result.history and result.history[-1]["layers"])
        assert missed[1] < missed[0] if filled else missed[1] == missed[0]
        kept.append(filled)
    assert len(set(kept)) == 2  # both happen


def test_cut_stripes_carry_something_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(600, 5)
    ).eval()
    x = images(40)

    class Stripes(sc.Method):
        def check(self, task: Any) -> None: ...
        def feasible(self, task: Any) -> None: ...
        def select(self, task: Any) -> Any:
            from secateurs.methods.selection import Selection

            keep = torch.ones(6, 3, 3, dtype=torch.bool)
            keep[::2, 0] = False
            return Selection({"0": [0, 1, 2, 5]}, stripes={"2.weight": keep})

    result, plain = (sc.prune(model, x[:2], Stripes(), calibrate=c) for c in ([x], False))
    with torch.no_grad():
        lost = (model[:3](x) - plain.model[:3](x)).mean((0, 2, 3))
        torch.testing.assert_close(
            (model[:3](x) - result.model[:3](x)).mean((0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0
        )
    assert float(lost.abs().max()) > 1e-3
