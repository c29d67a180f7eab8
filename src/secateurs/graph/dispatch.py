"""Dispatch modes that do not wait for the compiler."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """A mode whose code is not compiled. PyTorch imports the compiler to exclude a mode from compilation, which takes seconds.
    This one is excluded only if the compiler has been imported, as it has for a network with compiled parts."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __enter__(self) -> Any:
        own: Any = type(self)
        if "torch._dynamo" in sys.modules and not hasattr(own.__torch_dispatch__, "__wrapped__"):
            own.__torch_dispatch__ = torch.compiler.disable(own.__torch_dispatch__)
        return super().__enter__()
