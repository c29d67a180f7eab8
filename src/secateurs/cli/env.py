"""`secateurs env`: the environment, for bug reports and troubleshooting."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secateurs.cli import options

if TYPE_CHECKING:
    from secateurs.cli.environment import Environment


def env(*, as_json: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False) -> None:
    """Show versions, devices and compilers, what is missing or broken, and what that means.

    Put its output into bug reports. Each package is imported in another process, so that a broken one is reported and
    does not end the command.

    ```
    $ secateurs env
    secateurs       0.1.0
    Python          3.11.7 (CPython)
    system          Linux-6.18.44-x86_64-with-glibc2.36
    torch           2.14.1, built for CUDA 13.0
    numpy           2.4.6
    safetensors     0.8.0
    accelerate      1.15.0
    pydantic        2.14.4
    torchvision     0.29.1
    timm            1.0.31
    pillow          13.0.0
    scikit-learn    1.9.1
    datasets        5.2.0
    jinja2          3.1.6
    CPU             AMD EPYC, 2 cores, AVX512, bfloat16 in hardware
    accelerator     none: PyTorch is built for CUDA 13.0, but cannot use it here: Found no NVIDIA driver on your system
    stripe kernels  c++ (Debian 12.2.0-14+deb12u1) 12.2.0, ninja 1.11.1; compiled when they are first used

    Not installed:
    - matplotlib, for pictures: pip install 'secateurs[report]'
    ...
    - lightning, for pruning in a Lightning trainer: pip install 'secateurs[lightning]'
    - transformers, for pruning in a transformers trainer: pip install 'secateurs[transformers]'
    ```

    Parameters
    ----------
    as_json
        print JSON instead
    """
    from secateurs.cli.environment import look

    found = look()
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    else:
        _show(found)


def _show(found: Environment) -> None:
    console = options.out()
    lines = [
        ("secateurs", found.secateurs),
        ("Python", f"{found.python['version']} ({found.python['implementation']})"),
        ("system", found.python["platform"]),
    ]
    for name, version in found.packages.items():
        if version is not None:
            build = found.torch.get("built_for") if name == "torch" else None
            lines.append((name, version if build is None else f"{version}, built for {build}"))
    lines.append(("CPU", _cpu(found)))
    lines.extend((a["device"], _accelerator(a)) for a in found.accelerators)
    if found.no_accelerator:
        lines.append(("accelerator", f"none: {found.no_accelerator}"))
    if found.default_device is not None:
        lines.append(("default device", f"{found.default_device} (SECATEURS_DEVICE)"))
    lines.append(("stripe kernels", found.kernels))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        console.print(f"{name:<{width}}  {value}", soft_wrap=True)
    for title, entries in (("Problems:", found.problems), ("Not installed:", found.missing)):
        if entries:
            console.print()
            console.print(title)
            for entry in entries:
                console.print(f"- {entry}", soft_wrap=True)


def _cpu(found: Environment) -> str:
    cpu = found.cpu
    parts = [cpu["name"], f"{cpu['cores']} cores"]
    if "instructions" in cpu:
        parts += [cpu["instructions"], "bfloat16 in hardware" if cpu["bf16"] else "no bfloat16 in hardware"]
    return ", ".join(parts)


def _accelerator(entry: dict[str, object]) -> str:
    memory = entry.get("memory")
    parts = [
        str(entry.get("name") or "of unknown kind"),
        *([f"{memory / 2**30:.0f} GiB"] if isinstance(memory, int) and memory else []),
        *(["bfloat16"] if entry.get("bf16") else []),
    ]
    return ", ".join(parts)
