"""Dispatch modes that do not wait for the compiler."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """A mode in which torch.compile is not imported: PyTorch imports it, which takes seconds, to exclude the mode from
    compilation. What runs in our modes is not compiled."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
