"""Reduce the ops of a network without changing its outputs in eval mode: fold batch norms into the layers before them, and
merge branches where the model's own code supports it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from secateurs.graph import trace
from secateurs.graph.flow import Flow, Op
from secateurs.stripes import StripeConv

MERGES = ("reparameterize", "switch_to_deploy", "fuse")  # names of blocks' methods that merge their branches


def merged_(model: nn.Module) -> int:
    """Merge the branches of every block that supports it (RepVGG, MobileOne, RepViT …), in place. Returns how many did."""
    done = 0
    for name, child in list(model.named_children()):
        method = next((getattr(child, m) for m in MERGES if callable(getattr(child, m, None))), None)
        if method is None:
            done += merged_(child)
            continue
        made = method()
        if isinstance(made, nn.Module) and made is not child:  # timm's `fuse` returns the layer that replaces the block
            setattr(model, name, made)
        done += 1
    return done


@torch.no_grad()
def folded_(model: nn.Module, example_inputs: Any) -> int:
    """Fold batch norms into the convolution or linear layer before them, in place. Returns how many there were.

    A norm is folded if it is the only reader of the layer's output, in every run of the two (a detector's head runs once for
    each scale). It is replaced by an identity, or by the modules inside it (timm's BatchNormAct2d holds its activation there).
    Layers whose weights are shared or computed (weight norm, pruning masks) stay as they are.
    """
    flow: Flow = trace(model, example_inputs).flow
    modules = dict(model.named_modules())
    pairs = list(_pairs(flow, modules))
    for layer, norm in pairs:
        _fold(modules[layer], modules[norm])
        parent, _, name = norm.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Sequential(*modules[norm].children()) or nn.Identity())
    return len(pairs)


def _pairs(flow: Flow, modules: dict[str, nn.Module]) -> Iterator[tuple[str, str]]:
    """Yield the names of each layer and the batch norm that directly follows it in every run."""
    found: dict[str, list[tuple[Op, str]]] = {}  # for each run of a layer: its op, and the norm after it
    for call in flow.calls:
        made = None if call.output is None else flow.maker(call.output)
        if made is None or made.call is not call:
            continue
        norms = flow.after(made).norm
        found.setdefault(call.module, []).append((made, norms[0].call.module if norms else call.module))
    for layer, runs in found.items():
        made, norm = runs[0]
        readers = flow.readers(flow.parameters(made))
        if norm == layer or any(other != norm for _, other in runs):
            continue
        alone = len(runs) == len(flow.runs(layer)) == len(flow.runs(norm)) == len(readers)
        if alone and _foldable(modules[layer], modules[norm], made.outputs[0].shape):
            yield layer, norm


def _foldable(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether the norm can be folded into the layer. shape: the shape of the layer's output."""
    if not isinstance(layer, _ConvNd | nn.Linear | StripeConv) or not isinstance(norm, _BatchNorm):
        return False
    if isinstance(layer, _ConvTransposeNd) and layer.groups > 1:
        return False  # its filters are not an axis of the weight
    if isinstance(layer, nn.Linear) and len(shape) != 2:
        return False  # the norm's channels are on another axis
    hooked = any(m._forward_hooks or m._forward_pre_hooks or is_parametrized(m) for m in (layer, norm))
    return norm.running_mean is not None and not hooked


def _fold(layer: Any, norm: Any) -> None:
    given = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    if isinstance(layer, StripeConv):
        filters = layer.kept.nonzero()[:, 0]  # the filter of each stripe
        _, shift = fuse_conv_bn_weights(layer.weight.new_zeros(layer.out_channels, 1), layer.bias, *given)
        scale = norm.running_var.add(norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
        layer.weight.mul_(scale[filters, None])
        layer.bias = shift
    elif isinstance(layer, nn.Linear):
        layer.weight, layer.bias = fuse_linear_bn_weights(layer.weight, layer.bias, *given)
    else:
        transposed = isinstance(layer, _ConvTransposeNd)
        layer.weight, layer.bias = fuse_conv_bn_weights(layer.weight, layer.bias, *given, transpose=transposed)
