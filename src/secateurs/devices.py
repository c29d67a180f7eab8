"""Where work is done, and how exactly devices compute.

The one rule: the model, the example inputs and the data may each be anywhere. What trains or measures accuracy works on
`device`, by default on an accelerator if one can be used; everything else works where the model is. The result is where
the given model was, and nothing of the caller's is moved.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from secateurs.errors import ConfigError, Setting

VARIABLE = "SECATEURS_DEVICE"  # names the default device


def accelerator() -> torch.device | None:
    """The accelerator (CUDA, ROCm, MPS, XPU …) that can be used now, or None. Its index is that of the current one.

    `pip install torch` gives everyone on Linux a build for CUDA, with or without a GPU in the machine. Such a build still
    names CUDA as its accelerator, and fails only when something is put there. So nobody else asks torch.
    """
    # In this order: PyTorch 2.6 raises where there is none, and has no check_available= yet.
    if not torch.accelerator.is_available():
        return None
    device = torch.accelerator.current_accelerator()
    # With its index, as tensors have it: torch.device("cuda") equals no tensor's device.
    return None if device is None else torch.device(device.type, torch.accelerator.current_device_index())


def default_device() -> torch.device:
    """Where work is done unless the user says otherwise: what SECATEURS_DEVICE names, else the accelerator if one can be
    used (of several processes each has its own), else the CPU."""
    if named := os.environ.get(VARIABLE):
        return usable(named, f"{VARIABLE}={named}")
    found = accelerator()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if found is not None and 0 < local < torch.accelerator.device_count():
        return torch.device(found.type, local)
    return found or torch.device("cpu")


def usable(device: str | torch.device | None, named: object = None) -> torch.device:
    """The device with its index, as tensors have it; None is the default one. named: what a message calls the setting.

    Raises ConfigError if nothing can be put there.
    """
    if device is None:
        return default_device()
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ConfigError(
            Setting("device", str(device)) if named is None else named,
            f" cannot be used here: {reason}.",
            hint="`secateurs env` shows which devices can.",
        ) from error


def device_of(model: nn.Module) -> torch.device:
    """Where a model is: the device of its first parameter or buffer, the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def check_one_device(model: nn.Module) -> None:
    """Raise ConfigError for a model that is spread over several devices, or that has no values yet."""
    found = list(dict.fromkeys(str(t.device) for t in (*model.parameters(), *model.buffers())))
    if len(found) > 1:
        raise ConfigError(
            f"The model is spread over {', '.join(found[:-1])} and {found[-1]}: move it to one device first, "
            f"model.to({found[0]!r})."
        )
    if found == ["meta"]:
        raise ConfigError(
            "The model is on the meta device and has no values: materialize it and load its weights first."
        )


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 computed in float32: without TF32, bfloat16 products or autocast, on every device. For comparisons that
    rounding must not decide. The settings are left as they were."""
    backends = torch.backends
    kinds = ("cpu", "cuda", "xpu", "mps")
    with ExitStack() as stack:
        for kind in kinds:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if hasattr(backends.cudnn, "conv"):  # from PyTorch 2.9 on; reading the older settings may then raise
            owners = [getattr(b, op) for b in (backends.cudnn, backends.mkldnn) for op in ("conv", "rnn")]
            for owner in (backends.cuda.matmul, getattr(backends.mkldnn, "matmul"), *owners):  # noqa: B009 (mypy)
                if owner.fp32_precision != "ieee":
                    stack.callback(setattr, owner, "fp32_precision", owner.fp32_precision)
                    owner.fp32_precision = "ieee"
        else:
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            stack.callback(setattr, backends.cudnn, "allow_tf32", backends.cudnn.allow_tf32)
            torch.set_float32_matmul_precision("highest")
            backends.cudnn.allow_tf32 = False
        yield
