"""What Secateurs runs on: versions, devices, a compiler, and what is missing or broken.

Packages are imported in a process of their own: one that is broken may raise, end the process or never return, and is
reported in each case.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from secateurs.devices import first_line, processor
from secateurs.errors import SecateursError
from secateurs.importing import installing, openvino
from secateurs.version import __version__

PATIENCE = 120.0  # seconds that a package may take to import

# Distribution: module, the extra that brings it, and what it is for.
PACKAGES = {
    "torch": ("torch", None, "everything"),
    "numpy": ("numpy", None, "everything"),
    "safetensors": ("safetensors", None, "reading and writing weights"),
    "accelerate": ("accelerate", None, "training"),
    "pydantic": ("pydantic", None, "settings"),
    "torchvision": ("torchvision", "vision", "models torchvision:NAME"),
    "timm": ("timm", "vision", "models timm:NAME"),
    "pillow": ("PIL", "vision", "data folder:PATH"),
    "scikit-learn": ("sklearn", "demo", "the digits, which `secateurs demo` trains on"),
    "datasets": ("datasets", "data", "data hf:NAME and wds:SHARDS"),
    "matplotlib": ("matplotlib", "report", "pictures"),
    "jinja2": ("jinja2", "report", "reports"),
    "lightning": ("lightning", "lightning", "pruning in a Lightning trainer"),
    "transformers": ("transformers", "transformers", "pruning in a transformers trainer"),
    "onnx": ("onnx", "export", "export to ONNX"),
    "onnxscript": ("onnxscript", "export", "export to ONNX"),
    "onnxruntime": ("onnxruntime", "export", "ONNX files, and times in ONNX Runtime"),
    "openvino": ("openvino", "openvino", "export to OpenVINO, and times there"),
    "huggingface-hub": ("huggingface_hub", "hub", "artifacts hf:USER/NAME"),
    "torchmetrics": ("torchmetrics", "metrics", "the mean average precision of detection"),
    "faster-coco-eval": ("faster_coco_eval", "metrics", "the mean average precision of detection"),
    "ultralytics": ("ultralytics", "ultralytics", "YOLO with Ultralytics"),
    "ray": ("ray", "cluster", "comparisons on several machines"),
}
SLOW = ("lightning", "transformers", "ultralytics", "ray")  # to import: their version has to do


@dataclass
class Environment:
    """packages: {distribution: version, None where it is not installed}; problems: sentences that include the remedy."""

    secateurs: str
    python: dict[str, str]
    packages: dict[str, str | None]
    torch: dict[str, Any] = field(default_factory=dict)
    cpu: dict[str, Any] = field(default_factory=dict)
    accelerators: list[dict[str, Any]] = field(default_factory=list)
    no_accelerator: str = ""  # why there is none
    default_device: str | None = None  # as SECATEURS_DEVICE names it
    kernels: str = ""  # how stripe kernels for the CPU come about, or why they do not
    problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def look() -> Environment:
    """The environment of this process. Never raises."""
    packages = {name: _version(name) for name in PACKAGES}
    found = Environment(__version__, _python(), packages)
    found.missing = [
        f"{name}, for {use}: {_command(name, extra, packages['torch'])}"
        for name, (_, extra, use) in PACKAGES.items()
        if packages[name] is None
    ]
    answers = probe([name for name, version in packages.items() if version and name not in SLOW])
    for name, answer in answers.items():
        if problem := answer.get("problem"):
            found.problems.append(f"{name} {packages[name]} {problem}")
        found.problems.extend(answer.get("notes", ()))
    details = answers.get("torch", {})
    found.torch, found.accelerators = details.get("torch", {}), details.get("accelerators", [])
    found.no_accelerator = details.get("no_accelerator", "")
    found.cpu = {**_cpu(), **details.get("cpu", {})}
    found.default_device = os.environ.get("SECATEURS_DEVICE")
    if (named := found.default_device) and named.partition(":")[0] not in _kinds(found):
        found.problems.append(
            f"SECATEURS_DEVICE={named} does not name a device that can be used here: unset or change it"
        )
    found.kernels, problem = _kernels(details.get("kernel", ""))
    found.problems.extend([problem] if problem else [])
    return found


def _kinds(found: Environment) -> set[str]:
    return {"cpu", *(str(a["device"]).partition(":")[0] for a in found.accelerators)}


def _command(name: str, extra: str | None, torch: str | None) -> str:
    if torch and extra in ("vision", "ultralytics"):
        return installing(extra, torch)
    return f"pip install {name if extra is None else repr(f'secateurs[{extra}]')}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    except Exception:  # metadata that cannot be read
        return "of unknown version"


def _python() -> dict[str, str]:
    return {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "platform": platform.platform(),
    }


def _cpu() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"name": processor(), "cores": cores}


def _kernels(built: str) -> tuple[str, str]:
    """How stripe kernels for the CPU are compiled, or why they cannot be. built: the library, if there is one."""
    compiler = os.environ.get("CXX", "c++" if sys.platform != "win32" else "cl")
    version = first_line([compiler, "--version"])
    ninja = first_line(["ninja", "--version"])
    tools = ", ".join([version or f"no C++ compiler ({compiler})", f"ninja {ninja}" if ninja else "no ninja"])
    if built:
        return f"{tools}; compiled", ""
    if version and ninja:
        return f"{tools}; compiled when they are first used", ""
    remedy = [] if version else ["install a C++ compiler (g++ or clang++), or name one in CXX"]
    remedy += [] if ninja else ["pip install ninja"]
    return tools, f"The fused stripe kernels cannot be compiled, so slower ones are used: {'; '.join(remedy)}."


# -- in a process of their own -----------------------------------------------------------------------------------------

_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from secateurs.cli import environment; environment.child()"


def probe(names: Sequence[str], patience: float = PATIENCE) -> dict[str, dict[str, Any]]:
    """{distribution: the outcome of importing it}. If one ends the process, a new process imports the rest."""
    answers: dict[str, dict[str, Any]] = {}
    waiting = list(names)
    while waiting:
        command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), *waiting]
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=patience, check=False
            )
            out, end = done.stdout, f"ends the process when it is imported ({_status(done.returncode)})"
        except subprocess.TimeoutExpired as expired:
            out, end = expired.stdout or b"", f"is not imported within {patience:.0f} s"
        for name, answer in _answers(out):
            if name in waiting:
                answers[name] = answer
                waiting.remove(name)
        if waiting:
            answers[waiting.pop(0)] = {"problem": f"{end}. Install it again, or another release."}
    return answers


def _status(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"status {code}"


def _answers(out: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in out.decode(errors="replace").splitlines():
        if line.startswith(_MARK):
            name, answer = json.loads(line[len(_MARK) :])
            yield name, answer


_MARK = "secateurs-environment:"  # packages print things, too


def child() -> None:
    """Import the packages named on the command line, in order, and print the outcome of each."""
    for name in sys.argv[2:]:
        module, answer = PACKAGES[name][0], {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answer = _LOOKS.get(module, importlib.import_module)(module)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
            if isinstance(error, SecateursError):  # it names the package, its version and the remedy
                answer = {"notes": [str(error)]}
            else:
                answer = {"problem": f"cannot be imported: {type(error).__name__}: {reason}. Install it again."}
        print(f"{_MARK}{json.dumps([name, answer if isinstance(answer, dict) else {}])}", flush=True)


def _torch(_: str) -> dict[str, Any]:
    import torch

    from secateurs.devices import accelerator
    from secateurs.stripes import native
    from secateurs.training.precision import bf16_is_fast

    cpu = torch.device("cpu")
    found: dict[str, Any] = {
        "torch": {"version": torch.__version__, "built_for": _built_for()},
        "cpu": {
            "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "bf16": bf16_is_fast(cpu),
        },
        "kernel": str(native.library()) if native.library().exists() else "",
        "accelerators": [],
    }
    if (own := accelerator()) is None:
        found["no_accelerator"] = _why_none()
        return found
    found["notes"] = []
    for i in range(torch.accelerator.device_count()):
        device = torch.device(own.type, i)
        entry: dict[str, Any] = {"device": str(device)}
        found["accelerators"].append(entry)
        try:
            if hasattr(torch.get_device_module(device), "get_device_properties"):
                properties = torch.get_device_module(device).get_device_properties(i)
                entry["name"] = getattr(properties, "name", "")
                entry["memory"] = getattr(properties, "total_memory", 0)
            entry["bf16"] = bf16_is_fast(device)
            (torch.ones(1, device=device) + 1).item()  # a GPU that is too old for this build fails here
        except Exception as error:  # of a driver
            reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
            found["notes"].append(f"{device} cannot be used: {reason}. Until it can, give --device cpu.")
    return found


def _built_for() -> str:
    import torch

    if torch.version.hip is not None:
        return f"ROCm {torch.version.hip}"
    if torch.version.cuda is not None:
        return f"CUDA {torch.version.cuda}"
    if torch.backends.mps.is_built():
        return "MPS"
    return "XPU" if getattr(torch.version, "xpu", None) else "the CPU"


def _why_none() -> str:
    """PyTorch's own error when a tensor is moved to the accelerator that it was built for."""
    import torch

    built = _built_for()
    if built == "the CPU":
        return "PyTorch is built for the CPU only"
    kind = {"ROCm": "cuda", "CUDA": "cuda", "MPS": "mps", "XPU": "xpu"}[built.split()[0]]
    try:
        torch.empty(0, device=kind)
    except Exception as error:
        reason = str(error).strip().splitlines()[0].split(". ")[0].rstrip(".")
        return f"PyTorch is built for {built}, but cannot use it here: {reason}"
    return f"PyTorch is built for {built}, and finds no device"


def _torchvision(_: str) -> dict[str, Any]:
    from secateurs.zoo import vision

    module = vision.torchvision()
    if module.extension._has_ops():
        return {}
    return {
        "notes": [
            f"torchvision {_version('torchvision')} cannot load its operators with this torch. Models work, except that of "
            "its operators only `nms` can be called (detection, slowly). "
            + _fitting(_version("torch"), _version("torchvision"))
        ]
    }


def _fitting(torch: str | None, torchvision: str | None) -> str:
    """Which torchvision to install: each release is made for one of torch, 0.21 for 2.6, 0.22 for 2.7, and so on."""
    found = re.match(r"2\.(\d+)\.", torch or "")
    release = f"0.{int(found[1]) + 15}" if found else ""
    if release and torchvision and not torchvision.startswith(f"{release}."):
        return f"torch {torch} needs torchvision {release}: pip install 'torchvision=={release}.*'."
    return "Install the build of it that belongs to this torch."


def _timm(_: str) -> dict[str, Any]:
    from secateurs.zoo import vision

    vision.timm()
    return {}


_LOOKS: dict[str, Any] = {
    "torch": _torch, "torchvision": _torchvision, "timm": _timm, "openvino": lambda module: openvino(),
}  # fmt: skip
