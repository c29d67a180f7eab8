"""Object detection with pruned networks, as section 4.3.1 of NPN's paper: a Faster R-CNN is trained from the backbone as it
was, and the same from a backbone that NPN pruned on classification. A third detector is pruned as a whole.

The data is benchmarks/shapes.py's. The backbone is trained on crops of the shapes on training images, NPN prunes it there, and
each detector is trained by the same recipe. The third one is the first, pruned by NPN on detection, and trained for as long
again in all; so is the first, for comparison. Each result is kept in OUT when it is there, and not measured again.

    python benchmarks/detection.py --out runs/detection
    python benchmarks/detection.py --out runs/detection-50 --backbone resnet50
    python benchmarks/detection.py --out /tmp/quick --quick          # a few images, a few steps: only to see that it runs
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shapes
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import secateurs as sc
from secateurs import training
from secateurs.data.samples import SampleLoader
from secateurs.tasks import Detection, Reading
from secateurs.training import Engine, Objective, Recipe
from secateurs.zoo.vision import torchvision

LEVELS = ("layer2", "layer3", "layer4")  # that the feature pyramid reads
FPN = 64  # its channels
CROP = 32  # pixels, of the images that the backbone is trained on
SIDES = (96, 128)  # the shorter side of images, and the longest
COLUMNS = ("map", "map_50", "map_75")


def crops(loader: SampleLoader, rounds: int) -> Iterator[tuple[Tensor, int]]:
    """Every shape of the images, with a margin, and its class from 0. rounds: epochs, each augmented differently."""
    for epoch in range(rounds):
        loader.set_epoch(epoch)
        for images, targets in loader:
            for image, target in zip(images, targets, strict=True):
                for (left, top, right, bottom), label in zip(
                    target["boxes"].tolist(), target["labels"].tolist(), strict=True
                ):
                    margin = 0.15 * max(right - left, bottom - top)
                    x0, y0 = max(0, round(left - margin)), max(0, round(top - margin))
                    cut = image[:, y0 : round(bottom + margin), x0 : round(right + margin)]
                    yield (
                        nn.functional.interpolate(cut[None], (CROP, CROP), mode="bilinear", antialias=True)[0],
                        label - 1,
                    )


def batches(found: Iterator[tuple[Tensor, int]], size: int) -> list[tuple[Tensor, Tensor]]:
    images, labels = zip(*found, strict=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = torch.stack(images)[order], torch.tensor(labels)[order]
    return list(zip(x.split(size), y.split(size), strict=True))


def detector(backbone: nn.Module, classes: int) -> nn.Module:
    """A Faster R-CNN, smaller than torchvision's: for images of about 100 pixels and few classes."""
    torchvision()
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(0)
    widths: list[int] = []
    handles = [
        backbone.get_submodule(name).register_forward_hook(lambda m, args, out: widths.append(out.shape[1]))
        for name in LEVELS
    ]
    with torch.no_grad():
        backbone.eval()(torch.zeros(1, 3, 64, 64))
    for handle in handles:
        handle.remove()
    names = [str(i) for i in range(len(LEVELS))]
    pyramid = BackboneWithFPN(backbone, dict(zip(LEVELS, names, strict=True)), widths, FPN)
    return FasterRCNN(
        pyramid, min_size=SIDES[0], max_size=SIDES[1],
        rpn_anchor_generator=AnchorGenerator(((16,), (24,), (32,), (48,)), ((0.75, 1.0, 1.33),) * 4),
        box_roi_pool=MultiScaleRoIAlign(names, 7, 2), box_head=TwoMLPHead(FPN * 49, 256),
        box_predictor=FastRCNNPredictor(256, classes + 1), rpn_pre_nms_top_n_train=200, rpn_post_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=100, rpn_post_nms_top_n_test=50, rpn_batch_size_per_image=64, box_batch_size_per_image=32,
    )  # fmt: skip


