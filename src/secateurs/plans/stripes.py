"""The stripes part of a plan: which stripes to keep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.errors import PlanError, nearest
from secateurs.graph.channels import has_stripes

Array = np.ndarray
Kept = tuple[int, ...]
Shape = tuple[int, ...]


def checked(wanted: Mapping[str, Any], kernels: Mapping[str, Shape], filters: Mapping[str, Array]) -> dict[str, Kept]:
    """Return the kept stripes of each weight, as ascending positions in the flattened (O, *kernel). Stripes of filters that are
    cut are left out, and so are layers that lose no stripe.

    wanted: bools of shape (O, *kernel), or positions. filters: the kept filters of layers that lose some.

    Raises PlanError for an unknown weight, positions that repeat or are out of range, and a layer that would be left empty.
    """
    found: dict[str, Kept] = {}
    for name, given in wanted.items():
        if name not in kernels:
            raise PlanError(
                f"Stripes of {name}: not the weight of a convolution that stripes can be cut from (a plain one with "
                f"one group). {nearest(name, kernels)}"
            )
        alive = _mask(given, kernels[name], f"stripes of {name}")
        stays = np.zeros(len(alive), dtype=bool)
        stays[filters.get(name, np.arange(len(alive)))] = True
        if not alive[stays].any():
            raise PlanError(f"The plan would keep no stripe of {name}: keep at least one stripe of a kept filter.")
        if not alive[stays].all():
            found[name] = tuple(np.flatnonzero(alive & stays.reshape(-1, *[1] * (alive.ndim - 1))).tolist())
    return found


def _mask(given: Any, shape: Shape, where: str) -> Array:
    """Return the kept stripes as a bool array, (O, *kernel)."""
    if isinstance(given, Tensor):
        given = given.cpu().numpy()
    try:
        kept = np.asarray(given if isinstance(given, np.ndarray) else list(given))
    except (TypeError, ValueError):
        raise PlanError(f"Kept {where} must be bools of shape {shape} or positions, not {given!r:.80}.") from None
    if kept.dtype == bool:
        if kept.shape != shape:
            raise PlanError(f"Kept {where} have shape {kept.shape}, but the filters and the kernel's size are {shape}.")
        return kept
    most = int(np.prod(shape))
    if kept.ndim != 1 or (kept.size and kept.dtype.kind not in "iu"):
        raise PlanError(f"Kept {where} must be bools of shape {shape} or a flat list of positions.")
    if kept.size and (kept.min() < 0 or kept.max() >= most):
        raise PlanError(f"Kept {where} must be in 0…{most - 1}, got {kept.min()} to {kept.max()}.")
    if len(np.unique(kept)) < len(kept):
        raise PlanError(f"Kept {where} repeat.")
    mask = np.zeros(most, dtype=bool)
    mask[kept.astype(np.int64)] = True
    return mask.reshape(shape)


def check_content(
    stripes: Mapping[str, Kept], shapes: Mapping[str, Shape], kept: Mapping[str, Mapping[int, Kept]]
) -> None:
    """Raise PlanError unless the stripes of a plan that was read are consistent."""
    for name, places in stripes.items():
        shape = shapes.get(name)
        if shape is None or len(shape) not in (3, 4, 5):
            raise PlanError(f"The plan cuts stripes of {name}, but gives its shape as {shape}.")
        per_filter = math.prod(shape[2:])
        index = np.array(places, dtype=np.int64)
        if (np.diff(index) <= 0).any() or index[-1] >= shape[0] * per_filter:
            raise PlanError(
                f"Kept stripes of {name} must be in 0…{shape[0] * per_filter - 1}, in ascending order and without repeats."
            )
        filters = kept.get(name, {}).get(0)
        if filters is not None and not np.isin(index // per_filter, np.array(filters)).all():
            raise PlanError(f"Kept stripes of {name} belong to filters that are cut.")
        if len(index) == per_filter * (shape[0] if filters is None else len(filters)):
            raise PlanError(f"The plan lists stripes of {name}, but keeps all of them.")


def check_modules(stripes: Iterable[str], modules: Mapping[str, nn.Module]) -> None:
    """Raise PlanError unless these are weights of plain convolutions."""
    for name in stripes:
        if not has_stripes(modules.get(name.rpartition(".")[0])):
            raise PlanError(
                f"The plan cuts stripes of {name}, which is not a plain convolution with one group in this model: the plan is "
                f"for another network."
            )


def within(places: Kept, shape: Shape, filters: Kept | None) -> Kept:
    """Map kept positions in a weight of this shape to positions in the weight that it was cut from. filters: the filters that
    the earlier cut kept; None for all."""
    if filters is None:
        return tuple(places)
    per_filter = math.prod(shape[2:])
    return tuple(filters[place // per_filter] * per_filter + place % per_filter for place in places)


def as_mask(places: Kept, shape: Shape) -> Tensor:
    """Return the kept stripes of a weight (O, C, *kernel) as a bool tensor, (O, *kernel)."""
    alive = torch.zeros(shape[0] * math.prod(shape[2:]), dtype=torch.bool)
    alive[list(places)] = True
    return alive.view(shape[0], *shape[2:])


def summary(plan: Any) -> list[dict[str, Any]]:
    """Summarize what a plan keeps of each layer that it cuts stripes from. The result is JSON-serializable.

    layer: its name; kernel: its size; filters: how many have stripes; of_filters: how many are kept; stripes: how many are
    kept; of_stripes: how many all the layer's filters have; shares: for each position, the fraction of the layer's filters that
    keep it; index: how many entries locate the stripes, one for each position of each filter that has stripes (sec. 3 of the
    paper). These entries are not parameters, and are not counted as such.
    """
    found = []
    for name, places in plan.stripes.items():
        o, _, *kernel = plan.shapes[name]
        alive = as_mask(places, plan.shapes[name])
        filters = int(alive.flatten(1).any(1).sum())
        found.append({
            "layer": name.rpartition(".")[0],
            "kernel": kernel,
            "filters": filters,
            "of_filters": len(plan.kept.get(name, {}).get(0, range(o))),
            "stripes": len(places),
            "of_stripes": o * math.prod(kernel),
            "shares": alive.double().mean(0).numpy().round(4).tolist(),
            "index": filters * math.prod(kernel),
        })  # fmt: skip
    return found
