"""Does the loader keep up? Batches per second of the loader beside training steps per second of ResNet-20.

    python benchmarks/loader.py [--quick] [--data folder:PATH] [--device cuda] [--batch-size 128] [--threads 2]

Without --data the images are random, 32x32, and written to a temporary folder as JPEG.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from secateurs.data import Loader, load
from secateurs.zoo import build


def write_images(root: Path, count: int) -> None:
    """`count` random JPEGs of 32x32 to train on and a tenth as many to validate on, in ten classes."""
    rng = np.random.default_rng(0)
    for split, images in (("train", count), ("val", count // 10)):
        for label in range(10):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for i in range(images // 10):
                coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                coarse.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{i:05}.jpg", quality=75)


def endless(loader: Loader) -> Iterator[Any]:
    """Epoch after epoch."""
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        yield from loader


def per_second(step: Callable[[], object], device: torch.device, seconds: float) -> float:
    """How often `step` runs per second, after a few rounds to warm up: the median of five stretches."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        step()
    rates = []
    for _ in range(5):
        wait()
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds / 5:
            step()
            done += 1
        wait()
        rates.append(done / (time.perf_counter() - start))
    return sorted(rates)[2]


def training_step(batch_size: int, device: torch.device) -> Callable[[], object]:
    """One step of SGD on ResNet-20, on one and the same batch."""
    torch.manual_seed(0)
    model = build("zoo:resnet20").to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = torch.randn(batch_size, 3, 32, 32, device=device), torch.randint(0, 10, (batch_size,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="2,000 images and a second for each figure")
    parser.add_argument("--data", help="folder:PATH; otherwise random images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, help="of torch; otherwise its own default")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device, seconds = torch.device(args.device), 1.0 if args.quick else 10.0

    with tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_CACHE_HOME"] = f"{temporary}/cache"
        if args.data is None:
            write_images(Path(temporary) / "images", 2_000 if args.quick else 20_000)
        spec = args.data or f"folder:{temporary}/images"
        options: dict[str, Any] = {"batch_size": args.batch_size, "device": args.device}
        rows: list[tuple[str, str]] = []
        for name in ("first start (decodes)", "second start (from the cache)"):
            start = time.perf_counter()
            data = load(spec, **options)
            rows.append((name, f"{time.perf_counter() - start:8.2f} s"))
        step_rate = per_second(training_step(args.batch_size, device), device, seconds)
        rows.append(("ResNet-20 training steps", f"{step_rate:8.1f} /s"))
        for name, loader in (
            ("loader, in memory", data.train),
            ("loader, decoding on the fly", load(spec, memory_limit=0, **options).train),
        ):
            batches = endless(loader)
            rate = per_second(lambda batches=batches: next(batches), device, seconds)  # type: ignore[misc]
            rows.append((name, f"{rate:8.1f} /s   {rate / step_rate:6.1f} x the steps"))
        print(f"{device}, {torch.get_num_threads()} threads, batches of {args.batch_size}, {len(data.train)} per epoch")
        for name, figure in rows:
            print(f"{name:<32}{figure}")


if __name__ == "__main__":
    main()
