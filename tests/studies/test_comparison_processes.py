"""What a comparison sends to other processes, and what it leaves as it was in this one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import secateurs as sc
from tests.studies.comparing import batches, tiny


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