class Study:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        args.out.mkdir(parents=True, exist_ok=True)
        self.file = args.out / "results.json"
        self.done: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        if not (args.out / "data").exists():
            shapes.make(args.out / "data", args.images, max(8, args.images // 3))
        task = Detection(photometric=False, jitter=1.25)
        self.data = task.load(
            f"coco:{args.out / 'data'}", Reading(batch_size=args.batch_size, normalize="none", image_size=96)
        )
        self.classes = len(self.data.classes or ())
        self.functions = sc.adapters.detection()
        self.metrics = task.metrics(None)
        self.image = [next(iter(self.data.val))[0][0]]

    def kept(self, name: str, model: nn.Module, make: Any) -> nn.Module:
        """The model with the weights that were kept, or those that `make` trains, which are then kept."""
        file = self.args.out / f"{name}.safetensors"
        if file.exists():
            model.load_state_dict(load_file(file))
        else:
            make(model)
            save_file({key: x.contiguous() for key, x in model.state_dict().items()}, file)
        return model

    def figures(self, name: str, model: nn.Module, began: float | None) -> None:
        if name in self.done:
            return
        found = training.evaluate(model, self.data.val, objective=Objective(**self.functions, metrics=self.metrics))
        cost = sc.count(model, (self.image,))
        self.done[name] = {
            "macs": cost.macs, "params": cost.params, **{c: found.metrics[f"mAP.{c}"] for c in COLUMNS},
            "seconds": None if began is None else round(time.process_time() - began),
        }  # fmt: skip
        self.file.write_text(json.dumps(self.done, indent=1))
        print(name, self.done[name], flush=True)

    def train(self, model: nn.Module, epochs: float, title: str) -> None:
        recipe = Recipe(epochs=epochs, lr=self.args.lr, optimizer="adamw", weight_decay=1e-2)
        self.data.train.set_epoch(0)
        Engine(
            model, self.data.train, recipe, objective=Objective(**self.functions), title=title, progress="lines"
        ).fit()

    def backbones(self) -> tuple[nn.Module, nn.Module]:
        """As it was trained on crops, and pruned there."""
        args = self.args
        plain = sc.build(f"torchvision:{args.backbone}", num_classes=self.classes)
        train = batches(crops(self.data.train, args.rounds), 32)
        val = batches(crops(self.data.val, 1), 32)
        example = train[0][0][:1]

        def fit(model: nn.Module) -> None:
            Engine(
                model, sc.Data(train, val), Recipe(epochs=args.crop_epochs, lr=0.02), title="crops", progress="lines"
            ).fit()

        torch.manual_seed(0)
        plain = self.kept("backbone", plain, fit)
        folder = args.out / "pruned-backbone"
        if not folder.exists():
            method = sc.NPN(epochs=args.crop_epochs)
            result = sc.prune(
                plain, example, method, sc.Budget(macs=args.macs), sc.Data(train, val), progress="lines", report=print
            )
            result.save(folder)
            self.done["classification"] = {"before": result.before.top1, "pruned": result.after.top1}
        return plain, sc.load(folder)

    def run(self) -> None:
        args = self.args
        plain, pruned = self.backbones()
        networks: dict[str, nn.Module] = {}
        for name, backbone in (("original", plain), ("pruned backbone", pruned)):
            began = time.process_time()
            model = detector(copy.deepcopy(backbone), self.classes)
            networks[name] = self.kept(name.replace(" ", "-"), model, lambda m, n=name: self.train(m, args.epochs, n))
            self.figures(name, networks[name], began)
        if "pruned as a whole" not in self.done:
            began = time.process_time()
            self.data.train.set_epoch(0)
            search = args.epochs / 3
            result = sc.prune(
                networks["original"], (self.image,), sc.NPN(epochs=search),
                sc.Budget(macs=args.macs), sc.Data(self.data.train), sc.Recover(
                    epochs=args.epochs - search, lr=args.lr, optimizer="adamw", weight_decay=1e-2
                ),
                progress="lines", report=print, **self.functions,
            )  # fmt: skip
            result.save(args.out / "pruned-whole")
            self.figures("pruned as a whole", result.model, began)
        began = time.process_time()
        longer = copy.deepcopy(networks["original"])
        self.figures(
            "original, trained on",
            self.kept("longer", longer, lambda m: self.train(m, args.epochs, "trained on")),
            began,
        )

    def table(self) -> Iterator[str]:
        yield "| | MACs | parameters | AP .5:.95 | AP .5 | AP .75 | CPU seconds |"
        yield "|---|---:|---:|---:|---:|---:|---:|"
        for name, row in self.done.items():
            if "map" in row:
                aps = " | ".join(f"{100 * row[c]:.1f}" for c in COLUMNS)
                yield f"| {name} | {row['macs'] / 1e6:.0f}M | {row['params'] / 1e6:.2f}M | {aps} | {row['seconds']} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="resnet18", help="a ResNet of torchvision")
    parser.add_argument("--macs", type=float, default=0.5, help="MACs to keep, of the backbone and of the whole")
    parser.add_argument("--images", type=int, default=240, help="training images; a third as many to validate")
    parser.add_argument("--epochs", type=float, default=8, help="of each detector")
    parser.add_argument(
        "--crop-epochs", type=float, default=2, help="of the backbone on crops, and of pruning it there"
    )
    parser.add_argument("--rounds", type=int, default=3, help="augmented crops of each shape")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3, help="of AdamW, for detectors")
    parser.add_argument("--quick", action="store_true", help="8 images and 2 epochs")
    args = parser.parse_args()
    if args.quick:
        args.images, args.epochs, args.crop_epochs, args.rounds, args.batch_size = 8, 2, 1, 2, 4
    study = Study(args)
    study.run()
    print(*study.table(), sep="\n")


if __name__ == "__main__":
    main()
