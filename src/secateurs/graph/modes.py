"""Modes in which modules run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Context in which the model is in eval mode. Each module then returns to its previous mode, even after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, mode in modes:
            module.training = mode


_lock = threading.Lock()
_watching: dict[int, list[nn.Module]] = {}  # by thread: the modules whose mode was read


@contextmanager
def mode_reads() -> Iterator[list[nn.Module]]:
    """Context that lists the modules whose `training` attribute code outside torch reads. If there are none, a network runs the
    same ops in training mode, except those of torch's own layers. Modules such as stochastic depth are left out: they have no
    tensors or submodules, and their code has at most one tensor at hand.
    """
    thread = threading.get_ident()
    before = _watching.get(thread)
    found: list[nn.Module] = []
    with _lock:
        _watching[thread] = found
        nn.Module.training = property(_get, _set)  # type: ignore[assignment]
    try:
        yield found
    finally:
        with _lock:
            del _watching[thread]
            if before is not None:
                _watching[thread] = before
            if not _watching:
                del nn.Module.training


def _get(module: nn.Module) -> bool:
    found = _watching.get(threading.get_ident())
    if found is not None:
        frame = sys._getframe(1)
        name = frame.f_globals.get("__name__", "")
        if not name.startswith("torch.") and not (_bare(module) and _tensors_at_hand(frame) < 2):
            found.append(module)
    try:
        return module.__dict__["training"]
    except KeyError:
        raise AttributeError("training") from None


def _set(module: nn.Module, mode: bool) -> None:
    module.__dict__["training"] = mode


def _bare(module: nn.Module) -> bool:
    return not (module._modules or module._parameters or module._buffers)


def _tensors_at_hand(frame: Any) -> int:
    return sum(isinstance(x, Tensor) for x in frame.f_locals.values())


@contextmanager
def unwatched() -> Iterator[None]:
    """Context in which no dispatch mode sees the ops, such as a MAC counter around it. It is for code that is timed: it is not
    part of the counted work, and a mode would slow it down."""
    with _disable_current_modes():
        yield


@contextmanager
def unfused() -> Iterator[None]:
    """Context in which PyTorch's fused encoder layers are off: they hide their products from a counter of ops."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
