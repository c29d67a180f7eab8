"""Where and how a network runs: the runtime, and its settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from torch import nn

from secateurs.deploy.formats import ONNX, OPENVINO, Format
from secateurs.devices import processor
from secateurs.errors import ConfigError, Setting, nearest
from secateurs.keywords import explained

Runtime = Literal["torch-cpu", "torch-cuda", "onnxruntime", "openvino"]
Precision = Literal["fp32", "fp16", "bf16"]
Mode = Literal["eager", "compile", "cudagraphs"]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@explained(ConfigError)
@dataclass(frozen=True)
class Target:
    """Where and how a network runs.

    runtime: `torch-cpu`, `torch-cuda`, `onnxruntime` or `openvino`; the last two on the CPU.
    batch: the number of images; None takes the example inputs as they are.
    threads: the number of CPU threads; None uses PyTorch's number in all runtimes.
    precision: what the network is converted to. In PyTorch, a network in half precision stays in it. ONNX Runtime always
        computes in fp32 here; OpenVINO may use bf16 or fp16 if the processor supports them.
    channels_last: the memory format of images and kernels, in PyTorch.
    mode: `eager`; `compile` for `torch.compile`; `cudagraphs` for its `reduce-overhead` mode, on a GPU.

    Raises ConfigError for a target that does not exist, and for settings that its runtime does not support.
    """

    runtime: Runtime = "torch-cpu"
    batch: int | None = None
    threads: int | None = None
    precision: Precision = "fp32"
    channels_last: bool = False
    mode: Mode = "eager"

    def __post_init__(self) -> None:
        for name, kinds in (("runtime", Runtime), ("precision", Precision), ("mode", Mode)):
            value, known = getattr(self, name), get_args(kinds)
            if value not in known:
                setting = Setting("target" if name == "runtime" else name, value)
                raise ConfigError(setting, f" does not exist. {nearest(str(value), known)}")
        for name in ("batch", "threads"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ConfigError(Setting(name, value), " must be a whole number, 1 or more.")
            object.__setattr__(self, name, int(value))  # NumPy integers cannot be written as JSON
        if not isinstance(self.channels_last, bool):
            raise ConfigError(Setting("channels_last", self.channels_last), " must be True or False.")
        if self.runtime == "onnxruntime" and self.precision != "fp32":
            raise ConfigError(
                Setting("precision", self.precision), " is not available in onnxruntime: it runs in fp32."
            )
        if not self.in_torch and (self.channels_last or self.mode != "eager"):
            name = "channels_last" if self.channels_last else "mode"
            raise ConfigError(Setting(name, getattr(self, name)), f" is a setting of PyTorch, not of {self.runtime}.")
        if self.mode == "cudagraphs" and self.runtime != "torch-cuda":
            raise ConfigError(Setting("mode", self.mode), " needs a GPU: ", Setting("target", "torch-cuda"), ".")

    @classmethod
    def of(cls, given: Target | str) -> Target:
        """Return the target as is, or the target with this name."""
        if isinstance(given, Target):
            return given
        if not isinstance(given, str):
            raise ConfigError(f"target={given!r} is not a valid target: pass a name such as 'torch-cpu', or a Target.")
        return cls(given)  # type: ignore[arg-type]  # checked

    @classmethod
    def installed(cls, *settings: Any) -> list[Target]:
        """Return every target that this machine can run and that supports these settings (the fields after `batch`)."""
        found = []
        for runtime in get_args(Runtime):
            with suppress(ConfigError):
                found.append(cls(runtime, None, *settings))
        return [target for target in found if target.missing is None]

    def suited(self, model: nn.Module) -> Target:
        """Adapt the target to this network: in PyTorch, a network in half precision runs in it."""
        kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
        own = next((name for name, dtype in DTYPES.items() if kinds == {dtype}), "fp32")
        return replace(self, precision=own) if self.in_torch and self.precision == "fp32" else self  # type: ignore[arg-type]

    @property
    def in_torch(self) -> bool:
        return self.format is None

    @property
    def format(self) -> Format | None:
        """The format that a network is exported to for this target; None for PyTorch, which runs the module."""
        return {"onnxruntime": ONNX, "openvino": OPENVINO}.get(self.runtime)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.runtime == "torch-cuda" else "cpu")

    @property
    def used_threads(self) -> int:
        """The number of CPU threads: the target's own, or what PyTorch uses now."""
        return self.threads or torch.get_num_threads()

    @property
    def missing(self) -> str | None:
        """Why this machine cannot run the target, and what to do about it; None if it can."""
        if self.runtime == "torch-cuda" and not torch.cuda.is_available():
            return "there is no GPU that CUDA can use: `secateurs env` says why"
        return None if self.format is None else self.format.missing

    def check(self) -> None:
        """Raise ConfigError if this machine cannot run the target."""
        if why := self.missing:
            raise ConfigError(Setting("target", self.runtime), f" cannot be used: {why}.")

    def record(self) -> dict[str, Any]:
        """Return the runtime and the non-default settings, JSON-serializable."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) != f.default or f.name == "runtime"
        }

    def __str__(self) -> str:
        """Describe the target in words, such as `torch-cuda, fp16, channels last`."""
        parts: list[str] = [self.runtime]
        parts += [self.mode] * (self.mode != "eager")
        parts += [self.precision] * (self.precision != "fp32")
        parts += ["channels last"] * self.channels_last
        parts += [f"{self.threads} thread{'s' * (self.threads != 1)}"] if self.threads else []
        return ", ".join(parts)


@contextmanager
def threaded(target: Target) -> Iterator[int]:
    """Make PyTorch use the target's number of threads within this context. Yields the number."""
    before = torch.get_num_threads()
    if target.threads:
        torch.set_num_threads(target.threads)
    try:
        yield torch.get_num_threads()
    finally:
        if target.threads:
            torch.set_num_threads(before)


def machine(target: Target) -> str:
    """Return the name of the device that a target runs on."""
    if target.runtime == "torch-cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return processor()
