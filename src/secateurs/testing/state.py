"""What must not change, and what must be: small assertions with messages."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.graph.inputs import call, tensors


def expect(holds: bool, message: str) -> None:
    """Raise AssertionError with the message unless it holds; with `python -O`, too."""
    if not holds:
        raise AssertionError(message)


@contextmanager
def refused(error: type[sc.SecateursError], what: str) -> Iterator[list[str]]:
    """What is done within must raise this error; the list then holds its message."""
    message: list[str] = []
    try:
        yield message
    except error as raised:
        message.append(str(raised))
        return
    raise AssertionError(f"{what} raised no {error.__name__}")


@dataclass(frozen=True)
class State:
    """Everything of a model that pruning must leave alone."""

    tensors: dict[str, Tensor]
    rest: list[Any]

    @classmethod
    def of(cls, model: nn.Module) -> State:
        kept = {k: v.detach().clone() for k, v in [*model.named_parameters(), *model.named_buffers()]}
        hooks = [len(v) for m in model.modules() for k, v in vars(m).items() if k.endswith("_hooks")]
        rest = [
            [(n, type(m), m.training) for n, m in model.named_modules()],
            [(n, id(p), p.requires_grad, p.grad is None) for n, p in model.named_parameters()],
            hooks,
        ]
        return cls(kept, rest)

    def assert_same(self, model: nn.Module) -> None:
        now = State.of(model)
        expect(
            now.rest == self.rest,
            "the given model has other modules, modes, parameters, gradients or hooks than before",
        )
        expect(now.tensors.keys() == self.tensors.keys(), "the given model has other parameters or buffers than before")
        for name, old in self.tensors.items():
            expect(torch.equal(now.tensors[name], old), f"{name} of the given model has changed")


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """What a copy of the model answers in eval mode."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        return tensors(call(model, x))[0]


def assert_equal_states(a: nn.Module, b: nn.Module, what: str) -> None:
    """Bit for bit."""
    ours, theirs = a.state_dict(), b.state_dict()
    expect(ours.keys() == theirs.keys(), f"{what}: other parameters or buffers")
    for name, value in ours.items():
        expect(torch.equal(value, theirs[name]), f"{what}: {name} differs")
