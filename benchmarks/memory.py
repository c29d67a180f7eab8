"""Peak memory of a trace beside that of a forward pass: a process for each.

python benchmarks/memory.py resnet152 resnet18
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from rich.console import Console
from rich.table import Table

QUICK = ["resnet18"]


def peak(name: str, what: str) -> tuple[int, int]:
    """Peak memory in bytes of a fresh process that traces a network of torchvision, or runs it; and by how much that made
    it grow."""
    code = f"""
import resource, torch
from secateurs.zoo.vision import torchvision
import secateurs as sc
torch.set_num_threads(1)
x = torch.randn(1, 3, 224, 224)
small = torchvision().models.resnet18().eval()
sc.trace(small, x)
with torch.no_grad(): small(x)
model = torchvision().models.get_model({name!r}, weights=None).eval()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if {what!r} == "trace": sc.trace(model, x)
else:
    with torch.no_grad(): model(x)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(after, after - before)
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    unit = 1024 if sys.platform == "linux" else 1
    total, growth = (int(n) * unit for n in run.stdout.split())
    return total, growth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("networks", nargs="*", default=["resnet152", "resnet18"])
    args = parser.parse_args()
    table = Table("network", "forward MB", "trace MB", "beyond the loaded network: forward", "trace")
    for name in QUICK if args.quick else args.networks:
        (run, run_growth), (traced, trace_growth) = peak(name, "forward"), peak(name, "trace")
        table.add_row(name, *(f"{n / 1e6:.0f}" for n in (run, traced, run_growth, trace_growth)))
    Console().print(table)


if __name__ == "__main__":
    main()
