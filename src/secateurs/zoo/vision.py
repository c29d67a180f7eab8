"""The one door to torchvision and timm.

A torchvision built for CUDA cannot load its C++ operators beside a CPU build of torch, and then `import torchvision`
dies on "operator torchvision::nms does not exist". Only in that case the operators are declared here, `nms` with a
plain PyTorch body, so that the networks (which need none of them, but for detection heads) can be built and run.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from secateurs.errors import SpecError

_ROI = "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_DEFORM = (
    "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, "
    "SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, "
    "bool use_mask"
)
# What torchvision attaches fakes and autocast kernels to while it is imported.
_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align": f"({_ROI}, int sampling_ratio, bool aligned) -> Tensor",
    "roi_pool": f"({_ROI}) -> (Tensor, Tensor)",
    "ps_roi_align": f"({_ROI}, int sampling_ratio) -> (Tensor, Tensor)",
    "ps_roi_pool": f"({_ROI}) -> (Tensor, Tensor)",
    "deform_conv2d": f"({_DEFORM}) -> Tensor",
}
_libraries: list[torch.library.Library] = []  # operators live as long as their Library object


@functools.cache
def torchvision() -> ModuleType:
    """The `torchvision` module, importable even where its C++ operators are not. SpecError if not installed."""
    if "torchvision" in sys.modules:
        return sys.modules["torchvision"]
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise _missing("torchvision")
    if _extension_loads(Path(spec.origin).parent):
        return importlib.import_module("torchvision")
    define_operators()
    module = importlib.import_module("torchvision")
    # `ops.nms` asks whether the extension is there before it looks for the operator, which now exists.
    importlib.import_module("torchvision.ops.boxes")._assert_has_ops = lambda: None  # type: ignore[attr-defined]
    # Without the extension `ops.roi_align` is plain PyTorch, but compiled at first call: that takes a C++ compiler, and
    # the operators in it are hidden from whoever traces the network.
    roi_align = importlib.import_module("torchvision.ops.roi_align")
    roi_align._roi_align = getattr(roi_align._roi_align, "__wrapped__", roi_align._roi_align)  # type: ignore[attr-defined]
    return module


@functools.cache
def timm() -> ModuleType:
    """The `timm` module. SpecError if it is not installed."""
    if importlib.util.find_spec("timm") is None:
        raise _missing("timm")
    torchvision()  # timm imports it
    return importlib.import_module("timm")


def _missing(package: str) -> SpecError:
    return SpecError(f"{package} is not installed, and this model comes from it. Run: pip install 'secateurs[vision]'")


def _extension_loads(package: Path) -> bool:
    """Whether torchvision's operators can be loaded, which this does (torchvision would, to the same effect)."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        library = package / f"_C{suffix}"
        if library.exists():
            try:
                torch.ops.load_library(library)
            except (OSError, ImportError):
                return False
            return True
    return False


def define_operators() -> None:
    """Declare torchvision's operators, leaving alone those that exist. Only `nms` can then be called, on any device."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + schema)
            if name == "nms":
                for key in ("CPU", "CUDA"):
                    library.impl(name, nms, key)
    _libraries.append(library)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes kept by greedy non-maximum suppression, best score first.

    boxes (N, 4) as x1, y1, x2, y2; scores (N,); a box goes if its IoU with a better one that stays is above the
    threshold. Returns (K,) int64.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order].float()  # (N, 4)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    kept: list[int] = []
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        kept.append(i)
        corner = torch.maximum(boxes[i, :2], boxes[i + 1 :, :2])  # (rest, 2)
        overlap = (torch.minimum(boxes[i, 2:], boxes[i + 1 :, 2:]) - corner).clamp(min=0).prod(1)
        iou = overlap / (area[i] + area[i + 1 :] - overlap)
        alive[i + 1 :] &= ~(iou > iou_threshold)  # 0/0 for two empty boxes: nan is not above, both stay
    return order[kept]
