"""What comes back out of a trainer's checkpoint is checked before the pruner goes on from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import secateurs as sc
from secateurs.integrations.run import PruningRun


def begun(loaded: dict[str, Any] | None = None) -> PruningRun:
    torch.manual_seed(0)
    batches = [(torch.randn(4, 3, 16, 16), torch.randint(0, 4, (4,))) for _ in range(2)]
    run = PruningRun(sc.NPN(epochs=2, calibration=8), sc.Budget(macs=0.6))
    run.loaded = loaded
    run.begin(sc.build("zoo:small_cnn", num_classes=4), steps=4, epoch_steps=2, batches=batches)
    return run


def test_a_state_that_fits_is_taken() -> None:
    state = begun().state()
    assert begun(state).state()["pruner"]["steps"] == 0


WRONG: dict[str, tuple[Any, str]] = {
    "nothing": (lambda s: s.clear(), "field 'pruner' is missing"),
    "no steps": (lambda s: s["pruner"].pop("steps"), r"field 'pruner\.steps' is missing"),
    "steps of text": (lambda s: s["pruner"].update(steps="3"), r"field 'pruner\.steps' is a str, expected an integer"),
    "integer logits": (
        lambda s: s["pruner"].update(logits=s["pruner"]["logits"].long()), r"tensor 'pruner\.logits' is int64"
    ),
    "no networks": (lambda s: s["networks"].clear(), r"field 'networks\.\w+' is missing"),
    "an optimizer of another kind": (
        lambda s: next(iter(s["networks"].values()))["optimizer"].clear(), "KeyError: 'param_groups'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_state_that_does_not_fit(case: str) -> None:
    state = begun().state()
    change, reason = WRONG[case]
    change(state)
    with pytest.raises(sc.ArtifactError, match=rf"The pruner's state in the checkpoint does not fit: .*{reason}"):
        begun(state)


@pytest.mark.parametrize("method", ["npn", "aofp", "pff", "onestep"])
def test_an_abandoned_network_is_plain_and_can_be_pruned_again(method: str) -> None:
    torch.manual_seed(0)
    model = sc.build("zoo:small_cnn", num_classes=4).train()
    next(model.parameters()).requires_grad_(False)  # the user's choice
    mine = model.register_forward_hook(lambda *_: None)
    batches = [(torch.randn(4, 3, 16, 16), torch.randint(0, 4, (4,))) for _ in range(2)]
    run = PruningRun(method, sc.Budget(macs=0.6))
    run.begin(model, steps=4, epoch_steps=2, batches=batches)
    for x, y in batches[:1]:
        (torch.nn.functional.cross_entropy(model(x), y) + run.penalty()).backward()
        run.before_step()
        run.after_step([])
    values, state = {name: value.clone() for name, value in model.state_dict().items()}, run.state()
    run.abandon()
    hooks = [h for m in model.modules() for h in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())]
    assert len(hooks) == 1
    assert mine.id in model._forward_hooks
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * (len(list(model.parameters())) - 1)]
    assert all(m.training for m in model.modules())
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert run.state()["pruner"].keys() == state["pruner"].keys()  # for a checkpoint that is saved on exceptions
    assert run.plan is None
    run.begin(model, steps=4, epoch_steps=2, batches=batches)
    run.begin(model, steps=4, epoch_steps=2, batches=batches)  # a trainer that tries again, with smaller batches
    run.finish([])
    assert run.plan is not None
