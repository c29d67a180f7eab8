"""Randomness as a function of where training stands.

Before every batch the global generators are seeded from (seed, epoch, batch, purpose). So there is no generator state
to carry along: a resumed run draws what the uninterrupted one would have drawn, and what the data draws does not depend
on how much dropout draws. Nothing that trains may keep a generator of its own without saving it (`Hook.state`).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

MPS = torch.backends.mps.is_available()


def mix(*words: int | str) -> int:
    """63 well-mixed bits, the same on every machine."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_all(*words: int | str) -> int:
    """Seeds torch (all devices), numpy and Python with a mix of the words."""
    seed = mix(*words)
    # torch.manual_seed would, until CUDA is up, queue a call with its whole traceback every time
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
    """The user's global generators are given back as they were found."""
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
