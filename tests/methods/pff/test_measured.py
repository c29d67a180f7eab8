"""The power of the costs that a run was measured to have is that of the whole run, in every process."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

import secateurs as sc
from secateurs.methods import costs
from secateurs.methods.pff import pruner as module
from secateurs.methods.pff.pruner import PFFPruner
from secateurs.recovery import calibrate
from secateurs.testing.networks import images, network
from secateurs.testing.state import assert_equal_states
from tests.processes import on_two

DATA = [(images(8, i), torch.arange(8) % 4) for i in range(4)]
HALF = sc.Budget(macs=0.5)


def attached(model: torch.nn.Module, penalty: str) -> PFFPruner:
    found = sc.attach(
        model, images(1), sc.PFF(penalty=penalty, arrive=0.5, fixed=0.2), HALF, steps=8, epoch_steps=4, data=DATA
    )  # fmt: skip
    assert isinstance(found, PFFPruner)
    return found


def train(model: torch.nn.Module, pruner: PFFPruner, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x, y = DATA[step % len(DATA)]
        optimizer.zero_grad()
        (torch.nn.functional.cross_entropy(model(x), y) + pruner.penalty()).backward()
        optimizer.step()
        pruner.step()


@pytest.mark.parametrize("penalty", ["skeleton", "group-lasso"])
def test_a_run_that_is_resumed_where_another_power_would_be_measured(
    penalty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    pruner = attached(model, penalty)
    train(model, pruner, torch.optim.SGD(model.parameters(), lr=0.05), range(3))
    saved, weights = pruner.state(), {k: v.clone() for k, v in model.state_dict().items()}
    momentum = copy.deepcopy({name: optimizer.state_dict() for name, (_, optimizer) in pruner.networks.items()})
    train(model, pruner, torch.optim.SGD(model.parameters(), lr=0.05), range(3, 8))
    (noted,) = pruner.measured
    other = max(costs.POWERS, key=lambda power: abs(power - noted["power"]))
    monkeypatch.setattr(module, "power_of", lambda *_, **__: other)
    again = network()
    resumed = attached(again, penalty)
    assert not torch.equal(resumed.measure.pull, pruner.measure.pull)
    again.load_state_dict(weights)
    resumed.load(saved)
    for name, state in momentum.items():
        resumed.networks[name][1].load_state_dict(state)
    train(again, resumed, torch.optim.SGD(again.parameters(), lr=0.05), range(3, 8))
    assert resumed.controller is not None
    assert pruner.controller is not None
    assert vars(resumed.controller) == vars(pruner.controller)
    assert resumed.plan() == pruner.plan()
    assert_equal_states(again, model, "resumed")
    assert resumed.history == pruner.history
    assert noted in pruner.history


def test_values_that_are_not_weighed_measure_no_power() -> None:
    model = network()
    pruner = sc.attach(model, images(1), sc.PFF(prior="none"), HALF, steps=1, epoch_steps=1, data=DATA)
    assert isinstance(pruner, PFFPruner)
    assert pruner.measured == []


def prune(case: str, rank: int, *_: Any) -> sc.Result:
    """A machine finds the less of a difference the more costs count, the other the more."""
    torch.set_num_threads(1)
    order = itertools.count()

    def missed(*args: Any) -> torch.Tensor:
        power = next(order) % 4
        return torch.full(args[3:], 1 + 0.1 * (power if rank else 3.1 - power), dtype=torch.float64)

    calibrate._missed = missed  # type: ignore[assignment]
    method = sc.PFF(epochs=1, distil=0, precision="fp32")
    return sc.prune(network(), images(1), method, HALF, DATA, progress="silent", check_speed=False)


@pytest.mark.slow
def test_processes_of_different_machines_come_to_one_power(tmp_path: Path) -> None:
    (first, second) = on_two(f"{__name__}:prune", ["pff"], tmp_path)["pff"]
    powers = [[e["power"] for e in o.history if e.get("event") == "cost"] for o in (first, second)]
    assert powers[0] == powers[1]
    assert len(powers[0]) == 1
    assert first.plan == second.plan
