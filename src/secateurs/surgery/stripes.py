"""Replace convolutions that lose stripes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from secateurs.plans.stripes import Kept, Shape, as_mask
from secateurs.stripes import StripeConv
from secateurs.stripes.layout import used
from secateurs.stripes.module import Conv


def without(conv: Conv, kept: Tensor) -> tuple[nn.Module, Tensor, Callable[[Tensor], Tensor]]:
    """Return the replacement of a convolution that keeps these stripes, (O, *kernel); its weight; and a function that
    maps any tensor of the old weight's shape (a gradient, a momentum) to the new weight's shape.

    Rows and columns of the kernel that no filter uses are cut. If every filter uses all the remaining positions, the result
    is a plain convolution, else a stripe convolution.
    """
    kept = kept.to(conv.weight.device)
    made = StripeConv.of(conv, kept)
    if not bool(made.kept.all()):
        made.bias = conv.bias  # type: ignore[assignment]  # the same one, for optimizers
        return made, made.weight, lambda w: w.movedim(1, -1)[kept]
    box, dense = used(kept), made.to_dense()
    plain: Any = dense[1] if isinstance(dense, nn.Sequential) else dense
    plain.bias = conv.bias
    plain.weight.requires_grad_(conv.weight.requires_grad)
    return dense, plain.weight, lambda w: w[(..., *box)].contiguous()


def replace_(
    model: nn.Module, stripes: Mapping[str, Kept], shapes: Mapping[str, Shape], kept: Mapping[str, Mapping[int, Kept]]
) -> list[tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]]:
    """Replace the convolutions of a model whose channels are already cut. Returns for each convolution its old weight, its new
    weight, and the function that maps the old one to the new one (see `without`).

    shapes: the weights' shapes before the cut. kept: what the cut kept of their axes.
    """
    done = []
    for name, places in stripes.items():
        path = name.rpartition(".")[0]
        conv = model.get_submodule(path)
        assert isinstance(conv, Conv)
        alive = as_mask(places, shapes[name])
        if 0 in kept.get(name, {}):
            alive = alive[list(kept[name][0])]
        made, weight, taken = without(conv, alive)
        made.train(conv.training)
        for parent in list(model.modules()):
            for leaf, child in parent._modules.items():
                if child is conv:
                    parent._modules[leaf] = made
        done.append((conv.weight, weight, taken))
    return done
