"""All imports of torchvision and timm.

A torchvision built for CUDA cannot load its C++ operators next to a CPU build of torch, and then `import torchvision`
fails with "operator torchvision::nms does not exist". The operators are declared here only after that failure, `nms`
and `roi_align` with implementations in plain PyTorch. The networks can then be built and run; only detection heads need the
operators. torchvision's own extension is always tried first: if it loads, a second declaration would abort the process.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from secateurs.errors import SpecError
from secateurs.importing import installing
from secateurs.zoo import regions

_ROI = "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_DEFORM = (
    "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, "
    "SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, "
    "bool use_mask"
)
# The operators that torchvision registers fake and autocast kernels for while it is imported.
_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align": f"({_ROI}, int sampling_ratio, bool aligned) -> Tensor",
    "roi_pool": f"({_ROI}) -> (Tensor, Tensor)",
    "ps_roi_align": f"({_ROI}, int sampling_ratio) -> (Tensor, Tensor)",
    "ps_roi_pool": f"({_ROI}) -> (Tensor, Tensor)",
    "deform_conv2d": f"({_DEFORM}) -> Tensor",
}
_MISSING = re.compile(r"operator torchvision::\w+ does not exist")  # PyTorch's message
_libraries: list[torch.library.Library] = []  # operators live as long as their Library object
_defined: set[str] = set()  # the operators that were declared here


@functools.cache
def torchvision() -> ModuleType:
    """Import and return `torchvision`, even if its C++ operators do not load.

    Raises SpecError if it is not installed or does not work with the installed PyTorch.
    """
    if "torchvision" in sys.modules:
        return sys.modules["torchvision"]
    if importlib.util.find_spec("torchvision") is None:
        raise _missing("torchvision")
    if not hasattr(torch.ops.torchvision, "nms") or _loaded():
        try:
            return _imported("torchvision")
        except Exception as error:  # from torchvision's own code
            if not _MISSING.search(str(error)):
                raise _broken("torchvision", error) from error
    return _without_extension()


@functools.cache
def timm() -> ModuleType:
    """Import and return `timm`. Raises SpecError if it is not installed or does not work with the installed PyTorch."""
    if "timm" in sys.modules:
        return sys.modules["timm"]
    if importlib.util.find_spec("timm") is None:
        raise _missing("timm")
    torchvision()  # timm imports it
    try:
        return _imported("timm")
    except Exception as error:  # from timm's own code
        raise _broken("timm", error) from error


def _missing(package: str) -> SpecError:
    return SpecError(
        f"This model needs {package}, which is not installed. Run: {installing('vision', torch.__version__)}"
    )


def _broken(package: str, error: Exception) -> SpecError:
    reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return SpecError(
        f"{package} {_version(package)} cannot be imported with torch {torch.__version__}: {type(error).__name__}: "
        f"{reason}. Install the release that matches this torch. `secateurs env` shows what is installed."
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a plain folder on sys.path
        return "(of unknown version)"


def _imported(package: str) -> ModuleType:
    """Import a package. Removes from sys.modules what a failed import leaves there, which would break a second import."""
    _forget_parts(package)
    try:
        return importlib.import_module(package)
    except BaseException:
        _forget_parts(package)
        raise


def _forget_parts(package: str) -> None:
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        del sys.modules[name]


def _loaded() -> bool:
    """Whether the existing operators are those of torchvision's own extension."""
    paths = [Path(library) for library in torch.ops.loaded_libraries]
    return any(path.parent.name == "torchvision" and path.name.startswith("_C") for path in paths)


def operators() -> bool:
    """Whether torchvision uses its own C++ operators rather than those in plain PyTorch."""
    torchvision()
    return not _defined


def _without_extension() -> ModuleType:
    """Import torchvision with its missing operators declared here.

    Its extension is not tried again: loading it on top of these declarations would abort the process.
    """
    define_operators()
    load_library = torch.ops.load_library

    def load_another(path: Any) -> None:
        if Path(path).name.startswith("_C"):
            raise OSError(f"{path} does not load with torch {torch.__version__}")
        load_library(path)

    torch.ops.load_library = load_another  # type: ignore[method-assign]
    try:
        module = _imported("torchvision")
    except Exception as error:  # from torchvision's own code
        raise _broken("torchvision", error) from error
    finally:
        del torch.ops.load_library  # the instance attribute; the class's remains
    # `ops.nms` and `ops.roi_align` check for the extension before they look for the operators, which now exist. If that
    # check fails, `ops.roi_align` takes gigabytes, is compiled at its first call, and hides its operators from a trace.
    for name in ("boxes", "roi_align"):
        ops = importlib.import_module(f"torchvision.ops.{name}")
        ops._assert_has_ops = lambda: None  # type: ignore[attr-defined]
        if name in _defined:
            ops._has_ops = lambda: True  # type: ignore[attr-defined]
    return module


def define_operators() -> None:
    """Declare torchvision's missing operators. Of these, only `nms` and `roi_align` can be called, on any device."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    bodies = {"nms": regions.nms, "roi_align": regions.roi_align}
    missing = [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    for name in missing:
        library.define(name + _SCHEMAS[name])
        for key in ("CPU", "CUDA") if name in bodies else ():
            library.impl(name, bodies[name], key)
    if "roi_align" in missing:
        torch.library.register_autograd(
            "torchvision::roi_align", regions.roi_align_backward, setup_context=regions.remember, lib=library
        )
    _defined.update(missing)
    _libraries.append(library)
