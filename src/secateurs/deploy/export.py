"""Export a network to a file, and check the file in its own runtime."""

from __future__ import annotations

import io
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateurs.deploy.detectors import check_exportable, matched, resized
from secateurs.deploy.dynamic import Dynamic, larger, output_names, sides
from secateurs.deploy.formats import FORMATS, Format
from secateurs.deploy.formats.format import as_in_files
from secateurs.deploy.inputs import batch_of, batched, images_of
from secateurs.deploy.int8 import quantize
from secateurs.devices import check_values
from secateurs.errors import ConfigError, ExportError, SecateursError, Setting, nearest, shown
from secateurs.files import check_writable, dump_json
from secateurs.graph.copies import copied
from secateurs.graph.faults import running
from secateurs.graph.inputs import call, check_inputs, check_model, map_tensors, tensors
from secateurs.stripes import StripeConv
from secateurs.surgery.compare import disagreement

Order = Callable[[list[Tensor], list[Tensor]], list[Tensor]]
# Errors of exporters that fixed axes do not help against: a value that decides, and an op that is not known.
ANY_SHAPE = frozenset({"GuardOnDataDependentSymNode", "DispatchError", "UnsupportedOperatorError"})
AGREEMENT = 1e-4  # relative difference of a file's outputs from the network's


