"""`secateurs export`: a pruned network as a file for another runtime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from secateurs.cli import options
from secateurs.cli.artifacts import ArtifactOptions, Opened
from secateurs.cli.options import DataOptions, Flag, Folder
from secateurs.errors import ConfigError, shown

if TYPE_CHECKING:
    from secateurs import Data
    from secateurs.artifact import Card
    from secateurs.deploy import Exported


SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "openvino": ".xml"}


def export(
    artifact: Folder,
    *,
    to: Literal["onnx", "pt2", "openvino"] = "onnx",
    out: Path | None = None,
    fixed_batch: Flag = False,
    any_size: Flag = False,
    int8: Flag = False,
    artifact_options: ArtifactOptions | None = None,
    data_options: DataOptions | None = None,
    force: Flag = False,
) -> None:
    """Export a pruned network, and check the file in its own runtime.

    The file's outputs have to agree with the network's to a relative 1e-4. It takes any number of images, and holds what the
    artifact's card says: classes, normalization, input size, figures.

    ```
    $ secateurs export runs/digits --to onnx --out digits.onnx
    digits.onnx: 0.10 MB, any batch size; agrees with the network to 2.3e-07
    ```

    Parameters
    ----------
    artifact
        the folder of a pruned network, or hf:USER/NAME on the hub
    to
        onnx, pt2 (torch.export) or openvino (an .xml with a .bin beside it)
    out
        the file to write; by default model.onnx (or .pt2, .xml) in the artifact's folder, of one on the hub in the working
        directory
    fixed_batch
        take one image at a time: for networks whose code depends on the batch size
    any_size
        take images of any height and width that the network runs on; the file is checked in another size, too
    int8
        quantize weights and activations of the ONNX file to 8-bit integers, calibrated on 512 training images, and
        measure its accuracy
    force
        replace an existing file
    """
    import secateurs as sc
    from secateurs.artifact import on_hub

    path = out or (Path() if on_hub(artifact) else artifact) / f"model{SUFFIXES[to]}"
    if path.suffix != SUFFIXES[to]:
        raise ConfigError(f"--out {shown(path)}: the suffix for --to {to} is {SUFFIXES[to]}.")
    if os.path.lexists(path) and not force:
        raise ConfigError(f"{shown(path)} already exists: --force replaces it; or pass another --out.")
    if int8 and fixed_batch:
        raise ConfigError("--int8 is calibrated and measured on batches: omit --fixed-batch.")
    opened = Opened(artifact, artifact_options or ArtifactOptions())
    data = opened.data((data_options or DataOptions()).spec()) if int8 else None
    inputs = opened.inputs()
    done = sc.export(
        opened.network, path, inputs, dynamic_batch=not fixed_batch, dynamic_size=any_size,
        metadata=_metadata(opened.card, inputs), int8=data,
    )  # fmt: skip
    _show(done, int8)
    if data is not None and data.val is not None:
        _measure(opened, done, data)


def _metadata(card: Card, inputs: Any) -> dict[str, Any]:
    """What whoever serves the file has to know. inputs: those that it is exported on, which `--input` may have set."""
    from secateurs.artifact import Signature
    from secateurs.deploy.formats.format import as_in_files
    from secateurs.graph.inputs import map_tensors

    taken = Signature.of(map_tensors(as_in_files, inputs))
    figures = {"macs": card.after.macs, "params": card.after.params, "top1": card.after.top1, **card.after.metrics}
    return {
        **({} if card.signature is None else card.signature.model_dump(mode="json")),
        "inputs": taken.model_dump(mode="json")["inputs"],
        "method": card.method.name,
        "budget": card.budget,
        "figures": {name: value for name, value in figures.items() if value is not None},
        "secateurs": card.versions.get("secateurs"),
    }


def _show(done: Exported, int8: bool) -> None:
    batch = "any batch size" if done.dynamic_batch else "one image at a time"
    batch += ", any image size" * done.dynamic_size
    told = f"agrees with the network to {done.error:.1e}"
    if int8:  # of noise, which is not what it was calibrated on
        told = (
            f"8-bit integers; outputs for noise differ from the network's by up to {done.error:.0%}, as is to be expected: "
            "what the rounding costs is the accuracy on real images"
        )
    options.out().print(f"{shown(done.path)}: {done.size / 1e6:.2f} MB, {batch}; {told}", soft_wrap=True)


def _measure(opened: Opened, done: Exported, data: Data) -> None:
    """The accuracy of the file beside the network's."""
    from secateurs import Figures, training
    from secateurs.cli.evaluate import recorded_purpose
    from secateurs.deploy import FileModule
    from secateurs.report import columns, table

    card, network = opened.card, opened.network
    if card.functions:
        options.log("the accuracy of the file is not measured: the network was measured with functions of its own")
        return
    purpose = recorded_purpose(opened.folder, card)
    objective = purpose.objective(network, purpose.example(network, data))
    measured = {}
    for name, one in (("network", network), ("int8 file", FileModule(done.path))):
        found = training.evaluate(one, data.val, device="cpu", objective=objective)
        measured[name] = Figures(card.after.macs, card.after.params, found.top1, found.top5, found.loss, found.metrics)
    headed = columns(list(measured.values()))
    rows = table("", *headed)
    for name, figures in measured.items():
        rows.add_row(name, *(column(figures) for column in headed.values()))
    options.out().print(rows)
