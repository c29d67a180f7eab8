"""Whether what every method returns exports: each method on each network of the zoo, to each format, the file run in its own
runtime and compared with the network.

    python benchmarks/exports.py --quick
    python benchmarks/exports.py --out exports.json              # resumable: what the file has is not run again

Networks have random weights, and methods that train take four steps on random images: what is exported is a network of the
right structure, whatever its accuracy.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import secateurs as sc
from secateurs.files import dump_json, write_whole
from secateurs.testing.checks import needs_data, quick
from secateurs.testing.networks import randomize
from secateurs.zoo import names

FORMATS = ("onnx", "pt2")
SKIPPED = "oracle"  # hours on a deep network; it cuts channels as every criterion does


def pruned(network: str, method: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = randomize(sc.build(f"zoo:{network}")).eval()
    images = torch.randn(16, 3, 32, 32)
    chosen = quick(method)
    data = sc.Data(train=[(images, torch.arange(16) % 10)]) if needs_data(type(chosen)) else None
    result = sc.prune(model, images[:1], chosen, sc.Budget(macs=0.5), data, calibrate=False, progress="silent")
    return result.model


def errors(network: str, method: str, folder: Path) -> dict[str, float | str]:
    """The relative difference of each format's file from the network, or why there is none."""
    found: dict[str, float | str] = {}
    try:
        small = pruned(network, method)
    except sc.SecateursError as error:  # such as a criterion for batch norms, of layers that have none
        return {"prune": str(error)}
    for suffix in FORMATS:
        try:
            found[suffix] = sc.export(small, folder / f"network.{suffix}", torch.randn(2, 3, 32, 32)).error
        except sc.SecateursError as error:
            found[suffix] = str(error)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two networks, four methods")
    parser.add_argument("--network", action="append")
    parser.add_argument("--method", action="append")
    parser.add_argument("--out", type=Path, default=Path("exports.json"))
    options = parser.parse_args()
    networks = options.network or (["small_cnn", "resnet20"] if options.quick else names("zoo"))
    methods = options.method or (["l2", "epruner", "npn", "pff"] if options.quick else sc.methods())
    rows = json.loads(options.out.read_text()) if options.out.exists() else {}
    console, folder = Console(width=160), options.out.resolve().parent
    for network in networks:
        for method in methods:
            key = f"{network} {method}"
            if key not in rows and method != SKIPPED:
                rows[key] = errors(network, method, folder)
                write_whole(options.out, dump_json(rows))
                console.print(key, rows[key])
    for suffix in FORMATS:
        (folder / f"network.{suffix}").unlink(missing_ok=True)
    table = Table("method", *networks)
    for method in methods:
        table.add_row(method, *(_worst(rows.get(f"{network} {method}")) for network in networks))
    console.print(table)
    console.print(f"The larger relative difference of {' and '.join(FORMATS)}. PyTorch {torch.__version__}.")


def _worst(found: dict[str, float | str] | None) -> str:
    if found is None:
        return ""
    if "prune" in found:
        return "refused"
    figures = [value for value in found.values() if not isinstance(value, str)]
    return f"{max(figures):.0e}" if len(figures) == len(FORMATS) else "failed"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
