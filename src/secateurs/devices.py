"""The device that computation runs on, and the precision that devices compute with.

The rule: the model, the example inputs and the data may each be on any device. With data, the work is done
on `device`, by default an available accelerator; without data, on the model's device. The result is on the
device of the given model, and no object of the caller is moved.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from secateurs.errors import ConfigError, Setting

VARIABLE = "SECATEURS_DEVICE"  # names the default device


def accelerator() -> torch.device | None:
    """The available accelerator (CUDA, ROCm, MPS, XPU …) with the index of the current device, or None.

    On Linux, `pip install torch` installs a CUDA build, with or without a GPU in the machine. Such a build still
    reports CUDA as its accelerator, and fails only when a tensor is moved there. Call this function instead of torch's.
    """
    # In this order: PyTorch 2.6 raises if there is no accelerator, and does not have check_available= yet.
    if not torch.accelerator.is_available():
        return None
    device = torch.accelerator.current_accelerator()
    # With its index, as tensors have it: torch.device("cuda") is not equal to any tensor's device.
    return None if device is None else torch.device(device.type, torch.accelerator.current_device_index())


def default_device() -> torch.device:
    """The default device: the one named by SECATEURS_DEVICE, else an available accelerator
    (each process has its own), else the CPU."""
    if named := os.environ.get(VARIABLE):
        return usable(named, f"{VARIABLE}={named}")
    found = accelerator()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if found is not None and 0 < local < torch.accelerator.device_count():
        return torch.device(found.type, local)
    return found or torch.device("cpu")


def usable(device: str | torch.device | None, named: object = None) -> torch.device:
    """The device with its index, as tensors have it; None is the default one. named: what a message calls the setting.

    Raises ConfigError if the device is not available.
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
    """The device of the model's first parameter or buffer; the CPU if it has none."""
    first = next(chain(model.parameters(), model.buffers()), None)  # without looking at all others
    return torch.device("cpu") if first is None else first.device


def check_one_device(model: nn.Module) -> None:
    """Raise ConfigError for a model on several devices or on the meta device."""
    check_values(model)
    found = list(dict.fromkeys(str(t.device) for t in (*model.parameters(), *model.buffers())))
    if len(found) > 1:
        raise ConfigError(
            f"The model is spread over {', '.join(found[:-1])} and {found[-1]}: move it to one device first, "
            f"model.to({found[0]!r})."
        )


def check_values(model: nn.Module) -> None:
    """Raise ConfigError for a model on the meta device, if only in part."""
    if any(t.is_meta for t in chain(model.parameters(), model.buffers())):
        raise ConfigError(
            "The model is on the meta device and has no values: materialize it and load its weights first."
        )


def moved(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """An example input on this device, in this dtype if it is one. Raises ConfigError for one on the meta device, which has no
    values that could be moved."""
    if x.is_meta and device.type != "meta":
        raise ConfigError(
            "The example inputs are on the meta device and have no values: pass a tensor that has them, such as "
            f"torch.randn{tuple(x.shape)}."
        )
    return x.to(device, dtype)


def channels_last_(model: nn.Module) -> None:
    """Lay the model's images and kernels out with channels last, in place. `Module.to` raises for a tensor with five axes."""
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)


def exact(device: torch.device) -> torch.device:
    """Where float64 work on this device's data is done: on the CPU for those that do not have it (MPS)."""
    return torch.device("cpu") if device.type == "mps" else device


@contextmanager
def full_precision() -> Iterator[None]:
    """Context in which float32 is computed in full precision, without TF32, bfloat16 products or autocast. For comparisons
    that rounding must not affect. Restores the settings on exit."""
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


def device_name(device: torch.device) -> str:
    """A device in words: the GPU's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def processor() -> str:
    """The name of the CPU."""
    try:
        if sys.platform == "darwin":
            return first_line(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.machine()
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return found[1].strip() if found else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def first_line(command: Sequence[str]) -> str:
    """The first line that a program prints, or an empty string."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout.strip().splitlines() or [""])[0].strip() if done.returncode == 0 else ""


def memory() -> int | None:
    """Bytes of memory in this machine; None if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
