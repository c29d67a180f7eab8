"""Tell data sets apart without reading all of them, for studies that are resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler

from secateurs.data import Data
from secateurs.data.loader import Loader
from secateurs.data.structure import examples, leaves
from secateurs.seeds import preserve_rng_state, seed_all
from secateurs.training import batches as B


def fingerprint(data: Data) -> dict[str, Any]:
    """Return the number of batches and examples of training and validation data, if known; the shapes of the first batch (for a
    PyTorch loader, of the first example); and its hash, if reading it again gives the same. JSON-serializable.

    Iterators, which reading would use up, have no fingerprint.
    """
    given = {"train": data.train, "val": data.val}
    return {
        split: _of(source, split) for split, source in given.items()
        if source is not None and not isinstance(source, Iterator)
    }  # fmt: skip


def known_examples(source: Any) -> int | None:
    """Return the number of examples in a pass, if it is known without making one."""
    if isinstance(source, Loader):
        return getattr(source, "samples", None)  # a stream may not know
    if hasattr(source, "dataset"):
        if getattr(source, "batch_size", 0) is None:  # a batch sampler of the user's, or items that are batches
            source = getattr(source, "batch_sampler", None)
            if type(source) is not BatchSampler:  # whose batches may have any size
                return None
        drawn = getattr(source, "sampler", None)  # a part of the data set, perhaps
        known = B.length(source.dataset if drawn is None else drawn)
        if known is not None and getattr(source, "drop_last", False) and source.batch_size:
            known -= known % source.batch_size
        return known
    return sum(map(examples, source)) if isinstance(source, list | tuple) else None


def shapes(inputs: Any) -> list[list[Any]] | None:
    """Return the dtypes and shapes of example inputs, JSON-serializable; None if none were given."""
    return None if inputs is None else [[str(x.dtype), *x.shape] for x in leaves(inputs)]


def _of(source: Any, split: str) -> dict[str, Any]:
    first, again = (_first(source, split) for _ in range(2))
    digest = _digest(first)
    return {
        "batches": B.length(source), "examples": known_examples(source), "shapes": [list(x.shape) for x in first],
        "sha256": digest if digest == _digest(again) else None,
    }  # fmt: skip


def _first(source: Any, split: str) -> list[Tensor]:
    """The tensors of the first batch. Of a loader with a data set, those of its first example: an order that is drawn says
    nothing, and a generator of the user's must not be moved on."""
    with preserve_rng_state():
        seed_all("fingerprint")
        if not hasattr(source, "dataset"):
            return leaves(B.first(source, split))
        try:
            return leaves(source.collate_fn([source.dataset[0]]))
        except Exception:  # a data set that is read in another way
            return []


def _digest(tensors: list[Tensor]) -> str:
    found = hashlib.sha256()
    for x in tensors:
        content = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(f"{x.dtype} {tuple(x.shape)}\n".encode())
        found.update(content.numpy().tobytes())
    return found.hexdigest()
