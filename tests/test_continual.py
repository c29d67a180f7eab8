"""A pruned network pruned again: the artifact records how the original is built, and all the cuts since."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.stripes import StripeConv2d
from secateurs.testing.networks import randomize


def images(n: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(images(8, i), torch.arange(8) % 4) for i in range(3)]


def pruned(model: nn.Module, method: Any, macs: float, **options: Any) -> sc.Result:
    return sc.prune(model, images(), method, sc.Budget(macs=macs), data=batches(), progress="silent", **options)


def model() -> nn.Module:
    return randomize(sc.build("zoo:small_cnn", num_classes=4), 0).eval()


def assert_same(a: nn.Module, b: nn.Module) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key]), key
    assert torch.equal(copy.deepcopy(a).eval()(images(3, 5)), copy.deepcopy(b).eval()(images(3, 5)))


def test_channels_then_stripes(tmp_path: Path) -> None:
    first = pruned(model(), "l1", 0.6)
    second = pruned(first.model, sc.PFF(epochs=1), 0.5)
    assert second.before.macs == first.after.macs
    assert second.after.macs <= 0.5 * first.after.macs
    assert any(isinstance(m, StripeConv2d) for m in second.model.modules())
    with pytest.raises(sc.ConfigError, match="pff found only convolutions whose stripes are already cut"):
        pruned(second.model, sc.PFF(epochs=1), 0.5)
    loaded = sc.load(second.save(tmp_path / "b"))  # no trace of the first artifact, which was never saved
    assert_same(loaded, second.model)
    assert sc.count(loaded, images()) == sc.Cost(second.after.macs, second.after.params)


def test_through_artifacts_as_often_as_one_likes(tmp_path: Path) -> None:
    a = pruned(model(), "l1", 0.7)
    a.save(tmp_path / "a")
    network = sc.build(str(tmp_path / "a"))
    assert network.training
    assert_same(network, a.model)
    b = pruned(network, "l2", 0.7)
    b.save(tmp_path / "b")
    c = pruned(sc.load(tmp_path / "b"), sc.PFF(epochs=1, live=True), 0.5)
    c.save(tmp_path / "c")
    assert_same(sc.load(tmp_path / "c"), c.model)
    assert len(json.loads((tmp_path / "c" / "card.json").read_text())["source"]["plans"]) == 2


def test_widened_in_between(tmp_path: Path) -> None:
    a = pruned(model(), "l1", 0.6)
    wide = sc.widen(a.model, images(), 1.5)
    b = pruned(wide, "l2", 0.6)
    assert_same(sc.load(b.save(tmp_path / "b")), b.model)


def test_weights_of_ones_own(tmp_path: Path) -> None:
    from safetensors.torch import save_model

    a = pruned(model(), "l1", 0.7)
    a.save(tmp_path / "a")
    other = randomize(copy.deepcopy(a.model), 3)
    save_model(other, str(tmp_path / "w.safetensors"))
    assert_same(sc.build(str(tmp_path / "a"), tmp_path / "w.safetensors"), other)
    with pytest.raises(sc.SpecError, match="records how"):
        sc.build(str(tmp_path / "a"), width=3)


def test_a_network_of_ones_own_loads_from_a_fresh_one_however_often_it_was_pruned(tmp_path: Path) -> None:
    def own() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(1), nn.Linear(8 * 900, 4))

    first = pruned(own(), "l1", 0.8)
    assert first.source is None
    second = pruned(first.model, "l2", 0.8)
    second.save(tmp_path / "second")
    loaded = sc.load(tmp_path / "second", model=own())
    third = pruned(loaded, "random", 0.8)
    third.save(tmp_path / "third")
    x = torch.randn(2, 3, 32, 32)
    for name, result in (("second", second), ("third", third)):
        with pytest.raises(sc.ArtifactError, match="does not record how to build its network"):
            sc.load(tmp_path / name)
        fresh = sc.load(tmp_path / name, model=own())
        assert torch.equal(fresh(x), result.model.eval()(x))
    assert torch.equal(sc.load(tmp_path / "second", model=first.model)(x), second.model.eval()(x))  # cut once already
    with pytest.raises(sc.PlanError, match="does not fit this model"):
        sc.load(tmp_path / "third", model=nn.Sequential(nn.Conv2d(3, 9, 3)))


def test_a_pruned_network_that_was_changed_is_not_taken_for_what_it_was() -> None:
    small = pruned(model(), "l1", 0.6).model
    small.fc = nn.Linear(small.fc.in_features, 7)
    assert sc.prune(small, images(), "l1", sc.Budget(macs=0.8)).source is None


@pytest.mark.parametrize("bad", [3, [3], [{"after": 0}], [{"after": "0", "plan": {}}], [{"plan": {}}]])
def test_a_damaged_chain(bad: Any, tmp_path: Path) -> None:
    pruned(pruned(model(), "l1", 0.6).model, "l1", 0.6).save(tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    card["source"]["plans"] = bad
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(sc.ArtifactError, match=r"card\.json is not valid: field 'source\.plans"):
        sc.load(tmp_path)
    card["source"]["plans"] = [{"after": 0, "plan": {"format": "secateurs-plan", "version": 1, "digest": "x"}}]
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(sc.ArtifactError, match=r"field 'source\.plans\.0\.plan'.*digest"):
        sc.load(tmp_path)
