"""Targets that the loss ignores."""

from __future__ import annotations

import copy
import math
from contextlib import closing

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateurs as sc
import secateurs.recovery as R
import secateurs.training as T
from secateurs.recovery.distil import Distilling, counting

from .helpers import batches, engine, net


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_examples_whose_label_is_ignored_count_in_nothing(smoothing: float) -> None:
    """A batch without any label adds nothing to the loss; it was NaN, which ended training."""
    model = net(dropout=0).eval()
    (x, y), *_ = batches(1)
    right = model(x).argmax(1)
    some, none = torch.where(torch.arange(8) < 4, -100, right), torch.full_like(y, -100)
    found = T.evaluate(model, [(x, some), (x, none)], device="cpu")
    assert (found.top1, found.examples) == (100.0, 16)
    assert found.loss == pytest.approx(F.cross_entropy(model(x), some).item())
    own = T.Objective(nn.CrossEntropyLoss(ignore_index=3))
    assert T.evaluate(model, [(x, torch.where(some < 0, 3, some))], objective=own, device="cpu").top1 == 100.0
    found = T.evaluate(model, [(x, right), (x, torch.full_like(y, 3))], objective=own, device="cpu")
    assert found.loss == pytest.approx(own.loss(model(x), right).item())  # type: ignore[misc]
    nothing = T.evaluate(model, [(x, none)], device="cpu")
    assert (nothing.top1, nothing.loss) == (None, None)
    recipe = R.Recover(epochs=1, lr=1e-9, precision="fp32", label_smoothing=smoothing)
    line = engine(copy.deepcopy(model), [(x, none), (x, some)], recipe).fit()[0]
    assert math.isfinite(line["train_loss"])
    assert line["train_top1"] <= 100


def test_what_the_users_loss_ignores_is_not_taught_and_no_reason_not_to_teach() -> None:
    """PyTorch's loss says which index it ignores: 255 in many segmentation data sets, whose masks are uint8."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    x, mask = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    mask[:, :4] = 255
    objective, task = T.Objective(nn.CrossEntropyLoss(ignore_index=255)), "segmentation"
    with closing(Distilling(copy.deepcopy(teacher), teacher, R.Recover(), required=False)) as distilling:
        assert distilling.unfit(objective, teacher(x), mask.long(), True) is None
        assert "a target is 200" in str(distilling.unfit(objective, teacher(x), mask.long().clamp(max=200), True))
    assert torch.equal(counting(mask, teacher(x), 255), mask != 255)
    assert counting(torch.full_like(mask, 156), teacher(x)).all()  # -100 as uint8
    data = sc.Data([(x, mask.long())], [(x, mask.long())])
    found = sc.prune(
        teacher, x[:1], "l1", sc.Budget(macs=0.7), data, sc.Recover(epochs=1), task=task, loss=objective.loss,
        progress="silent", device="cpu", check_speed=False,
    )  # fmt: skip
    assert found.history[-1]["share"] == 0.9
    right = (teacher(x).argmax(1) == mask)[mask != 255].float().mean()
    assert found.before.metrics["pixel_accuracy"] == pytest.approx(float(right))
