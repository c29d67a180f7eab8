"""A trace changes neither the caller's model nor the inputs, and takes both as they are."""

from __future__ import annotations

import math
import threading
from collections import UserDict
from typing import Any

import torch
from torch import Tensor, nn

import secateurs as sc


class Counts(nn.Module):
    """Writes to buffers, and needs values, which meta tensors do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
        self.side = nn.Conv2d(4, 2, 1)  # used in training only
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        self.calls += 1
        if self.training:
            self.mean.lerp_(h.detach().mean((0, 2, 3)), 0.1)
            return self.head(h) + self.side(h)
        return self.head(h) if float(h.sum()) < math.inf else h


def test_a_trace_does_not_write_to_buffers() -> None:
    net = Counts().eval()
    sc.trace(net, torch.randn(1, 3, 5, 5))
    assert float(net.calls) == 0
    assert torch.equal(net.mean, torch.zeros(4))


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_inputs_in_a_mapping_that_is_no_dict() -> None:
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    inputs = UserDict(x=x)  # what a BatchEncoding of transformers is
    sc.prune(Named(), inputs, "l1", sc.Budget(macs=0.5))  # converted to the model's format
    assert not vars(x)  # the tracer leaves nothing on the caller's tensor


class Locked(nn.Module):
    """Cannot be copied attribute by attribute, but says how to copy it."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.lock = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.net(x)


def test_a_module_that_says_how_to_copy_it() -> None:
    sc.prune(Locked(), torch.randn(1, 3, 5, 5), "l1", sc.Budget(macs=0.5))


def test_a_convolution_that_is_the_model_has_no_stripes_to_cut() -> None:
    assert not sc.trace(nn.Conv2d(3, 8, 3), torch.randn(1, 3, 5, 5)).kernels
