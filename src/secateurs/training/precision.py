"""The precision and memory format in which a device trains fastest."""

from __future__ import annotations

import logging

import torch
from torch import nn

log = logging.getLogger("secateurs")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively: GPUs since Ampere, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    if device.type == "cpu":
        probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # private: they may change between releases
        return any(getattr(torch.cpu, name, bool)() for name in probes)
    return False


def resolve(precision: str, device: torch.device, model: nn.Module, launched: str = "no") -> str:
    """Resolve 'auto': the setting of `accelerate launch --mixed_precision`, else bf16 if it is fast, else fp32. A float64
    model is not converted: 'fp32' means no autocast."""
    if precision != "auto":
        if precision == "bf16" and device.type == "cpu" and not bf16_is_fast(device):
            log.warning(
                "This CPU has no instructions for bfloat16: precision='bf16' trains several times as slowly as 'fp32', which "
                "'auto' chooses here."
            )
        return precision
    if any(p.dtype == torch.float64 for p in model.parameters()):
        return "fp32"
    if launched in DTYPES:
        return launched
    return "bf16" if bf16_is_fast(device) else "fp32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    dtype = DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def wants_channels_last(setting: bool | str, precision: str, device: torch.device, model: nn.Module) -> bool:
    """Resolve 'auto': channels_last where it makes convolutions faster, on CPUs and on GPUs in reduced precision."""
    if setting == "auto":
        convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        # On CPUs PyTorch 2.13 returns wrong results for such weights with one channel if strides are uneven.
        wrong = any(m.in_channels == m.groups and m.stride[0] != m.stride[1] for m in convs)
        return bool(convs) and (device.type == "cpu" or precision != "fp32") and not wrong
    return bool(setting)
