"""A row of the coverage table, and what its network is run on."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, Any]  # the network, its example inputs


@dataclass(frozen=True)
class Network:
    """A row of the table. Building it imports its package and draws its weights."""

    family: str
    name: str
    build: Callable[[], Built]


def images(size: int = 224, channels: int = 3, batch: int = 1) -> Tensor:
    return torch.randn(batch, channels, size, size)


def volume(size: int = 32, channels: int = 1) -> Tensor:
    return torch.randn(1, channels, size, size, size)


def attribute(path: str) -> Any:
    """`package.module:attribute`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def of(family: str, rows: dict[str, Callable[[], Built]]) -> list[Network]:
    return [Network(family, name, build) for name, build in rows.items()]
