"""What recovery cannot do with a network's outputs is said before any work, and what it can do it does with all of them."""

from __future__ import annotations

import gc
import weakref
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
import secateurs.recovery as R
from secateurs.recovery import mimic
from secateurs.training.objective import Objective

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class TwoHeads(nn.Module):
    """A map and a grade, in a dict without logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.seg, self.grade = nn.Conv2d(8, 2, 1), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.b(self.a(x).relu()).relu()
        return {"seg": self.seg(x), "grade": self.grade(x.mean((2, 3)))}


class Losses(TwoHeads):
    """In training a dict of losses, as torchvision's detectors."""

    def forward(self, x: Tensor) -> Any:
        found = super().forward(x)
        return {name: y.square().mean() for name, y in found.items()} if self.training else list(found.values())


class Never(sc.L1):
    def scores(self, task: Any) -> Any:
        raise AssertionError("the method has run")


def forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    return model(batch["x"]), batch


def loss(outputs: Any, targets: Any) -> Tensor:
    return F.mse_loss(outputs["seg"], targets["seg"]) + F.mse_loss(outputs["grade"], targets["grade"])


def step(model: nn.Module, batch: Any) -> Tensor:
    found = model(batch["x"])
    return found["seg"].mean() + found["grade"].mean()


BATCH = {"x": X, "seg": torch.zeros(2, 2, 8, 8), "grade": torch.zeros(2, 1)}


def pruned(model: nn.Module, method: Any, recover: Any, **options: Any) -> sc.Result:
    data = sc.Data([BATCH, BATCH], [BATCH])
    return sc.prune(model.eval(), X[:1], method, sc.Budget(macs=0.5), data, recover, progress="silent", **options)


@pytest.mark.parametrize(
    "recover", [sc.Distil(epochs=1), sc.Recover(epochs=1, share=1), sc.Recover(epochs=1, share=0.5)]
)
def test_what_the_original_cannot_teach_is_an_error_before_any_work(recover: Any) -> None:
    says = rf"a dict without logits. Train on the task loss alone, with {type(recover).__name__}\(share=0\)"
    with pytest.raises(sc.ConfigError, match=says):
        pruned(TwoHeads(), Never(), recover, loss=loss, forward=forward)


@pytest.mark.parametrize("recover", [sc.Mimic(epochs=1), sc.Recover(epochs=1), sc.Recover(epochs=1, share=0)])
def test_a_loss_that_does_not_take_the_outputs_is_an_error_before_any_work(recover: Any) -> None:
    with pytest.raises(sc.ConfigError, match=r"pass your own loss"):
        pruned(TwoHeads(), Never(), recover, forward=forward)


def test_outputs_that_cannot_be_mimicked_are_an_error_before_any_work() -> None:
    says = r"returns a dict with 2 entries in training and a list of 2 in evaluation, .* Name the .*, Mimic\(nodes=…\)"
    with pytest.raises(sc.ConfigError, match=says):
        pruned(Losses(), Never(), sc.Mimic(epochs=1, nodes=("seg", ":output")), step=step, forward=forward)
    recover = sc.Mimic(epochs=1, nodes=("seg", "grade"), function="mse")
    found = pruned(Losses(), sc.L1(), recover, step=step, forward=forward)
    assert found.history[-1]["nodes"] == ["seg", "grade"]


def test_a_step_that_does_not_call_the_model_cannot_be_mimicked() -> None:
    def parts(model: Any, batch: Any) -> Tensor:
        return model.a(batch["x"]).mean()

    with pytest.raises(sc.ConfigError, match="the step calls parts of the model"):
        pruned(TwoHeads(), Never(), sc.Mimic(epochs=1), step=parts, forward=forward)


