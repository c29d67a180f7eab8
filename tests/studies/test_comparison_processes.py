"""What a comparison sends to other processes, and what it leaves as it was in this one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import secateurs as sc
from secateurs.studies.comparison.work import Network
from tests.studies.comparing import batches, tiny


def test_parameters_that_are_not_trained_travel_as_such() -> None:
    model = sc.build("zoo:small_cnn", num_classes=10)
    next(model.children()).requires_grad_(False)
    network = Network(module=model).portable()
    assert network.module is None
    built = network.build(batches(), torch.device("cpu"))
    trained = {name for name, p in built.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_modes_and_random_numbers_are_left_alone(mode: Any) -> None:
    model, data = tiny(), batches()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with mode():
        found = sc.compare(
            model, data=data, methods=["l2"], budgets=[0.5], seeds=1, epochs=0.5, report=lambda line: None
        )  # fmt: skip
    drawn = torch.rand(2)
    assert found.cells[0].figures is not None
    assert torch.equal(drawn, expected)
