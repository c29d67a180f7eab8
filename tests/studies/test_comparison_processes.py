"""What a comparison sends to other processes, and what it leaves as it was in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import secateurs as sc
from secateurs.methods.method import Task
from secateurs.studies.comparison.work import Network
from tests.studies.comparing import batches, run, tiny

ROOT = Path(__file__).parents[2]


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


def test_a_method_that_other_processes_cannot_find() -> None:
    class Local(sc.Criterion):
        def scores(self, task: Task) -> dict[Any, Tensor]:
            return {g: g.filters(task.model).abs().sum(1) for g in task.groups}

    with pytest.raises(sc.ConfigError, match=r"The methods cannot be sent to other processes .*processes=1"):
        run(None, methods=[Local()], processes=2)


def test_a_script_without_a_guard_is_told_about_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import secateurs as sc\nfrom tests.studies.comparing import batches, tiny\n"
        "sc.compare(tiny(width=64), data=batches(), methods=['l2'], budgets=[0.5], seeds=1, epochs=0.5, processes=2)\n"
    )
    path = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300
    )  # fmt: skip
    assert done.returncode == 1
    assert "ended with status 1 before any cell was measured. In a script, call compare under" in done.stderr
