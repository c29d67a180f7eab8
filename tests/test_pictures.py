"""Pictures of stripes: what they show, by hand, and that they are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import secateurs as sc
from secateurs.report import shapes
from tests.networks import CASES, image


def pruned() -> tuple[torch.nn.Module, sc.Plan, dict[str, np.ndarray]]:
    """chain: a has filters of three shapes, one of which goes with its channel; b ends as a block."""
    model = CASES["chain"].make()
    graph = sc.trace(model, image())
    a = np.zeros((8, 3, 3), bool)
    a[:4, 1, 1] = True
    a[4:6, :, 1] = True
    a[6:] = True
    b = np.zeros((6, 3, 3), bool)
    b[:, :2, :2] = True
    plan = graph.plan({"a": [0, 1, 2, 3, 4, 6, 7]}, stripes={"a.weight": a, "b.weight": b})
    return sc.apply(model, plan), plan, {"a": a[[0, 1, 2, 3, 4, 6, 7]], "b": b}


def test_masks_and_frequencies() -> None:
    _, plan, expected = pruned()
    found = shapes.masks(plan)
    assert found.keys() == expected.keys()
    for layer, mask in expected.items():
        assert np.array_equal(found[layer], mask)
    counts = shapes.frequencies(found["a"])
    assert [n for _, n in counts] == [4, 2, 1]
    assert counts[0][0].tolist() == [[False] * 3, [False, True, False], [False] * 3]
    assert counts[1][0].all()


def test_norms_by_hand() -> None:
    model, plan, masks = pruned()
    whole = CASES["chain"].make()
    found = shapes.norms(model, plan)
    weights = {"a": whole.a.weight[list(plan.groups["a"])], "b": whole.b.weight[:, list(plan.groups["a"])]}
    for layer, w in weights.items():
        by_hand = (w.detach().norm(dim=1) * torch.from_numpy(masks[layer])).mean(0)
        np.testing.assert_allclose(found[layer], by_hand.numpy(), rtol=1e-5)


def test_they_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, plan, _ = pruned()
    made = shapes.pictures(model, plan, tmp_path / "pictures")
    assert [p.name for p in made] == ["shapes.png", "shares.png", "norms.png"]
    for path in made:
        assert path.read_bytes()[:4] == b"\x89PNG"


def test_without_stripes_or_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CASES["chain"].make()
    plan = sc.trace(model, image()).plan({"a": [0, 1]})
    with pytest.raises(sc.ConfigError, match="no stripes to plot"):
        shapes.pictures(model, plan, tmp_path)
    model, plan, _ = pruned()
    monkeypatch.setattr(shapes, "can_plot", lambda: False)
    with pytest.raises(sc.ConfigError, match=r"pip install 'secateurs\[report\]'"):
        shapes.pictures(model, plan, tmp_path)
    assert not list(tmp_path.iterdir())
