"""The headline rows of the five papers, each with its settings as a file for `secateurs prune --config`.

    python benchmarks/papers/run.py --list
    python benchmarks/papers/run.py --row epruner-resnet56 --data folder:data/cifar10 --weights r56.safetensors --minutes 9
    python benchmarks/papers/run.py --row epruner-resnet56 --profile reduced …       # ResNet-20, 5,000 images: two CPU cores
    python benchmarks/papers/run.py --page                                           # write docs/papers.md

A run is resumable: with `--minutes` it stops in time, exits with status 75, and the same command continues it (checkpoints are
saved every minute). What a finished one found is kept in results/, from which the page is made. ImageNet's rows need the images
as `folder:` data and torchvision's weights as a file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from page import write
from row import IMAGES, PROFILES, RESULTS, Row, rows

MORE = 75  # status: there is more to do
PATIENCE = 120  # seconds that an interrupted run has for its checkpoint

# -- running -----------------------------------------------------------------------------------------------------------


def run(row: Row, args: argparse.Namespace) -> int:
    """Run a row, or continue it, until it is done or the minutes are over. Returns the exit status."""
    out = args.out / f"{row.name}-{args.profile}-{args.seed}"
    out.mkdir(parents=True, exist_ok=True)
    settings = row.settings(args.profile) | {k: v for k in ("normalize",) if (v := getattr(args, k))}
    data = args.data
    if args.profile == "reduced" and data.startswith("folder:"):
        data = f"folder:{smaller(Path(data.removeprefix('folder:')), args.out / 'images')}"
    (out / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    command = [
        sys.executable, "-m", "secateurs", "prune", "--config", str(out / "config.yaml"), "--data", data, "--out",
        str(out / "run"), "--seed", str(args.seed), "--resume", *(["--device", args.device] if args.device else []),
        *(["--weights", str(args.weights)] if args.weights and "pretrain_epochs" not in settings else []),
    ]  # fmt: skip
    began = time.monotonic()
    process = subprocess.Popen(command)
    try:
        status = process.wait(None if args.minutes is None else max(1.0, 60 * args.minutes))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # it has saved its checkpoint within the last minute
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        status = MORE
    spent = _spent(out, time.monotonic() - began)
    if status == 0:
        save(row, args, settings, out / "run", spent)
    elif status == MORE:
        print(f"{row.name}: {spent / 60:.0f} minutes so far. The same command continues it.", file=sys.stderr)
    return status


def _spent(out: Path, seconds: float) -> float:
    """Seconds of all slices."""
    file = out / "seconds.json"
    total = seconds + (json.loads(file.read_text()) if file.exists() else 0.0)
    file.write_text(json.dumps(total))
    return total


def smaller(data: Path, out: Path) -> Path:
    """A folder of links to the first images of each class."""
    for split, count in IMAGES.items():
        given = next((p for name in (split, "val") if (p := data / name).is_dir()), None)
        if given is None:
            raise SystemExit(
                f"{data} has no folder {split}, nor val: pass --data folder:PATH, with train/<class> and test/<class>."
            )
        classes = sorted(p.name for p in given.iterdir() if p.is_dir())
        for name in classes:
            place = out / split / name
            place.mkdir(parents=True, exist_ok=True)
            for image in sorted((given / name).iterdir())[: count // len(classes)]:
                if not (place / image.name).is_symlink():
                    (place / image.name).symlink_to(image.resolve())
    return out


def save(row: Row, args: argparse.Namespace, settings: Mapping[str, Any], folder: Path, seconds: float) -> None:
    """Keep what a finished run found."""
    import torch

    import secateurs as sc

    card = sc.card(folder)
    named = dict(card.networks())
    before, after = card.networks()[0][1], card.after
    found = {
        "row": row.name, "profile": args.profile, "seed": args.seed, "settings": dict(settings),
        "figures": {
            name: {"top1": f.top1, "top5": f.top5, "macs": f.macs / before.macs, "params": f.params / before.params}
            for name, f in named.items()
        },
        "after": {"top1": after.top1, "top5": after.top5},
        "error": card.error, "minutes": round(seconds / 60, 1), "machine": args.machine or _machine(torch),
        "versions": card.versions,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{row.name}-{args.profile}-{args.seed}.json").write_text(json.dumps(found, indent=1) + "\n")


def _machine(torch: Any) -> str:
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{torch.get_num_threads()} CPU thread{'s' * (torch.get_num_threads() > 1)}, {platform.machine()}"


# -- the command -------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--row", action="append", default=[], help="its name; may be given several times")
    add("--list", action="store_true", help="list the rows")
    add("--page", action="store_true", help="write docs/papers.md from the results")
    add("--profile", choices=PROFILES, default="paper")
    add("--minutes", type=float, help="stop after so many, to be continued")
    add("--data", default=os.environ.get("PAPERS_DATA"), help="folder:PATH; or the environment's PAPERS_DATA")
    add("--weights", type=Path, help="of the original network; without them it is trained first")
    add("--normalize", help="as the weights were trained: imagenet or cifar10")
    add("--out", type=Path, default=Path("runs/papers"))
    add("--seed", type=int, default=0)
    add("--device")
    add("--machine", help="what the page calls this machine")
    return made


def main() -> int:
    args = parser().parse_args()
    if args.page:
        write()
        return 0
    known = rows()
    if args.list or not args.row:
        for row in known.values():
            f = row.figures
            print(
                f"{row.name:24} {f['data']:9} {f['metric']} {f['before']:.2f} → {f['after']:.2f}, {f['macs']:.1f}% of the MACs"
            )
        return 0
    for name in args.row:
        if name not in known:
            raise SystemExit(f"There is no row {name!r}: --list shows them.")
        if not args.data:
            raise SystemExit("Name the images: --data folder:PATH.")
        if status := run(known[name], args):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
