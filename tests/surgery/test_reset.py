"""Networks from scratch: the same structure, other weights."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from secateurs import models, zoo
from secateurs.errors import ConfigError
from secateurs.plans import trace
from secateurs.surgery import apply, reinitialize
from tests.networks import CASES, half, image
from tests.surgery.test_slice import fingerprint, same


@pytest.mark.parametrize("name", zoo.names("zoo"))
def test_the_zoo_starts_as_it_is_built(name: str) -> None:
    """Same distribution: deviations agree, weight by weight; and nothing of the old weights is left."""
    torch.manual_seed(1)
    model = zoo.build(f"zoo:{name}")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(100)
    born, fresh = zoo.build(f"zoo:{name}").state_dict(), reinitialize(model, 5).state_dict()
    for key, x in fresh.items():
        if x.ndim > 1 and x.numel() >= 400:
            assert 0.85 < float(x.std() / born[key].std()) < 1.18, key
            assert abs(float(x.mean())) < 0.2 * float(x.std()), key
        elif x.ndim == 1:
            assert torch.equal(x, born[key]), key


def test_seed_and_given_model() -> None:
    model = CASES["chain"].make()
    model.get_buffer("na.num_batches_tracked").fill_(7)
    before, state = fingerprint(model), torch.random.get_rng_state()
    a, b, c = (reinitialize(model, seed) for seed in (0, 0, 1))
    assert same(fingerprint(model), before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(a.get_parameter("a.weight"), c.get_parameter("a.weight"))
    assert float(a.get_buffer("na.running_var").min()) == float(a.get_buffer("na.running_var").max()) == 1
    assert int(a.get_buffer("na.num_batches_tracked")) == 0


def test_a_cut_structure_keeps_its_widths() -> None:
    x = torch.randn(1, 3, 32, 32)
    model = models.build("zoo:resnet20")
    graph = trace(model, x)
    small = apply(model, graph.plan(half(graph)))
    fresh = reinitialize(small)
    assert {n: p.shape for n, p in fresh.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}
    conv = fresh.get_parameter("layer3.2.conv2.weight").detach()  # He, fan out: of the widths as they are now
    assert 0.9 < float(conv.std()) / (2 / (conv.shape[0] * 9)) ** 0.5 < 1.1


@pytest.mark.parametrize("name", ["layer_scale", "weight_normalization", "raw_parameters"])
def test_parameters_that_nobody_sets(name: str) -> None:
    model = CASES[name].make()
    with pytest.raises(ConfigError, match=r"No reset_parameters\(\) sets .*keep_raw=True"):
        reinitialize(model)
    fresh = reinitialize(model, keep_raw=True)
    old = dict(model.named_parameters())
    for key, p in fresh.named_parameters():
        assert bool(p.isfinite().all()), key
    raw = {"layer_scale": "gamma", "weight_normalization": "a.parametrizations.weight.original1", "raw_parameters": "w"}
    assert torch.equal(fresh.get_parameter(raw[name]), old[raw[name]])
    fresh(image())


def test_spectral_norm_keeps_its_vectors_finite() -> None:
    fresh = reinitialize(CASES["spectral_normalization"].make().train(), keep_raw=True)
    assert all(bool(x.isfinite().all()) for x in fresh.state_dict().values())


def test_the_whole_has_the_last_word() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 4)
            self.scale = nn.Parameter(torch.ones(4))

        def reset_parameters(self) -> None:
            nn.init.constant_(self.a.bias, 3.0)
            nn.init.constant_(self.scale, 0.5)

    fresh = reinitialize(Own())
    assert fresh.get_parameter("a.bias").tolist() == [3.0] * 4
    assert fresh.get_parameter("scale").tolist() == [0.5] * 4


def test_a_weight_norm_that_has_run_is_copied() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)))
    net(torch.randn(1, 3, 5, 5))  # leaves a weight that is not a leaf
    reinitialize(net, keep_raw=True)


def test_its_earlier_name() -> None:
    import secateurs as sc

    assert sc.reinitialise is sc.reinitialize
