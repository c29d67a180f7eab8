"""Runs with functions of the user's own: batches that are dicts, a loss, a step, metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.cli import main
from secateurs.errors import ConfigError, DataError


class Two(nn.Module):
    """Two inputs by name, two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
        )
        self.place, self.size = nn.Linear(8, 2), nn.Linear(8, 1)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        x = self.body(torch.cat([left, right], 1)).mean((2, 3))
        return {"place": self.place(x), "size": self.size(x)}


class Calls:
    """Counts the steps, and interrupts one."""

    count = 0
    fatal: int | None = None


def loss(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    return sum((F.mse_loss(outputs[name], targets[name]) for name in targets), torch.zeros(()))


def forward(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Any, Any]:
    outputs = model(left=batch["left"], right=batch["right"])
    return outputs, {"place": batch["place"], "size": batch["size"]}


def step(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    Calls.count += 1
    if Calls.count == Calls.fatal:
        raise KeyboardInterrupt
    return loss(*forward(model, batch))


def distance(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    return (outputs["place"] - targets["place"]).norm(dim=1).mean()


distance.higher_is_better = False  # type: ignore[attr-defined]


def batches(count: int) -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(count)

    def batch() -> dict[str, Tensor]:
        left, right = torch.randn(2, 4, 1, 8, 8, generator=random)
        return {"left": left, "right": right, "place": left.mean((2, 3)).repeat(1, 2), "size": right.mean((2, 3))}

    return [batch() for _ in range(count)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return Two()


def run(folder: Path, **settings: Any) -> sc.PruneRun:
    given = {"method": "l2", "budget": sc.Budget(macs=0.6), "recover": sc.Recover(epochs=3, lr=0.01), "device": "cpu",
             "step": step, "forward": forward, "loss": loss, "metrics": {"distance": distance}, **settings}  # fmt: skip
    return sc.PruneRun(network(), sc.Data(batches(3), batches(2)), folder, **given)


@pytest.mark.parametrize("method", ["l2", "npn"])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path: Path, method: str) -> None:
    from secateurs.methods import resolve

    settings = {} if method == "l2" else {"method": resolve(method, epochs=2)}
    Calls.count, Calls.fatal = 0, None
    whole = run(tmp_path / "whole", **settings).start()
    assert set(whole.after.metrics) == {"distance"}
    assert whole.after.top1 is None
    assert "val_distance" in whole.history[-1]
    Calls.fatal, Calls.count = Calls.count - 2, 0  # in the last epoch
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", **settings).start()
    Calls.fatal = None
    resumed = run(tmp_path / "cut", **settings).start(resume=True)
    assert resumed.after == whole.after
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    again = run(tmp_path / "cut", **settings).start(resume=True)
    assert again.after == whole.after


def test_functions_are_on_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "r", recover=None).start()
    names = {name: f"{__name__}.{name}" for name in ("loss", "step", "forward")}
    settings = json.loads((tmp_path / "r" / "run.json").read_text())["settings"]
    assert settings["functions"] == {**names, "metrics": ["distance"]}
    card = json.loads((tmp_path / "r" / "card.json").read_text())
    assert card["functions"] == ["forward", "loss", "metrics", "step"]
    assert "task" not in card or card["task"] is None

    def other(outputs: Any, targets: Any) -> Tensor:
        return loss(outputs, targets)

    with pytest.raises(ConfigError, match=r"another run: it differs in functions.loss"):
        run(tmp_path / "r", recover=None, loss=other).start(resume=True)
    model = f"python:{__name__}:Two"
    assert main(["evaluate", str(tmp_path / "r"), "--model", model, "--data", "digits"]) == 2
    assert "was measured with functions of its own (forward, loss, metrics, step)" in capsys.readouterr().err


def test_what_became_worse(tmp_path: Path) -> None:
    """The first of the user's metrics decides, in its own direction."""
    lines: list[str] = []

    def away(outputs: Any, targets: Any) -> Tensor:
        return -0.01 * loss(outputs, targets)

    run(tmp_path / "a", step=None, loss=away, log=lines.append).start()
    assert any("Recovery ended at" in str(line) for line in lines)
    lines.clear()
    run(tmp_path / "b", log=lines.append).start()
    assert not any("Recovery ended" in str(line) for line in lines)


def test_functions_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="step=3 is not a function"):
        run(tmp_path / "r", step=3).check()
    with pytest.raises(ConfigError, match="There is no task"):
        run(tmp_path / "r", task="regression").check()


def test_outputs_that_are_no_classifiers(tmp_path: Path) -> None:
    """With a loss of the user's own and no task named, outputs may be anything, also without metrics."""
    run(tmp_path / "r", metrics=None).check()
    with pytest.raises(DataError, match="does not return the logits that classification needs"):
        run(tmp_path / "r", metrics=None, task="classification").check()


def test_a_network_that_cannot_be_trained_is_found_first(tmp_path: Path) -> None:
    def wrong(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        raise ValueError("no target of this name")

    with pytest.raises(DataError, match=r"does not fit the step, forward or loss.* no target of this name"):
        run(tmp_path / "r", step=wrong).start()
    assert not (tmp_path / "r").exists()


def test_a_forward_that_does_not_fit_the_data(tmp_path: Path) -> None:
    def wrong(model: nn.Module, batch: dict[str, Tensor]) -> Any:
        return model(left=batch["image"], right=batch["right"]), None

    with pytest.raises(DataError, match=r"Batch 0 of val does not fit the step, forward or loss.*KeyError: 'image'"):
        run(tmp_path / "r", forward=wrong).start()
    assert not (tmp_path / "r").exists()


def test_data_in_double_precision(tmp_path: Path) -> None:
    pairs = [(torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(0, 2, (4,))) for _ in range(2)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(8, 2))  # fmt: skip
    budget = sc.Budget(macs=0.6)
    sc.PruneRun(model, sc.Data(pairs, pairs), tmp_path / "r", method="l2", budget=budget, device="cpu").start()


def test_a_loss_of_ones_own_for_pairs(tmp_path: Path) -> None:
    """A float target has no class: neither the check of classes nor that of training takes it for one."""
    random = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(4, 3, 8, 8, generator=random), torch.randn(4, 2, generator=random)) for _ in range(2)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(8, 2))  # fmt: skip
    result = sc.PruneRun(
        model, sc.Data(pairs, pairs), tmp_path / "r", method="l2", budget=sc.Budget(macs=0.6), loss=F.mse_loss,
        recover=sc.Recover(epochs=1), device="cpu",
    ).start()  # fmt: skip
    assert result.after.loss is not None
    assert result.after.top1 is None
    assert result.after.metrics == {}


def test_a_step_beside_a_task(tmp_path: Path) -> None:
    """The task's metrics stay: pairs are evaluated as the task does."""
    random = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randn(4, 3, 8, 8, generator=random), torch.randint(0, 3, (4, 8, 8), generator=random)) for _ in range(2)
    ]
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 3, 1))

    def focal(model: nn.Module, batch: Any) -> Tensor:
        images, masks = batch
        lost = F.cross_entropy(model(images), masks, reduction="none")
        return ((1 - (-lost).exp()) ** 2 * lost).mean()

    result = sc.PruneRun(
        model, sc.Data(pairs, pairs), tmp_path / "r", method="l2", budget=sc.Budget(macs=0.6), task="segmentation",
        step=focal, recover=sc.Recover(epochs=1), device="cpu",
    ).start()  # fmt: skip
    assert set(result.after.metrics) == {"mIoU", "pixel_accuracy"}
