"""What a stripe convolution computed from its weights, and whether it is still valid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateurs.stripes.layout import Layout

SIDE = 8  # about this many rows and columns of the weight are compared


class Prepared:
    """A layer's weights in one dtype, and what kernels computed from them.

    PyTorch counts the changes of a tensor, except those through `data` and in inference mode. On a CPU, where reading values
    costs little, values are compared as well: a sample of the weight's, or all if a tensor was created in inference mode. On
    other devices reading would synchronize, so results from such a tensor are not reused there.
    """

    def __init__(self, weight: Tensor, kept: Tensor, layout: Layout, dtype: torch.dtype) -> None:
        """weight: (S, C). kept: (O, *kernel) bool. dtype: to compute in; under autocast it differs from the weight's."""
        self.of, self.layout, self.dtype = (weight, kept), layout, dtype
        self.weight = weight.detach().to(dtype)
        self.cached: dict[str, Any] = {}  # by kernel
        before = layout.padding[::2]
        self.sides = before if before == layout.padding[1::2] and min(before) >= 0 else None
        self._kind = weight.device.type
        self._cast = dtype != weight.dtype
        self._counted = not (weight.is_inference() or kept.is_inference())
        self._versions = (weight._version, kept._version) if self._counted else (0, 0)
        self._at = weight.data_ptr(), kept.data_ptr()
        on_cpu = weight.device.type == kept.device.type == "cpu"
        self._lasts = self._counted or on_cpu
        views = ([_bits(weight, SIDE)] if self._counted else [_bits(t) for t in self.of]) if on_cpu else []
        self._values = [(view, view.tobytes()) for view in views]

    def holds(self, weight: Tensor | None, kept: Tensor | None) -> bool:
        """Whether the layer's tensors are those that this object was computed from, and have not changed."""
        if weight is not self.of[0] or kept is not self.of[1] or weight is None or kept is None or not self._lasts:
            return False
        if self._counted and (weight._version != self._versions[0] or kept._version != self._versions[1]):
            return False
        if weight.data_ptr() != self._at[0] or kept.data_ptr() != self._at[1]:
            return False
        for view, then in self._values:  # noqa: SIM110 (a generator would cost as much as all of the rest)
            if view.tobytes() != then:
                return False
        return True

    def dense(self, layer: Any, x: Any) -> Tensor | None:
        """Return the dense weight, (O, C, *kernel), if the layer's output is simply the convolution of x with it; else None.
        With it, a call costs no more than one of nn.Conv2d."""
        weight: Tensor | None = self.cached.get("dense")
        if (
            weight is None
            or type(x) is not Tensor
            or self.sides is None
            or (layer.kernels and self._kind == "cpu")  # other devices have no other kernels
            or layer.padding != self.layout.padding
            or torch.is_grad_enabled()
            or torch._C._len_torch_dispatch_stack()
            or torch.is_autocast_enabled(self._kind) != self._cast
            or (self._cast and torch.get_autocast_dtype(self._kind) != self.dtype)
            or not self.holds(layer._parameters.get("weight"), layer._buffers.get("kept"))
        ):
            return None
        return weight


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(x: Tensor, side: int | None = None) -> Any:
    """Return a NumPy view of the bits of all values, or of about `side` rows and columns."""
    x = torch.view_as_real(x.detach()) if x.is_complex() else x.detach()
    bits = x.view(_INTEGERS[x.element_size()]).numpy()
    return bits if side is None else bits[tuple(slice(None, None, max(1, n // side)) for n in bits.shape)]
