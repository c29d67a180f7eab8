"""A strict snapshot of what belongs to the caller: tensors bit for bit, attributes and containers object for object.

What a class keeps for all of its instances is not looked at: a cache there may be filled, as by any forward.
"""

from __future__ import annotations

import random
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Facts = dict[str, tuple[Any, ...]]
_ATOMS = (int, float, str, bytes, bool, complex, type(None), torch.dtype, torch.device, torch.Size)


def _bits(x: Tensor) -> bytes:
    if x.is_meta:
        return b""
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    return x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


class Snapshot:
    """`differences` names what has changed since. Objects are held, so that their ids stay theirs."""

    def __init__(self, **roots: Any) -> None:
        self._roots, self._held = roots, []  # type: ignore[var-annotated]
        self._facts = self._all(self._held)

    def differences(self) -> list[str]:
        now = self._all([])
        return [
            f"{at}: {self._told(at, now)}"
            for at in sorted({*now} | {*self._facts})
            if now.get(at) != self._facts.get(at)
        ]

    def _told(self, at: str, now: Facts) -> str:
        if at not in now or at not in self._facts:
            return "is gone" if at not in now else "is new"
        old, new = self._facts[at], now[at]
        changed = next(i for i, (a, b) in enumerate(zip((*old, ...), (*new, ...), strict=False)) if a != b)
        return f"{_short(old[changed])} → {_short(new[changed])}"

    def _all(self, held: list[Any]) -> Facts:
        facts: Facts = {}
        seen: dict[int, str] = {}
        for name, root in self._roots.items():
            self._walk(name, root, facts, seen, held)
        facts.update(_global())
        return facts

    def _walk(self, at: str, x: Any, facts: Facts, seen: dict[int, str], held: list[Any]) -> None:
        if isinstance(x, _ATOMS):
            facts[at] = (type(x), x)
            return
        held.append(x)
        if id(x) in seen:
            facts[at] = ("the same as", seen[id(x)])
            return
        seen[id(x)] = at
        if isinstance(x, Tensor):
            own = sorted((key, id(value)) for key, value in x.__dict__.items())
            facts[at] = (id(x), type(x), x.dtype, x.device, tuple(x.shape), x.requires_grad, x.is_leaf, _bits(x), own)
            if x.is_leaf and x.grad is not None:
                self._walk(f"{at}.grad", x.grad, facts, seen, held)
        elif isinstance(x, dict):
            facts[at] = (id(x), type(x), [str(k) for k in x])
            for key, value in x.items():
                self._walk(
                    f"{at}[{key!r}]" if not at.endswith("__dict__") else f"{at[:-9]}.{key}", value, facts, seen, held
                )
        elif isinstance(x, list | tuple | set | frozenset):
            facts[at] = (id(x), type(x), len(x))
            for i, value in enumerate(x if isinstance(x, list | tuple) else ()):
                self._walk(f"{at}[{i}]", value, facts, seen, held)
        else:
            facts[at] = (id(x), type(x))
            if isinstance(x, nn.Module | SimpleNamespace):
                self._walk(f"{at}.__dict__", x.__dict__, facts, seen, held)


def _short(x: Any) -> str:
    if isinstance(x, bytes):
        return "values"
    text = str(x)
    return text if len(text) < 60 else text[:57] + "…"


def _global() -> Facts:
    return {
        "torch's random state": (bytes(torch.get_rng_state().numpy()),),
        "Python's random state": (random.getstate(),),
        "NumPy's random state": (str(np.random.get_state()),),
        "torch's modes": (
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(), torch.get_num_threads(),
            torch.backends.mha.get_fastpath_enabled(), torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu"), torch.backends.mkldnn.enabled,
        ),
        "warning filters": (len(warnings.filters),),
    }  # fmt: skip
