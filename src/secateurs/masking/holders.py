"""Who holds a weight, and so whether it is read as it is stored."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from secateurs.graph.channels import named_tensors


def held_by(model: nn.Module, names: set[str], kind: Callable[[nn.Module], bool]) -> set[str]:
    """Those of these parameters that only modules of one kind hold."""
    named = named_tensors(model)
    found = {id(named[name]): name for name in names}
    for module in model.modules():
        if not kind(module):
            for x in (*module._parameters.values(), *module._buffers.values()):
                found.pop(id(x), None)
    return set(found.values())


def reads_directly(module: nn.Module) -> bool:
    """Whether a module is a layer of PyTorch's, which reads its weights as they are stored."""
    kind = type(module)
    if "forward" in module.__dict__ or computes(module) or kind.forward is nn.Module.forward:
        return False
    own = (kind.forward, getattr(kind, "_conv_forward", None))
    return all(f is None or f.__module__.startswith("torch.nn.modules.") for f in own)


def computes(module: nn.Module) -> bool:
    """Whether weights may be computed from what a module holds before it runs: by parametrizations, or by a hook."""
    return isinstance(module, ParametrizationList) or bool(module._forward_pre_hooks)
