"""Differences between the outputs of two networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateurs.errors import VerificationError

_FILL = 1e4  # equal values above this count as a fill (a mask's -1e9), not as the range of an output


class NotFiniteError(VerificationError):
    """A network's outputs are not finite: nothing can be compared."""


def disagreement(found: Sequence[Tensor], due: Sequence[Tensor], what: str) -> float:
    """Return the largest max |found - due| / max |due| over all outputs; inf if their shapes differ. what: the network that
    computed `due`, for messages.

    Infinities of the same sign, and NaN in both, are equal. Raises NotFiniteError if no floating-point output has a finite
    value.
    """
    if [x.shape for x in found] != [x.shape for x in due]:
        return float("inf")
    inexact = [x for x in due if x.numel() and (x.is_floating_point() or x.is_complex())]
    if inexact and not any(bool(x.isfinite().any()) for x in inexact):
        raise NotFiniteError(f"The {what} network's output is not finite on these inputs, so it cannot be compared.")
    return max((apart(a, b) for a, b in zip(found, due, strict=True)), default=0.0)


def apart(a: Tensor, b: Tensor) -> float:
    """Return max |a - b| / max |b|; inf for tensors of different shapes, NaN in one of them, or integers that differ."""
    if a.shape != b.shape:
        return float("inf")
    if not (b.is_floating_point() or b.is_complex()):
        return 0.0 if torch.equal(a, b) else float("inf")
    if not b.numel():
        return 0.0
    size, difference = b.abs(), (a - b).abs()
    if not bool(size.isfinite().all()) or float(size.max()) > _FILL:
        same = (a == b) | (a.isnan() & b.isnan())
        difference = difference.masked_fill(same, 0)
        filled = ~size.isfinite() | (same & (size > _FILL))
        size = size.masked_fill(filled, 0) if not bool(filled.all()) else size.nan_to_num(0, 0, 0)
    found = float(difference.max() / size.max().clamp_min(torch.finfo(size.dtype).tiny))
    return found if found == found else float("inf")  # NaN is a difference


def telling(x: Tensor) -> bool:
    """Whether comparing a tensor shows anything: it has a value that is not zero, NaN or infinite."""
    if not x.numel():
        return False
    if not (x.is_floating_point() or x.is_complex()):
        return True
    return bool((x.isfinite() & (x != 0)).any())
