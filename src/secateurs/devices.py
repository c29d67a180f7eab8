"""Which devices PyTorch can use here, which is not the same as which ones it was built for.

`pip install torch` gives everyone on Linux a build for CUDA, with or without a GPU in the machine. Such a build still
names CUDA as its accelerator, and fails only when something is put there. So nobody else asks torch for the device to
work on.
"""

from __future__ import annotations

import torch


def accelerator() -> torch.device | None:
    """The accelerator (CUDA, ROCm, MPS, XPU …) that can be used now, or None. Its index is that of the current one."""
    # In this order: PyTorch 2.6 raises where there is none, and has no check_available= yet.
    if not torch.accelerator.is_available():
        return None
    device = torch.accelerator.current_accelerator()
    # With its index, as tensors have it: torch.device("cuda") equals no tensor's device.
    return None if device is None else torch.device(device.type, torch.accelerator.current_device_index())


def default_device() -> torch.device:
    """Where work is done unless the user says otherwise: on the accelerator if one can be used, else on the CPU."""
    return accelerator() or torch.device("cpu")
