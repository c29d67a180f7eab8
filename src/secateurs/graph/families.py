"""Families of ops, for questions about what a network computes: which ops are layers, norms, non-linearities, additions."""

from __future__ import annotations

from enum import Enum, auto
from typing import Any

import torch

aten = torch.ops.aten


class Family(Enum):
    """What kind of map an op is."""

    CONVOLUTION = auto()
    PRODUCT = auto()  # a matrix product: linear layers, attention
    ADDITION = auto()  # x + y, without a factor
    BATCH_NORM = auto()  # with running statistics: an affine map of each channel
    NORM = auto()  # a normalization that computes its statistics from its input
    ACTIVATION = auto()  # an elementwise non-linearity of one input
    IDENTITY = auto()  # the same values in the same shape: a copy, an alias
    MOVEMENT = auto()  # elements change places: view, permute, transpose
    CONCATENATION = auto()
    POOLING = auto()  # of space: windows, adaptive, mean
    OTHER = auto()


LINEAR = frozenset({Family.ADDITION, Family.BATCH_NORM, Family.IDENTITY, Family.MOVEMENT})

_NAMES: dict[Family, str] = {
    Family.CONVOLUTION: "convolution _convolution cudnn_convolution mkldnn_convolution",
    Family.PRODUCT: "mm addmm bmm baddbmm linear matmul",
    Family.ADDITION: "add add_",
    Family.BATCH_NORM: "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
    "_batch_norm_with_update _batch_norm_no_update cudnn_batch_norm miopen_batch_norm",
    Family.NORM: "native_group_norm native_layer_norm _fused_rms_norm",
    Family.ACTIVATION: "relu relu_ relu6 hardtanh hardtanh_ hardswish hardswish_ hardsigmoid hardsigmoid_ silu silu_ gelu "
    "gelu_ elu elu_ selu selu_ celu celu_ leaky_relu leaky_relu_ prelu _prelu_kernel rrelu rrelu_ mish mish_ softplus sigmoid "
    "sigmoid_ tanh tanh_ hardshrink softshrink log_sigmoid log_sigmoid_forward threshold threshold_ clamp clamp_ "
    "clamp_min clamp_min_ clamp_max clamp_max_",
    Family.IDENTITY: "alias clone contiguous detach detach_ _to_copy lift_fresh",
    Family.MOVEMENT: "view _unsafe_view reshape _reshape_alias flatten unflatten permute transpose transpose_ t t_ movedim "
    "squeeze squeeze_ unsqueeze unsqueeze_ expand flip roll pixel_shuffle pixel_unshuffle channel_shuffle",
    Family.CONCATENATION: "cat stack",
    Family.POOLING: "avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices mean "
    "adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d",
}
_FAMILIES = {f"aten.{name}": family for family, names in _NAMES.items() for name in names.split()}


def family(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Family:
    """Return the family of an op that is called with these arguments."""
    found = _FAMILIES.get(str(op.overloadpacket), Family.OTHER)
    if found is Family.ADDITION and argument(op, args, kwargs, "alpha", 1) != 1:
        return Family.OTHER
    if found is Family.BATCH_NORM and _computes_statistics(op, args, kwargs):
        return Family.NORM
    return found


def argument(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, default: Any = None) -> Any:
    """Return the argument of this name in a call of an op; `default` if it was not passed or the op has none."""
    if name in kwargs:
        return kwargs[name]
    at = next((i for i, a in enumerate(op._schema.arguments) if a.name == name), len(args))
    return args[at] if at < len(args) else default


def draws(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an op draws random numbers in this call. Dropout in eval mode does not."""
    return torch.Tag.nondeterministic_seeded in op.tags and not any(
        a.name in ("training", "train", "dropout_p") and not argument(op, args, kwargs, a.name, a.default_value)
        for a in op._schema.arguments
    )


def sized_by_values(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the shape of an op's output depends on values in this call. For an index by integers, it does not."""
    if torch.Tag.dynamic_output_shape not in op.tags:
        return False
    return op.overloadpacket is not aten.index or any(
        x is not None and x.dtype in (torch.bool, torch.uint8) for x in argument(op, args, kwargs, "indices")
    )


def _computes_statistics(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    mean = argument(op, args, kwargs, "running_mean")
    return mean is None or bool(
        argument(op, args, kwargs, "training", op.overloadpacket is aten._batch_norm_with_update)
    )
