"""U-Nets pruned by every method and recovered: mIoU before, after the cut, calibrated, recovered.

Two networks, an own small U-Net and that of segmentation_models_pytorch (encoder resnet18, random weights; skipped where the
package is not installed), are trained on a set that is drawn here: red discs, green squares and blue triangles on noise.
Each method prunes them to `--macs`. A method that trains has `--search` epochs for it; the others have them for recovery, too.

A cell is a `PruneRun` in OUT; a stopped run resumes where it was. The table is Markdown.

    python benchmarks/segmentation.py --out runs/segmentation
    python benchmarks/segmentation.py --out /tmp/quick --quick        # 16 images: only to see that it runs
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import secateurs as sc
from secateurs.artifact import Figures
from secateurs.files import read_tensors
from secateurs.methods import TrainingMethod, resolve
from secateurs.report import short
from secateurs.report.figures import number

METHODS = ("l2", "aofp", "npn", "pff", "onestep", "epruner")
SIDE, CLASSES = 64, 4
COLORS = {1: (190, 90, 90), 2: (90, 190, 90), 3: (90, 90, 190)}
SPEC = {"normalize": "0.5/0.25", "batch_size": 8}


def block(inside: int, outside: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inside, outside):
        layers += [nn.Conv2d(channels, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Three scales, skip connections by concatenation."""

    def __init__(self, width: int = 12, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.first, self.second, self.third = block(3, width), block(width, 2 * width), block(2 * width, 4 * width)
        self.up2, self.up1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.join2, self.join1 = block(4 * width, 2 * width), block(2 * width, width)
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)  # (N, width, H, W)
        b = self.second(self.pool(a))  # (N, 2 width, H/2, W/2)
        c = self.third(self.pool(b))
        b = self.join2(torch.cat([self.up2(c), b], 1))
        return self.head(self.join1(torch.cat([self.up1(b), a], 1)))


def smp_unet() -> nn.Module:
    from secateurs.zoo.vision import torchvision

    torchvision()  # first: see there
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet18", encoder_weights=None, classes=CLASSES, decoder_channels=(64, 48, 32, 16, 16))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"U-Net (own)": UNet, "smp.Unet (resnet18)": smp_unet}


def draw(folder: Path, counts: dict[str, int], seed: int = 0) -> None:
    """Images and masks: one to three shapes each, the last one in front; a thin frame of 255 around every shape."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    for split, count in counts.items():
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = random.normal(random.uniform(60, 180, 3), 40, (SIDE, SIDE, 3))
            mask = np.zeros((SIDE, SIDE), np.uint8)
            for _ in range(random.integers(1, 4)):
                kind, size = int(random.integers(1, CLASSES)), int(random.integers(7, 15))
                dy, dx = y - random.integers(10, SIDE - 10), x - random.integers(10, SIDE - 10)
                depth = {
                    1: np.hypot(dy, dx),
                    2: np.maximum(abs(dy), abs(dx)),
                    3: np.maximum(1.7 * abs(dx) + 0.5 * dy + 0.3 * size, dy),
                }[kind]
                mask[depth < size + 1] = 255
                mask[depth < size] = kind
                color = np.array(COLORS[kind]) + random.uniform(-50, 50, 3)
                image[depth < size] = random.normal(color, 40, (int((depth < size).sum()), 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / split / "images" / f"{i:04d}.png")
            Image.fromarray(mask).save(folder / split / "masks" / f"{i:04d}.png")


def trained(name: str, data: sc.DataSpec, folder: Path, epochs: float, seed: int) -> nn.Module:
    """The network after training, which is the first stage of a run that cuts nothing worth mentioning."""
    torch.manual_seed(seed)
    network, file = NETWORKS[name](), folder / "trained.safetensors"
    if not file.exists():
        from safetensors.torch import save_file

        from secateurs.tasks import resolve as task
        from secateurs.training import Engine, Recipe

        Engine(network, data.load(seed, torch.device("cpu"), task("segmentation")), Recipe(epochs=epochs, lr=0.05),
               seed=seed, device="cpu", title=name).fit()  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file)
    network.load_state_dict(read_tensors(file))
    return network


def cell(network: nn.Module, method: str, data: sc.DataSpec, folder: Path, args: argparse.Namespace) -> list[Figures]:
    searches = isinstance(resolve(method), TrainingMethod)
    run = sc.PruneRun(
        network, data, folder, method=resolve(method, **({"epochs": args.search} if searches else {})),
        budget=sc.Budget(macs=args.macs), recover=sc.Recover(epochs=args.recover + (0 if searches else args.search)),
        task="segmentation", seed=args.seed, device="cpu", log=print,
    )  # fmt: skip
    result = run.start(resume=True)
    return [result.before, result.cut, result.calibrated, result.after]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", action="append", choices=sorted(NETWORKS))
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--epochs", type=float, default=8, help="of training the original")
    parser.add_argument("--search", type=float, default=2)
    parser.add_argument("--recover", type=float, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.images, args.epochs, args.search, args.recover = 16, 1, 1, 1
    torch.set_num_threads(1)
    folder = args.out / "data"
    if not folder.exists():
        draw(folder, {"train": args.images, "val": max(8, args.images // 4)})
    data = sc.DataSpec(f"folder:{folder}", **SPEC)
    lines = [
        "| network | method | MACs | before | after the cut | calibrated | recovered |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in args.network or NETWORKS:
        if name.startswith("smp") and importlib.util.find_spec("segmentation_models_pytorch") is None:
            print("segmentation_models_pytorch is not installed: its U-Net is left out")
            continue
        place = args.out / name.split()[0].lower()
        network = trained(name, data, place, args.epochs, args.seed)
        for method in args.method or METHODS:
            stages = cell(network, method, data, place / method, args)
            macs = f"{short(stages[-1].macs)} of {short(stages[0].macs)}"
            lines.append(f"| {name} | {method} | {macs} | {' | '.join(number(s.metrics['mIoU']) for s in stages)} |")
            print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
