"""Replace convolutions that lose stripes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from secateurs.plans.stripes import Kept, Shape, as_mask
from secateurs.stripes import StripeConv2d


def without(conv: nn.Conv2d, kept: Tensor) -> tuple[nn.Module, Tensor, Callable[[Tensor], Tensor]]:
    """The replacement of a convolution that keeps these stripes, (O, KH, KW); its weight; and the function that
    maps any tensor of the old weight's shape (a gradient, a momentum) to the new weight's.

    Rows and columns of the kernel that no filter uses are cut. If every filter uses all the remaining positions, the result
    is a plain convolution, else a StripeConv2d.
    """
    kept = kept.to(conv.weight.device)
    made: nn.Module = StripeConv2d.of(conv, kept)
    assert isinstance(made, StripeConv2d)
    if not bool(made.kept.all()):
        made.bias = conv.bias  # type: ignore[assignment]  # the same one, for optimizers
        return made, made.weight, lambda w: w.permute(0, 2, 3, 1)[kept]
    used = kept[0]
    rows, columns = used.any(1).nonzero()[:, 0], used.any(0).nonzero()[:, 0]
    made = made.to_dense()
    plain = made if isinstance(made, nn.Conv2d) else made[1]  # type: ignore[index]
    plain.bias = conv.bias
    plain.weight.requires_grad_(conv.weight.requires_grad)
    box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    return made, plain.weight, lambda w: w[:, :, box[0], box[1]].contiguous()


def replace_(
    model: nn.Module, stripes: Mapping[str, Kept], shapes: Mapping[str, Shape], kept: Mapping[str, Mapping[int, Kept]]
) -> list[tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]]:
    """Replace the convolutions of a model whose channels are already cut. Returns for each: its weight, the new one, and the
    function between them (see `without`).

    shapes, kept: of the weights before the cut, and what the cut kept of their axes.
    """
    done = []
    for name, places in stripes.items():
        path = name.rpartition(".")[0]
        conv = model.get_submodule(path)
        assert isinstance(conv, nn.Conv2d)
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
