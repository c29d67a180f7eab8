"""A loop of one's own in DistributedDataParallel: attached, cut, wrapped again, trained on, in two processes with gloo."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

import secateurs as sc
from tests.integrations.networks import cnn, images
from tests.processes import launch

METHODS: dict[str, sc.Method] = {"npn": sc.NPN(lr=0.05), "aofp": sc.AOFP(), "pff": sc.PFF(), "onestep": sc.OneStep()}
STEPS = 8


def train(method: str, rank: int, world: int) -> nn.Module:
    """One process's part. Without batch norm: each process would see its own part of the batch only."""
    model, (x, y) = nn.Sequential(*(m for m in cnn() if not isinstance(m, nn.BatchNorm2d))), images()
    net: nn.Module = model
    if world > 1:
        net = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = sc.attach(
        model, x[:1], METHODS[method], sc.Budget(macs=0.6), steps=STEPS, epoch_steps=4, scope="internal",
        data=[(x[rank::world], y[rank::world])],
    )  # fmt: skip
    own = x[rank::world], y[rank::world]
    for _ in range(STEPS):
        (F.cross_entropy(net(own[0]), own[1]) + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    sc.cut_(model, pruner.plan(), optimizer)
    if world > 1:
        with pytest.raises(sc.ConfigError, match="Wrap the network again"):
            net(own[0])
        net = nn.parallel.DistributedDataParallel(model)
    for _ in range(3):
        F.cross_entropy(net(own[0]), own[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def child(folder: str) -> None:
    warnings.simplefilter("error")
    dist.init_process_group("gloo")
    for method in METHODS:
        model = train(method, dist.get_rank(), 2)
        save_file(model.state_dict(), f"{folder}/{method}-{dist.get_rank()}.safetensors")


def test_a_loop_of_ones_own_in_two_processes(tmp_path: Path) -> None:
    launch(f"{__name__}:child", str(tmp_path))
    for method in METHODS:
        first, second = (load_file(tmp_path / f"{method}-{rank}.safetensors") for rank in (0, 1))
        alone = train(method, 0, 1).state_dict()
        for name, value in alone.items():
            assert torch.equal(first[name], second[name]), (method, name)
            if method != "aofp":  # which draws at random in each process
                torch.testing.assert_close(
                    first[name], value, rtol=1e-3, atol=1e-4, msg=f"{method} {name}: {{}}".format
                )
    assert not dist.is_initialized()
