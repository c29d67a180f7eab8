"""The attributes of PyTorch's modules that repeat the shape of a tensor, and their values after a cut."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from operator import index
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from secateurs.graph.naming import held

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
_NORM = ("weight", "running_mean")
_RECURRENT = ("weight_ih_l0", "weight_hh_l0", "weight_hr_l0", "weight_ih", "weight_hh")
_LEAVES: tuple[tuple[Any, tuple[str, ...]], ...] = (
    ((_ConvNd, nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm), ("weight",)),
    ((nn.PReLU, nn.Embedding, nn.EmbeddingBag), ("weight",)),
    (_NormBase, _NORM),
    ((nn.RNNBase, nn.RNNCellBase), _RECURRENT),
)
# Every attribute that `figures` may name.
NAMES = frozenset({
    "embedding_dim", "groups", "hidden_size", "in1_features", "in2_features", "in_channels", "in_features", "input_size",
    "normalized_shape", "num_channels", "num_embeddings", "num_features", "num_groups", "num_parameters", "out_channels",
    "out_features", "proj_size",
})  # fmt: skip


def rewritten(module: nn.Module | None) -> bool:
    """Whether a cut rewrites the constants in a module of this kind: its groups, or its normalized shape."""
    return isinstance(module, _ConvNd | nn.Linear | _NormBase | nn.LayerNorm | nn.RMSNorm | nn.GroupNorm)


def leaves(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the tensors whose shapes a module's attributes repeat. Empty for modules that are not PyTorch's."""
    return next((names for kinds, names in _LEAVES if isinstance(module, kinds)), ())


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return those tensors of `leaves` that exist, as the module holds them: a parameter, a buffer, or what a hook computed."""
    places: Iterable[Mapping[str, Any]] = (module._parameters, module._buffers, module.__dict__)
    found = {leaf: next((p[leaf] for p in places if leaf in p), None) for leaf in leaves(module)}
    return {leaf: x for leaf, x in found.items() if isinstance(x, Tensor)}


def parametrized(module: nn.Module) -> list[str]:
    """Return the names of those tensors of `leaves` that a parametrization computes when they are read."""
    found = module._modules.get("parametrizations")
    return [] if found is None else [leaf for leaf in leaves(module) if leaf in found._modules]


def weightless(module: nn.Module) -> bool:
    """Whether a module is a norm without tensors: only an attribute records how many channels it gets."""
    if any(x is not None for own in (module._parameters, module._buffers) for x in own.values()):
        return False
    return isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm | _NormBase) and not parametrized(module)


def weight_axes(module: nn.Module, shape: Shape, labeled: Container[int]) -> tuple[int, ...]:
    """Return the axes of its input that a `weightless` module would have a weight for. Empty if none fits its attributes.
    shape: of the input. labeled: the axes of the input that carry channels."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return tuple(range(len(shape) - len(module.normalized_shape), len(shape)))
    size = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
    return next(((a,) for a in (1, 0) if a in labeled and shape[a] == size), ())


def figures(module: nn.Module, old: Shapes, new: Shapes) -> dict[str, Any]:
    """Return `{attribute: value}` of a module whose tensors (see `leaves`) change shape from `old` to `new`."""
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return _recurrent(module, new)
    leaf = next((leaf for leaf in leaves(module) if leaf in new), None)
    return {} if leaf is None else _attributes(module, old[leaf], new[leaf])


def values(modules: Mapping[str, nn.Module], old: Shapes, new: Shapes) -> dict[tuple[str, str], Any]:
    """Return `{(module, attribute): value}` for tensors that change shape from `old` to `new`, by name. Values that do not
    change are included. Only values that are known without a run: a weight that is computed from tensors of another shape has
    none."""
    first = {id(x.tensor): x.name for x in held(modules)}
    found: dict[tuple[str, str], Any] = {}
    for path, module in modules.items():
        names = {leaf: first.get(id(x), "") for leaf, x in _stored(module).items()}
        known = {leaf: name for leaf, name in names.items() if name in old and name in new}
        shapes = {leaf: old[name] for leaf, name in known.items()}, {leaf: new[name] for leaf, name in known.items()}
        for attribute, value in figures(module, *shapes).items():
            found[path, attribute] = value
    return found


def _stored(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters or buffers that the tensors of `leaves` are, or are computed from channel by channel."""
    places: list[tuple[str, Mapping[str, Any]]] = [("", module._parameters), ("", module._buffers)]
    places += [("_orig", module._parameters), ("_v", module._parameters)]  # masks, spectral norm, weight norm
    found = {leaf: next((p[leaf + end] for end, p in places if leaf + end in p), None) for leaf in leaves(module)}
    for leaf in parametrized(module):
        kept = module.parametrizations[leaf]._parameters  # type: ignore[index,union-attr]
        found[leaf] = kept.get("original", kept.get("original1"))
    return {leaf: x for leaf, x in found.items() if isinstance(x, Tensor)}


def _attributes(module: nn.Module, old: Shape, new: Shape) -> dict[str, Any]:
    if isinstance(module, _ConvNd):
        groups = index(module.groups)  # a plain number, which a trace does not follow
        depthwise = old[0] == groups if module.transposed else old[1] == 1
        if groups > 1 and depthwise:  # every input channel is its own group
            groups = new[0] * groups // old[0]
        first, second = new[0], new[1] * groups
        into, out = (first, second) if module.transposed else (second, first)
        return {"in_channels": into, "out_channels": out, "groups": groups}
    if isinstance(module, nn.Linear):
        return {"in_features": new[1], "out_features": new[0]}
    if isinstance(module, nn.Bilinear):
        return {"in1_features": new[1], "in2_features": new[2], "out_features": new[0]}
    if isinstance(module, _NormBase):
        return {"num_features": new[0]}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": new}
    if isinstance(module, nn.GroupNorm):
        per_channel = index(module.num_groups) == index(module.num_channels)
        return {"num_channels": new[0], **({"num_groups": new[0]} if per_channel else {})}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": new[0]}
    return {"num_embeddings": new[0], "embedding_dim": new[1]}


def _recurrent(module: nn.Module, new: Shapes) -> dict[str, Any]:
    """weight_ih: (gates · hidden, input), weight_hh: (gates · hidden, hidden or projected), weight_hr: (projected, hidden)."""
    found: dict[str, Any] = {}
    if into := new.get("weight_ih_l0") or new.get("weight_ih"):
        found["input_size"] = into[1]
    if projection := new.get("weight_hr_l0"):
        found |= {"hidden_size": projection[1], "proj_size": projection[0]}
    elif back := new.get("weight_hh_l0") or new.get("weight_hh"):
        found["hidden_size"] = back[1]
    return found


def disagreements(model: nn.Module) -> list[str]:
    """List where an attribute of a PyTorch module disagrees with the shape of its tensor: `conv1.in_channels is 16, weight has
    shape (16, 8, 3, 3)`."""
    found = []
    for path, module in model.named_modules():
        held = own_tensors(module) | {leaf: getattr(module, leaf) for leaf in parametrized(module)}
        shapes = {leaf: tuple(x.shape) for leaf, x in held.items()}
        for attribute, due in figures(module, shapes, shapes).items():
            if getattr(module, attribute, due) != due:
                name = f"{path}.{attribute}" if path else attribute
                leaf, shape = next(iter(shapes.items()))
                found.append(f"{name} is {getattr(module, attribute)}, {leaf} has shape {shape}")
    return found
