"""Assertions with messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.graph.copies import copied
from secateurs.graph.inputs import call, tensors

E = TypeVar("E", bound=sc.SecateursError)


def expect(holds: bool, message: str) -> None:
    """Raise AssertionError with the message unless the condition holds; also with `python -O`."""
    if not holds:
        raise AssertionError(message)


@contextmanager
def refused(error: type[E], what: str) -> Iterator[list[E]]:
    """Context whose body must raise this error; the list then has it."""
    errors: list[E] = []
    try:
        yield errors
    except error as raised:
        errors.append(raised)
        return
    raise AssertionError(f"{what} did not raise {error.__name__}")


@dataclass(frozen=True)
class State:
    """The state of a model that pruning must not change."""

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
            "the modules, modes, parameters, gradients or hooks of the given model have changed",
        )
        expect(now.tensors.keys() == self.tensors.keys(), "the parameters or buffers of the given model have changed")
        for name, old in self.tensors.items():
            expect(torch.equal(now.tensors[name], old), f"{name} of the given model has changed")


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """The outputs of a copy of the model in eval mode."""
    model = copied(model).eval()
    with torch.no_grad():
        return tensors(call(model, x))[0]


def assert_equal_states(a: nn.Module, b: nn.Module, what: str) -> None:
    """Assert bit-identical states."""
    ours, theirs = a.state_dict(), b.state_dict()
    expect(ours.keys() == theirs.keys(), f"{what}: parameters or buffers differ")
    for name, value in ours.items():
        expect(torch.equal(value, theirs[name]), f"{what}: {name} differs")
