"""The fused CPU kernels: cpu/stripes.cpp, compiled once on the user's machine if a compiler is available."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateurs.caching import cache_folder
from secateurs.stripes.layout import Layout

SOURCE = Path(__file__).with_name("cpu")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast")

log = logging.getLogger("secateurs")


@functools.cache
def load() -> Any:
    """Return the compiled ops, or None if they are not available. The reason is logged once.

    The library is cached in a file named by the digest of everything that it depends on, and moved there atomically. So
    processes that build concurrently do not wait for each other, and one that is killed leaves no incomplete library behind.
    """
    try:
        path = library()
        if not path.exists():
            _build(path)
        torch.ops.load_library(path)
    except Exception as error:  # no compiler, no ninja, no write permission: fall back to the other kernels
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        log.warning(
            "The fused stripe kernel cannot be built; falling back to other kernels (see `secateurs env`): %s", reason
        )
        return None
    return torch.ops.secateurs_native


def library() -> Path:
    """Return the path of the library with the compiled ops."""
    return cache_folder() / f"stripes-{_digest()}.so"


def _digest() -> str:
    machine = (platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.__version__, *FLAGS)
    source = b"".join(path.read_bytes() for path in sorted(SOURCE.iterdir()))
    return hashlib.sha256(source + repr(machine).encode()).hexdigest()[:16]


def _build(path: Path) -> None:
    from torch.utils import cpp_extension

    path.parent.mkdir(parents=True, exist_ok=True)
    log.info("building the fused stripe kernel, once")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = cpp_extension.load(
            "stripes",
            [str(SOURCE / "stripes.cpp")],
            extra_cflags=list(FLAGS),
            build_directory=folder,
            is_python_module=False,
        )
        del made
        os.replace(Path(folder) / "stripes.so", path)


class Packed:
    """Weights in the kernels' layout: by kernel position, in blocks of at most `most` filters, (C, filters) each.

    With `lanes`, blocks are zero-padded to a multiple of this many filters.
    """

    def __init__(self, layout: Layout, weight: Tensor, most: int, lanes: int = 1) -> None:
        blocks: list[tuple[int, int, int, int]] = []
        weights, filters, at, start = [], [], 0, 0
        for position, rows, owners in layout.positions:
            parts = (
                torch.arange(len(rows)).split(most)
                if lanes > 1
                else torch.arange(len(rows)).tensor_split(-(-len(rows) // most))
            )
            for part in parts:
                block = F.pad(weight[rows[part]].t(), (0, -len(part) % lanes))  # (C, filters)
                blocks.append((position, len(part), at, start))
                weights.append(block.reshape(-1))
                filters.append(owners[part])
                at += len(part)
                start += block.numel()
        self.blocks = torch.tensor(blocks, dtype=torch.int64).reshape(-1, 4)
        self.weights = torch.cat(weights) if weights else weight.new_empty(0)
        self.filters = torch.cat(filters) if filters else torch.empty(0, dtype=torch.int64)
