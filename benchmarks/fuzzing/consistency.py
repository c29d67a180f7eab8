"""Attributes that repeat a shape, and tensors with several owners, in a sliced network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fuzzing.parts import Block
from fuzzing.twins import run


def _due(module: nn.Module) -> dict[str, Any]:
    """What the attributes of a layer of PyTorch's must be, by its tensors."""
    if isinstance(module, _ConvNd):
        first, second = module.weight.shape[:2]
        groups = module.groups
        if isinstance(module, _ConvTransposeNd):
            return {"in_channels": first, "out_channels": second * groups}
        return {"in_channels": second * groups, "out_channels": first}
    if isinstance(module, nn.Linear):
        return {"in_features": module.weight.shape[1], "out_features": module.weight.shape[0]}
    if isinstance(module, _NormBase) and module.weight is not None:
        return {"num_features": len(module.weight)}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.weight is not None:
        return {"normalized_shape": tuple(module.weight.shape)}
    if isinstance(module, nn.GroupNorm) and module.weight is not None:
        return {"num_channels": len(module.weight)}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": module.weight.numel()}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": module.weight.shape[0], "embedding_dim": module.weight.shape[1]}
    if isinstance(module, nn.RNNBase):
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        return {"input_size": module.weight_ih_l0.shape[1], "hidden_size": len(module.weight_ih_l0) // gates}
    if isinstance(module, nn.RNNCellBase):
        return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}
    return {}


def attributes(small: nn.Module, inputs: Any, graph: Any) -> list[str]:
    """What is wrong, after a run of it: norms without parameters show in what they get only."""
    wrong: list[str] = []
    for path, module in small.named_modules():
        with torch.no_grad():
            for name, value in _due(module).items():
                if getattr(module, name) != value:
                    wrong.append(
                        f"{path}: {type(module).__name__}.{name} is {getattr(module, name)}, its tensors say {value}"
                    )
        if isinstance(module, _ConvNd) and module.bias is not None and len(module.bias) != module.out_channels:
            wrong.append(f"{path}: {len(module.bias)} biases, {module.out_channels} outputs")
        if isinstance(module, Block):
            told = " ".join(map(str, getattr(graph, "warnings", ())))
            wrong += [
                f"{path}: its own {name} is {value}, its tensors say {due}, and nothing is said of it"
                for name, value, due in module.figures()
                if value != due and not (path in told and name in told)
            ]
    handles = []

    def watch(path: str, module: nn.Module) -> None:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            width = args[0].shape[1]
            known = getattr(module, "num_features", None) or getattr(module, "num_channels", None)
            if known != width:
                wrong.append(f"{path}: {type(module).__name__} of {known} channels gets {width}")

        handles.append(module.register_forward_pre_hook(hook))

    for path, module in small.named_modules():
        if isinstance(module, _NormBase | nn.GroupNorm):
            watch(path, module)
    with torch.no_grad():
        run(small, inputs)
    for handle in handles:
        handle.remove()
    return wrong


def ties(model: nn.Module, small: nn.Module) -> list[str]:
    """Tensors, and modules, that had several owners and no longer have."""
    wrong = []
    for kind in ("parameters", "buffers", "modules"):
        owners: dict[int, list[str]] = {}
        for name, x in getattr(model, f"named_{kind}")(remove_duplicate=False):
            owners.setdefault(id(x), []).append(name)
        after = dict(getattr(small, f"named_{kind}")(remove_duplicate=False))
        for first, *others in owners.values():
            wrong += [f"{name} is no longer {first}" for name in others if after.get(name) is not after.get(first)]
    return wrong
