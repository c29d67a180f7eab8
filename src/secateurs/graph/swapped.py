"""A model with other tensors and attributes in place of its own, for the time of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def swapped(
    modules: Mapping[str, nn.Module], tensors: Mapping[int, Tensor], rewrites: Mapping[tuple[str, str], Any] = {}
) -> Iterator[None]:
    """Context in which a model's tensors (by id) and attributes are replaced, in eval mode
    without gradients; on exit every module is restored, including what its forward stored on it."""
    saved = [(m, dict(m.__dict__), dict(m._parameters), dict(m._buffers)) for m in modules.values()]
    try:
        for m, _, parameters, buffers in saved:
            m.__dict__["training"] = False
            for own, old in ((m._parameters, parameters), (m._buffers, buffers)):
                for name, x in old.items():
                    if x is not None and id(x) in tensors:
                        own[name] = tensors[id(x)]  # type: ignore[assignment]
        for (name, attribute), value in rewrites.items():
            modules[name].__dict__[attribute] = value
        with torch.no_grad():
            yield
    finally:
        for m, attributes_before, parameters, buffers in saved:
            for own, old in ((m._parameters, parameters), (m._buffers, buffers)):
                own.clear()
                own.update(old)  # type: ignore[arg-type]
            m.__dict__.clear()
            m.__dict__.update(attributes_before)
