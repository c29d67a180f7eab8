"""Randomness as a function of the position in training.

Before every batch the global generators are seeded from (seed, epoch, batch, purpose). So there is no generator state
to save: a resumed run draws the same numbers as an uninterrupted one, and the data's random numbers do not depend
on dropout's. Training code may only have its own generator if it saves it (`Hook.state`).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import torch

from secateurs.errors import ConfigError, Setting

MPS = torch.backends.mps.is_available()


def mix(*words: int | str) -> int:
    """63 well-mixed bits, the same on every machine."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def checked(seed: Any) -> int:
    """Return the seed as an int. Raises ConfigError unless it is an integer from 0 to 2^63 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**63:
        raise ConfigError(Setting("seed", seed), " is not a valid seed: it must be an integer from 0 to 2^63 - 1.")
    return int(seed)


def seed_all(*words: int | str) -> int:
    """Seeds torch (all devices), numpy and Python with a mix of the words."""
    seed = mix(*words)
    # until CUDA is initialized, torch.manual_seed would queue a call with its traceback every time
    torch.default_generator.manual_seed(seed)
    for backend in (torch.cuda, torch.xpu):
        if backend.is_initialized():
            backend.manual_seed_all(seed)
    if MPS:
        torch.mps.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
    return seed


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Context that restores the generators of Python, NumPy and PyTorch (CPU and CUDA) on exit."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
