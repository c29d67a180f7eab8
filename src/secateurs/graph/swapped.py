"""Replace a model's tensors and attributes for the time of a run, and restore the model afterward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from secateurs.graph.inputs import check_model
from secateurs.graph.state import State
from secateurs.seeds import preserve_rng_state

F = TypeVar("F", bound=Callable[..., Any])


@contextmanager
def swapped(
    state: State,
    modules: Mapping[str, nn.Module],
    tensors: Mapping[int, Tensor],
    rewrites: Mapping[tuple[str, str], Any] = {},
) -> Iterator[None]:
    """Context in which a model's tensors (by id) and attributes are replaced, in eval mode without gradients. Afterward the
    model, what it holds and the random state are restored, whatever the forward did and however the context ended."""
    with preserve_rng_state(), torch.no_grad():
        try:
            state.replace(tensors)
            for module in modules.values():
                if not isinstance(module, torch.jit.ScriptModule):
                    module.__dict__["training"] = False
            for (name, attribute), value in rewrites.items():
                modules[name].__dict__[attribute] = value
            yield
        finally:
            state.restore()


def untouched(function: F) -> F:
    """Decorate a function that runs copies of the model, its first argument. Copies share hooks, classes and closures with the
    model. Afterward the model and the random state are restored, whatever the copies changed."""

    @wraps(function)
    def wrapped(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        check_model(model)
        with preserve_rng_state():
            state = State(dict(model.named_modules()))
            state.keep(model.buffers())
            try:
                return function(model, *args, **kwargs)
            finally:
                state.restore()

    return wrapped  # type: ignore[return-value]
