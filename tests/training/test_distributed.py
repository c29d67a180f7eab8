"""Two processes with half of each batch give what one process gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import secateurs.recovery as R
import secateurs.training as T
from secateurs.training.syncnorm import batch_norm
from tests.processes import launch

from .helpers import Noisy, data, engine, net, same
from .test_engine import Cutter, Gates

FIGURES = ("train_loss", "train_top1", "val_loss", "val_top1")
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "uneven": {"accumulate": 2, "clip_norm": 1.0, "ema": 0.9},
    "cut": {},
    "two networks": {},
}
HOOKS = {"cut": [Cutter], "two networks": [Gates]}


def train(case: str, resume: bool = False, **options: Any) -> tuple[nn.Module, T.Engine]:
    source = data()
    if case == "uneven":  # 7 rows on two processes, and a last batch of 3
        source.train = [(x[:7], y[:7]) for x, y in source.train[:4]] + [(x[:3], y[:3]) for x, y in source.train[4:5]]
    source.train = Noisy(source.train) if case == "plain" else source.train
    model = net(dropout=0)
    recipe = R.Recover(epochs=2, lr=0.05, precision="fp32", **SETTINGS[case])
    e = engine(model, source, recipe, hooks=[h() for h in HOOKS.get(case, [])], **options)
    e.fit(resume=resume)
    return model, e


def child(folder: str) -> None:
    for case in SETTINGS:
        store = T.CheckpointStore(f"{folder}/checkpoints/{case}")
        model, e = train(case, checkpoints=store, save_seconds=0.0)
        again, _ = train(case, checkpoints=store, save_seconds=0.0, resume=True)
        assert same(model, again)
        figures = {k: torch.tensor(e.history[-1][k]) for k in FIGURES}
        assert e.world == 2
        gates = {"gate": e.hooks[0].gate.detach()} if case == "two networks" else {}
        save_file({**model.state_dict(), **figures, **gates}, f"{folder}/{case}-{e.rank}.safetensors")


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    launch("tests.training.test_distributed:child", str(tmp_path))
    for case in SETTINGS:
        model, e = train(case)
        first, second = (load_file(tmp_path / f"{case}-{rank}.safetensors") for rank in (0, 1))
        weights = model.state_dict()
        if case == "two networks":  # Adam's first steps follow the sign of the gradient, which blows rounding up
            weights["gate"] = e.hooks[0].gate.detach()
        for name, value in weights.items():
            assert torch.equal(first[name], second[name]), (case, name)
            atol = 1e-4 if case == "two networks" else 1e-5
            message = f"{case} {name}: " + "{}"
            torch.testing.assert_close(first[name], value, rtol=1e-4, atol=atol, msg=message.format)
        for name in FIGURES:
            assert float(first[name]) == pytest.approx(e.history[-1][name], rel=1e-4), (case, name)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_alone_is_the_usual_one(
    affine: bool, momentum: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x)
    torch.manual_seed(0)
    ours, theirs = (nn.BatchNorm2d(5, affine=affine, momentum=momentum) for _ in range(2))
    a = (torch.randn(4, 5, 3, 3) * 2 + 7).requires_grad_()
    b = a.detach().clone().requires_grad_()
    for _ in range(2):
        y, z = batch_norm(ours, a), theirs(b)
        torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    (z * weight).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
