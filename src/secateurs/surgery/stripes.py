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
        conv = model.get_submodule(name.rpartition(".")[0])
        assert isinstance(conv, Conv)
        alive = as_mask(places, shapes[name])
        if 0 in kept.get(name, {}):
            alive = alive[list(kept[name][0])]
        old = conv.weight
        made, weight, taken = without(conv, alive)
        _become(conv, made.train(conv.training))
        done.append((old, weight, taken))
    return done


def _become(conv: nn.Module, made: nn.Module) -> None:
    """Turn a convolution into another module in place, so that lists and closures that hold it hold the new one. Its hooks
    stay, and so do attributes that the user has set."""
    plain, own = type(conv)(1, 1, 1, device="meta").__dict__, conv.__dict__
    kept = {key: x for key, x in own.items() if key not in plain or "hook" in key}
    conv.__class__ = type(made)
    own.clear()
    own.update(made.__dict__ | kept)
