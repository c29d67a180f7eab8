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
