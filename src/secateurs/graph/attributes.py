"""The attributes of PyTorch's modules that depend on a parameter's shape, and their values after a cut."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Shape = tuple[int, ...]
_RECORDS = ("num_features", "num_channels", "in_channels")  # attributes that may hold the number of input channels
_WEIGHTS = ("weight", "weight_v", "parametrizations.weight.original", "parametrizations.weight.original1")


def rewritten(module: nn.Module | None) -> bool:
    """Whether `rewrites` knows modules of this kind."""
    return isinstance(module, _ConvNd | nn.Linear | _NormBase | nn.LayerNorm | nn.RMSNorm | nn.GroupNorm)


def weightless(module: nn.Module) -> bool:
    """Whether a module has no tensors, and only an attribute records how many channels it gets: a norm without affine
    parameters, or a module of the user's own."""
    if module._modules or any(x is not None for own in (module._parameters, module._buffers) for x in own.values()):
        return False
    own = module.__dict__
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) or any(_counts(own.get(a)) for a in _RECORDS)


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def weight_axes(module: nn.Module, shape: Shape, labeled: Container[int]) -> tuple[int, ...]:
    """For a `weightless` module that gets a tensor of this shape, with channels on the `labeled` axes: the axes that a weight
    of it would have. Empty if none fits its attributes."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return tuple(range(len(shape) - len(module.normalized_shape), len(shape)))
    sizes = [module.__dict__.get(a) for a in _RECORDS]
    return next(((a,) for a in (1, 0) if a in labeled and shape[a] in sizes), ())


def rewrites(
    modules: Mapping[str, nn.Module], old: Mapping[str, Shape], new: Mapping[str, Shape]
) -> dict[tuple[str, str], Any]:
    """`{(module, attribute): value}` for the modules whose parameters change shape from `old` to `new`. For a `weightless`
    module these have the shape of the weight that it would have, as `MODULE.weight`."""
    found = values(modules, old, new)
    return {(name, a): v for (name, a), v in sorted(found.items()) if getattr(modules[name], a, v) != v}


def values(
    modules: Mapping[str, nn.Module], old: Mapping[str, Shape], new: Mapping[str, Shape]
) -> dict[tuple[str, str], Any]:
    """The same, with the attributes that stay as they are."""
    found: dict[tuple[str, str], Any] = {}
    for name in {_module_of(p) for p in new}:
        module = modules.get(name)
        if module is None:
            continue
        prefix = f"{name}." if name else ""
        key = next((prefix + w for w in (*_WEIGHTS, "running_mean") if prefix + w in new), None)
        if key is not None:
            for attribute, value in _attributes(module, old[key], new[key]).items():
                found[name, attribute] = value
    return found


def _module_of(param: str) -> str:
    head = param.partition(".parametrizations.")[0] if ".parametrizations." in param else param.rpartition(".")[0]
    return "" if param.startswith("parametrizations.") else head


def _attributes(module: nn.Module, old: Shape, new: Shape) -> dict[str, Any]:
    if isinstance(module, _ConvNd):
        groups = module.groups
        depthwise = old[0] == groups if module.transposed else old[1] == 1
        if groups > 1 and depthwise:  # every input channel is its own group
            groups = new[0] * groups // old[0]
        first, second = new[0], new[1] * groups
        into, out = (first, second) if module.transposed else (second, first)
        return {"in_channels": into, "out_channels": out, "groups": groups}
    if isinstance(module, nn.Linear):
        return {"in_features": new[1], "out_features": new[0]}
    if len(old) == 2 and hasattr(module, "in_channels"):  # stripes of a convolution
        return {"in_channels": new[1]}
    if isinstance(module, _NormBase):
        return {"num_features": new[0]}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": new}
    if isinstance(module, nn.GroupNorm):
        per_channel = module.num_groups == module.num_channels
        return {"num_channels": new[0], **({"num_groups": new[0]} if per_channel else {})}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": new[0]}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": new[0], "embedding_dim": new[1]}
    if weightless(module):
        return {a: new[0] for a in _RECORDS if new and module.__dict__.get(a) == old[0]}
    return {}
