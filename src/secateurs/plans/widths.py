"""The widths of a network's layers before and after a cut."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from secateurs.plans.plan import Plan

Width = tuple[int, int]  # channels before and after


def layer_widths(model: nn.Module, plan: Plan) -> dict[str, Width]:
    """Return each layer's output channels before and after the plan, in the order of the model's parameters. model: the network
    after the cut. A weight that is not called `weight` is listed by its full name (`lstm.weight_ih_l0`)."""
    striped = {name.rpartition(".")[0]: name for name in plan.stripes}
    found: dict[str, Width] = {}
    for layer, module in model.named_modules():
        inside = next((path for path in striped if layer == path or layer.startswith(f"{path}.")), None)
        if inside is not None:  # replaced by a stripe convolution, whose weight has another shape
            found.setdefault(inside, _width(plan, striped[inside], 0))
            continue
        axis = 1 if isinstance(module, _ConvTransposeNd) else 0
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                name = f"{layer}.{leaf}" if layer else leaf
                found[_layer(name)] = _width(plan, name, axis, parameter.shape[axis])
    return found


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


def _width(plan: Plan, name: str, axis: int, left: int = 0) -> Width:
    before = plan.shapes[name][axis] if name in plan.shapes else left
    kept = plan.kept.get(name, {}).get(axis)
    return before, before if kept is None else len(kept)