@dataclass(frozen=True)
class Exported:
    """An exported file. error: the largest relative difference of its outputs from the network's. size: bytes on disk.
    dynamic_batch: whether it takes any number of examples. dynamic_size: whether it takes images of any size."""

    path: Path
    error: float
    size: int
    dynamic_batch: bool
    dynamic_size: bool = False


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    metadata: Mapping[str, Any] | None = None,
    int8: Any = None,
) -> Exported:
    """Export a network to ONNX (`.onnx`), torch.export (`.pt2`) or OpenVINO (`.xml`, with a `.bin` next to it).

    The file is run in its own runtime on the example inputs and, if its batch or size is dynamic, on other inputs. Its outputs
    must agree with the network's to a relative 1e-4. Only then is it moved to `path`, where it replaces an existing file. The
    model is not modified: a copy is exported in float32, in eval mode. Stripe convolutions become the equivalent dense
    convolutions. Outputs are named by what the network returns: the keys of a dict, or else output, or output0, output1 …
    Values that are not tensors are left out, and so are the types of objects and data classes that hold tensors.

    A torchvision detector, which takes a list of images, can only be exported to ONNX. The file takes as many images as there
    are in the example inputs, each of any size. torchvision's C++ operators must be loadable.

    example_inputs: as for `trace`.
    dynamic_batch: let the first axis of all inputs have any size. Has no effect on a detector.
    dynamic_size: let the height and width of images (N, C, H, W), and all three sides of volumes, have any size that the
        network accepts. The file is also run on inputs of twice the height and three times the width.
    metadata: JSON-serializable; it is stored in the file, under the key "secateurs".
    int8: batches of inputs or of pairs (inputs, targets), or a `Data`. The ONNX file then has 8-bit weights and activations,
        from ONNX Runtime's static quantization, calibrated on the first 512 images. The agreement is then reported
        but not required: measure the accuracy of the file.

    Raises ConfigError for an unknown suffix and for packages that are not installed, TraceError for inputs that the network
    does not run on, and ExportError for a network that the exporter rejects and for a file that does not agree.
    """
    check_model(model)
    check_values(model)
    check_inputs(example_inputs)
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"path={path!r:.60} is not the path of a file, such as 'small.onnx'.")
    path = Path(path)
    format = _format(path, int8)
    if path.is_dir():
        raise ConfigError(f"{shown(path)} is a folder: give the path of a file.")
    if format.beside and not os.path.lexists(path) and os.path.lexists(other := path.with_suffix(format.beside)):
        raise ConfigError(
            f"{shown(other)} exists, without its {shown(path.name)}, and would be overwritten: move it, or choose another path."
        )
    if int8 is not None and not dynamic_batch:
        raise ConfigError(Setting("int8"), " is calibrated on batches: it needs ", Setting("dynamic_batch", True), ".")
    try:
        about = dump_json(dict(metadata or {}))
    except (TypeError, ValueError) as wrong:
        raise ConfigError(Setting("metadata"), f" must be JSON-serializable: {wrong}.") from None
    check_writable(path.parent)
    images = images_of(example_inputs)
    dynamic = Dynamic(dynamic_batch and images is None, dynamic_size and images is None)
    size = batch_of(example_inputs) if images is None else None
    if size == 0:
        raise ConfigError("The example inputs are empty: their first axis, the batch, has length 0.")
    if dynamic.batch and not size and tensors(example_inputs):  # inputs without tensors fail below
        raise ConfigError(
            "The example inputs have no common first axis that could be a batch: export with ",
            Setting("dynamic_batch", False), ".",
        )  # fmt: skip
    if dynamic.size and not any(sides(x) for x in tensors(example_inputs)):
        raise ConfigError(
            Setting("dynamic_size", True), " is for images (N, C, H, W) and volumes: the example inputs have none."
        )
    network, inputs = copied(model).cpu().float().eval(), map_tensors(as_in_files, example_inputs)
    checks = [inputs]
    if dynamic.batch and size:
        inputs = batched(inputs, max(size, 2))  # exporters treat an axis of size 1 as a constant
        checks += [inputs, batched(inputs, size + 2)]
    if images is not None:
        check_exportable(network, format.suffix)
        checks.append(resized(inputs))
    elif dynamic.size:
        checks.append(larger(checks[0]))
    with running(network, checks[0]):
        returned = _returned(network, checks[0])
    due = [_due(returned)]
    due += [_outputs(network, given, checks[0]) for given in checks[1:]]
    for layer in network.modules():
        if isinstance(layer, StripeConv):
            layer.hold_()  # OpenVINO miscomputes the ops that make the weights
    names = output_names(returned)
    plain = all(isinstance(x, Tensor | int | float | None) for x in pytree.tree_leaves(returned))
    if images is None and not (format.structured and plain):
        network.register_forward_hook(lambda module, args, found: tuple(tensors(found)))  # exporters take nothing else
        names = names if len(names) == len(due[0]) else output_names(tuple(due[0]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".exporting-") as folder:
        made = Path(folder, path.name)
        _write(format, network, made, inputs, dynamic, names, about)
        if int8 is not None:
            _quantize(made, int8)
        error = _disagreement(
            format, made, checks, due, None if images is None else partial(matched, images=len(images))
        )
        if int8 is None and not error <= AGREEMENT:
            raise ExportError(
                f"The {format.name} file does not agree with the network: outputs differ by a relative {error:.1e}, and "
                f"{AGREEMENT:g} is allowed. It was not kept."
            )
        names = sorted(os.listdir(folder), key=lambda name: name == path.name)  # companion files come first
        bytes_ = sum(os.path.getsize(Path(folder, name)) for name in names)
        try:
            for name in names:
                os.replace(Path(folder, name), path.parent / name)
        except OSError as failed:
            raise ExportError(f"{shown(path)} cannot be written: {failed.strerror or failed}.") from failed
    return Exported(path, error, bytes_, dynamic.batch, dynamic.size or images is not None)


def _format(path: Path, int8: Any) -> Format:
    format = FORMATS.get(path.suffix)
    if format is None:
        raise ConfigError(
            f"{shown(path)}: {path.suffix or 'no suffix'} is not a format that can be exported. "
            f"{nearest(path.suffix.lower(), FORMATS)}"
        )
    if format.missing:
        raise ConfigError(f"{format.name} cannot be exported here: {format.missing}.")
    if int8 is not None and path.suffix != ".onnx":
        raise ConfigError(Setting("int8"), f" is for .onnx files, not for {path.suffix}.")
    return format


@torch.no_grad()
def _returned(network: nn.Module, inputs: Any) -> Any:
    return call(network, inputs)


def _due(returned: Any) -> list[Tensor]:
    return [as_in_files(x) for x in tensors(returned)]


def _outputs(network: nn.Module, inputs: Any, given: Any) -> list[Tensor]:
    """Run the network on more or larger examples than were given, and return its outputs."""
    try:
        return _due(_returned(network, inputs))
    except Exception as error:  # from the user's own code
        resized = [sides(x) for x, y in zip(tensors(inputs), tensors(given), strict=True) if sides(x) != sides(y)]
        size = f"of {'×'.join(map(str, resized[0]))}" if resized else f"with a batch of {batch_of(inputs)}"
        raise ExportError(
            f"{type(network).__name__} does not run on inputs {size}: {_reason(error)}.",
            hint=() if images_of(inputs) else Dynamic(not resized, bool(resized)).hint,
        ) from error


def _write(
    format: Format, network: nn.Module, path: Path, inputs: Any, dynamic: Dynamic, names: Sequence[str], metadata: str
) -> None:
    try:
        with _quiet():
            format.write(network, path, inputs, dynamic.shapes(network, inputs), names, metadata)
    except ExportError:
        raise
    except Exception as error:  # whatever exporters raise
        cause = _cause(error)
        raise ExportError(
            f"{type(network).__name__} cannot be exported to {format.name}: {_reason(cause)}.",
            hint=() if type(cause).__name__ in ANY_SHAPE else dynamic.hint,
        ) from error


def _quantize(path: Path, data: Any) -> None:
    try:
        with _quiet():
            quantize(path, data)
    except SecateursError:
        raise
    except Exception as error:  # whatever ONNX Runtime raises
        raise ExportError(f"ONNX Runtime cannot quantize the network: {_reason(error)}.") from error


def _disagreement(
    format: Format, path: Path, checks: Sequence[Any], due: Sequence[list[Tensor]], order: Order | None
) -> float:
    """Return the largest relative difference of the file's outputs from the expected ones, `due`. order: reorders outputs."""
    try:
        with _quiet():
            file = format.open(path)
            found = [file.run(inputs) for inputs in checks]
    except Exception as error:  # whatever runtimes raise
        raise ExportError(
            f"The {format.name} file was written, but does not run: {_reason(error)}. It was not kept."
        ) from error
    pairs = [(a if order is None else order(a, b), b) for a, b in zip(found, due, strict=True)]
    return max(disagreement(a, b, "original") for a, b in pairs)


def _cause(error: BaseException) -> BaseException:
    """Return what PyTorch's ONNX exporter wraps in errors of its own, whose first lines are advice for its developers."""
    while type(error).__module__.startswith("torch.onnx") and error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    """Return 'RuntimeError: the first line of its message', skipping lines that only introduce the next one, lists of next
    steps, and how to log more."""
    plain = re.sub(r"\x1b\[[0-9;]*m| For more information, run with .*", "", str(error))  # the first are colors
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    told = next(
        (line for line in lines if not (line.endswith(":") or line.startswith(("- ", "#")))),
        (lines or ["no reason given"])[0],
    )
    return f"{type(error).__name__}: {told[:300].rstrip('.')}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporters print, log and warn about. None of it can be acted on, and the file is checked."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(max(before, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(before)