def test_all_of_a_structured_output_is_mimicked() -> None:
    teacher = TwoHeads().eval()
    graph = sc.trace(teacher, X)
    student = sc.apply(teacher, graph.plan({"a": range(4), "b": range(4)}))
    lines = R.recover(
        student, [(X, torch.zeros(2))] * 2, sc.Mimic(epochs=20, lr=0.03, nodes=("seg", ":output")), teacher=teacher,
        example_inputs=X, loss=lambda outputs, targets: outputs["seg"].mean(), progress="silent", device="cpu",
    )  # fmt: skip
    assert lines[-1]["train_loss"] < 0.5 * lines[0]["train_loss"]
    one, other = (y["grade"].detach() for y in (teacher(X), student(X)))
    before = sc.apply(teacher, graph.plan({"a": range(4), "b": range(4)}))(X)["grade"]
    assert (one - other).abs().sum() < 0.5 * (one - before).abs().sum()  # a single output, too


def test_the_output_is_tried_only_if_it_is_named() -> None:
    """Without names, the cut decides whether it is mimicked."""

    class Other(TwoHeads):
        def forward(self, x: Tensor) -> Any:
            found = super().forward(x)
            return {"seg": found["seg"]} if self.training else found["grade"]

    data = sc.Data([(X, torch.zeros(2))])
    objective = Objective(lambda outputs, targets: outputs["seg"].mean())
    R.check_data([sc.Mimic(epochs=1)], Other(), data, objective)
    with pytest.raises(sc.ConfigError, match="cannot be mimicked"):
        R.check_data([sc.Mimic(epochs=1, nodes=("seg", ":output"))], Other(), data, objective)


def test_what_only_training_can_do_is_left_to_it() -> None:
    class Hooked(TwoHeads):
        def forward(self, x: Tensor) -> Any:
            found = super().forward(x)
            if self.training:
                found["seg"].register_hook(lambda gradient: None)
            return found

    R.check_data([sc.Recover(epochs=1)], Hooked(), sc.Data([BATCH]), Objective(loss, None, forward))


def test_no_copy_of_the_network_is_left() -> None:
    class Counted(TwoHeads):
        alive: ClassVar[weakref.WeakSet[nn.Module]] = weakref.WeakSet()

        def forward(self, x: Tensor) -> Any:
            self.alive.add(self)
            return super().forward(x)

    model = Counted()
    gc.disable()
    try:
        for recipe in (sc.Recover(epochs=1), sc.Mimic(epochs=1, nodes=("seg", ":output"))):
            R.check_data([recipe], model, sc.Data([BATCH]), Objective(loss, None, forward))
            assert not set(Counted.alive) - {model}
    finally:
        gc.enable()


def test_outputs_in_pairs() -> None:
    seg, grade, other = torch.randn(2, 4, 8, 8), torch.randn(2, 3), torch.randn(2, 5)
    both = mimic.pairs_of(
        (seg, {"grade": grade, "id": torch.arange(2)}), (seg, {"grade": grade, "id": torch.arange(2)})
    )
    assert [t.shape for t, _ in both] == [seg.shape, grade.shape]
    (alone,) = mimic.pairs_of(grade, (grade + 1, grade + 2))  # auxiliary classifiers in training only
    assert torch.equal(alone[1], grade + 1)
    for student in (other, {"grade": other}):
        with pytest.raises(sc.ConfigError, match="cannot be mimicked"):
            mimic.pairs_of(grade, student)


@pytest.mark.parametrize("function", ["kl", "js", "mse", "l1"])
def test_a_single_channel_is_compared_by_its_values(function: Any) -> None:
    one, other = torch.zeros(2, 1), torch.ones(2, 1)
    hook = mimic.Mimicking(TwoHeads(), TwoHeads(), sc.Mimic(nodes=("seg", "grade"), function=function), X)
    assert float(hook._distance(one, other)) == 1
    hook.close()


def test_a_step_that_computes_gradients_is_left_to_the_training() -> None:
    def penalized(model: nn.Module, batch: Any) -> Tensor:
        x = batch["x"].clone().requires_grad_()
        lost = model(x)["seg"].square().mean()
        return lost + torch.autograd.grad(lost, x, create_graph=True)[0].square().mean()

    assert (
        "train_loss" in pruned(TwoHeads(), sc.L1(), sc.Recover(epochs=1), step=penalized, forward=forward).history[-1]
    )
