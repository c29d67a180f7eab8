"""A model with other tensors and attributes in place of its own, for the time of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.graph.state import State
from secateurs.seeds import preserve_rng_state


@contextmanager
def swapped(
    state: State,
    modules: Mapping[str, nn.Module],
    tensors: Mapping[int, Tensor],
    rewrites: Mapping[tuple[str, str], Any] = {},
) -> Iterator[None]:
    """Context in which a model's tensors (by id) and attributes are replaced, in eval mode without gradients. Whatever its
    forward does, and however the context ends, the model, what it holds and the random state are then as before."""
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
