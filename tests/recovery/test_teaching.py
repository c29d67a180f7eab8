"""`Recover`: the original teaches unless it is told not to, or cannot."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateurs as sc
import secateurs.recovery as R
import secateurs.training as T
from secateurs.recovery.distil import soft_loss
from secateurs.recovery.recipes import peak_lr
from tests.recovery.test_recover import QUIET, X, pair
from tests.training.helpers import batches, same


def recover(student: nn.Module, data: Any, recipe: T.Recipe, teacher: nn.Module | None = None, **options: Any) -> Any:
    return R.recover(student, data, recipe, teacher=teacher, example_inputs=X, **{**QUIET, **options})


class Deaf(nn.Module):
    """A teacher that must not be asked."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the teacher was run")


def once(**given: Any) -> sc.Recover:
    return sc.Recover(**{"steps": 1, "lr": 1e-9, "precision": "fp32", **given})


@pytest.mark.parametrize("given", [{}, {"share": 0.3, "temperature": 2}, {"share": 1.0}, {"share": 0}])
def test_the_loss_is_the_original_s_probabilities_and_the_labels(given: dict[str, float]) -> None:
    x, y = batches(1)[0]
    teacher, student = pair()
    before = copy.deepcopy(student).train()
    (line,) = recover(student, [(x, y)], once(**given), teacher)
    share, temperature = given.get("share", 0.9), given.get("temperature", 4.0)
    with torch.no_grad():
        logits = before(x)
        soft = soft_loss(teacher(x), logits, temperature) / temperature  # T · KL
        expected = share * soft + (1 - share) * F.cross_entropy(logits, y)
    assert line["train_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert line.get("share", 0) == share


def test_prune_teaches_by_default() -> None:
    teacher, _ = pair()
    result = sc.prune(teacher, X, "l1", sc.Budget(macs=0.8), batches(), sc.Recover(epochs=1), progress=False)
    assert result.history[-1]["share"] == 0.9
    alone = sc.prune(teacher, X, "l1", sc.Budget(macs=0.8), batches(), sc.Recover(epochs=1, share=0), progress=False)
    assert "share" not in alone.history[-1]


def test_labels_alone_run_no_teacher() -> None:
    _, student = pair()
    (line,) = recover(student, batches(), sc.Recover(epochs=1, share=0), Deaf())
    assert "share" not in line


def test_without_a_teacher_the_labels_are_used_and_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    _, student = pair()
    plain = copy.deepcopy(student)
    recover(student, batches(), sc.Recover(epochs=1), progress="lines")
    assert "trains on the task loss alone: there is no teacher" in capsys.readouterr().err
    recover(plain, batches(), sc.Recover(epochs=1, share=0))
    assert same(student, plain)
    for recipe in (sc.Recover(share=0.5), sc.Distil()):
        with pytest.raises(sc.ConfigError, match=r"needs the original network: pass teacher="):
            recover(student, batches(), recipe)


def test_data_without_labels() -> None:
    teacher, student = pair()
    before = copy.deepcopy(student)
    inputs = [x for x, _ in batches()]
    (line,) = recover(student, inputs, sc.Recover(epochs=1, share=1), teacher)
    assert line["share"] == 1
    assert not same(student, before)
    with pytest.raises(sc.DataError, match="Recover reads labels"):
        sc.prune(teacher, X, "l1", sc.Budget(macs=0.8), sc.Data(inputs), sc.Recover(epochs=1))


# -- what cannot be taught ----------------------------------------------------------------------------------------------


def squares(outputs: Any, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets)


@pytest.mark.parametrize("kind", ["regression", "one output"])
def test_outputs_that_are_not_logits_fall_back_to_the_task_loss(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    teacher, student = pair()
    if kind == "one output":
        teacher.fc, student.fc = nn.Linear(12, 1), nn.Linear(12, 1)
    values = [(x, torch.randn(len(x), 1 if kind == "one output" else 4)) for x, _ in batches()]
    plain = copy.deepcopy(student)
    with pytest.raises(sc.ConfigError, match=r"The original cannot teach class probabilities: .*share=0"):
        recover(copy.deepcopy(student), values, sc.Recover(epochs=1, share=0.9), teacher, loss=squares)
    (line,) = recover(student, values, sc.Recover(epochs=1), teacher, loss=squares, progress="lines")
    assert "trains on the task loss alone, without the original as a teacher: the" in capsys.readouterr().err
    assert "share" not in line
    recover(plain, values, sc.Recover(epochs=1, share=0), teacher, loss=squares)
    assert same(student, plain)


@pytest.mark.parametrize("soft", [False, True])
def test_a_loss_of_ones_own_that_takes_classes_is_taught_with(soft: bool) -> None:
    x, y = batches(1)[0]
    targets = torch.softmax(torch.randn(len(y), 4), 1) if soft else y
    teacher, student = pair()
    before = copy.deepcopy(student).train()
    (line,) = recover(student, [(x, targets)], once(), teacher, loss=lambda o, t: 3 * F.cross_entropy(o, t))
    with torch.no_grad():
        logits = before(x)
        expected = 0.9 * soft_loss(teacher(x), logits, 4) / 4 + 0.1 * 3 * F.cross_entropy(logits, targets)
    assert line["train_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_every_pixel_of_a_segmentation_is_taught() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student[0].weight[3:] = 0
    data = [(x, torch.randint(0, 4, (len(x), 8, 8))) for x, _ in batches(12)]
    lines = recover(student, data, sc.Recover(epochs=6, lr=0.1), teacher)
    assert lines[-1]["share"] == 0.9
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]


# -- the learning rate --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 1_000_000), st.integers(1, 1_000_000))
def test_the_learning_rate_grows_with_the_steps(a: int, b: int) -> None:
    a, b = sorted((a, b))
    assert 0 < peak_lr(a) <= peak_lr(b) <= peak_lr(None) == 0.1


def test_the_learning_rate_is_chosen_where_none_is_given() -> None:
    assert [round(peak_lr(n), 2) for n in (79, 391, 938, 1600)] == [0.02, 0.05, 0.08, 0.1]
    assert sc.Recover().lr is None
    assert sc.Recover().settled(400).lr == peak_lr(400)
    assert sc.Recover(lr=0.3).settled(400).lr == 0.3
    assert sc.Recover(optimizer="adamw").settled(400).lr == 1e-3
    teacher, student = pair()
    engine = T.Engine(student, batches(), sc.Recover(epochs=2, share=0), **QUIET)
    engine.fit()
    assert engine.recipe.lr == peak_lr(12)
    rates: list[float] = []

    class Watch(T.Hook):
        def after_step(self, engine: Any) -> None:
            rates.append(engine.optimizer.param_groups[0]["lr"])

    recover(student, batches(), sc.Recover(epochs=2, schedule="constant"), teacher, hooks=[Watch()])
    assert set(rates) == {peak_lr(12)}
