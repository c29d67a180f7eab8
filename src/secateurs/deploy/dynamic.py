"""The dynamic axes of an exported file's inputs, and the names of its outputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateurs.deploy.formats.format import Shapes, called
from secateurs.errors import Setting
from secateurs.graph.inputs import map_tensors, tensors

SIDES = {4: ("height", "width"), 5: ("depth", "height", "width")}  # by the number of axes: (N, C, *sides)


def sides(x: Tensor) -> tuple[int, ...]:
    """Return the height and width of images (N, C, H, W), or all three sides of volumes; empty for other tensors."""
    return tuple(x.shape[2:]) if x.ndim in SIDES else ()


@dataclass(frozen=True)
class Dynamic:
    """The axes that may have any length. batch: the first axis, shared by all inputs. size: the sides of images and volumes."""

    batch: bool
    size: bool

    def shapes(self, network: nn.Module, inputs: Any) -> Shapes:
        """Return dynamic shapes for `torch.onnx.export`. `format.dims` converts them for `torch.export`."""
        if not self.batch and not self.size:
            return None
        batch = torch.export.Dim("batch")
        several = sum(bool(sides(x)) for x in tensors(inputs)) > 1
        images = 0

        def each(tree: Any) -> Any:
            nonlocal images
            if isinstance(tree, Mapping):
                return {key: each(value) for key, value in tree.items()}
            if isinstance(tree, tuple | list):
                return type(tree)(each(value) for value in tree)
            if not isinstance(tree, Tensor):
                return None
            axes: dict[int, Any] = {0: batch} if self.batch else {}
            if self.size and sides(tree):
                axes |= {2 + i: f"{side}{images}" if several else side for i, side in enumerate(SIDES[tree.ndim])}
                images += 1
            return axes

        args, kwargs = called(network, inputs)
        # By parameter, as torch.export has them: `*xs` holds several inputs.
        return each(inspect.signature(network.forward).bind(*args, **kwargs).arguments)

    @property
    def hint(self) -> tuple[str | Setting, ...]:
        """What to try if a network cannot be exported with these axes."""
        found: list[str | Setting] = []
        if self.size:
            found += ["If its code depends on the size of images, export without ", Setting("dynamic_size", True), "."]
        if self.batch:
            found += [
                " " * bool(found) + "If its code depends on the batch size, export with ",
                Setting("dynamic_batch", False),
                ".",
            ]
        return tuple(found)


def larger(inputs: Any) -> Any:
    """Return the inputs with images of twice the height and three times the width, and volumes enlarged likewise. A network
    that accepts one size usually accepts its multiples."""

    def grown(x: Tensor) -> Tensor:
        for axis in range(len(sides(x))):
            x = x.repeat_interleave(2 + axis % 2, dim=2 + axis)
        return x

    return map_tensors(grown, inputs)


def output_names(returned: Any) -> list[str]:
    """Name each tensor that a network returns, by its place: the keys of a dict, joined by dots. If the network does not return
    a dict, the names are output, or output0, output1 …"""
    places = [path for path, leaf in pytree.tree_flatten_with_path(returned)[0] if isinstance(leaf, Tensor)]
    found: list[str] = []
    for path in places:
        name = ("" if _named(path) else "output") + ".".join(map(_part, path))
        found.append(
            name if name not in found else next(free for i in count(1) if (free := f"{name}_{i}") not in found)
        )
    return found


def _named(path: tuple[Any, ...]) -> bool:
    return bool(path) and not isinstance(path[0], pytree.SequenceKey)


def _part(key: Any) -> str:
    return str(next((getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name)), key))
