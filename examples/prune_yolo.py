"""YOLO11n, pruned to half its MACs and fine-tuned by Ultralytics' own trainer.

    pip install 'secateurs[ultralytics]' onnx onnxscript
    python examples/prune_yolo.py --folder /tmp/shapes

The data set is drawn here: squares, disks and triangles. Nothing is downloaded. Ultralytics is licensed under AGPL-3.0.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

os.environ.setdefault("YOLO_OFFLINE", "true")  # no weights, fonts or updates
from ultralytics import YOLO

import secateurs as sc
from secateurs.integrations.ultralytics import align, trainer

SHAPES = ("square", "disk", "triangle")


def draw(folder: Path, images: int, size: int, seed: int) -> None:
    """Images, and their boxes in YOLO's format: class, center, width and height, as shares of the image."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    for number in range(images):
        image = Image.fromarray(rng.integers(0, 90, (size, size, 3), dtype=np.uint8))
        brush, boxes = ImageDraw.Draw(image), []
        for cell in rng.permutation(4)[: rng.integers(1, 4)]:  # one shape per quarter: none covers another
            kind, side = int(rng.integers(3)), int(rng.integers(size // 4, size // 2 - 4))
            x, y = ((cell % 2, cell // 2) * np.array(size // 2) + rng.integers(0, size // 2 - side, 2)).tolist()
            box, color = (x, y, x + side, y + side), tuple(rng.integers(150, 256, 3).tolist())
            if kind == 0:
                brush.rectangle(box, fill=color)
            elif kind == 1:
                brush.ellipse(box, fill=color)
            else:
                brush.polygon([(x, y + side), (x + side, y + side), (x + side // 2, y)], fill=color)
            boxes.append(f"{kind} {(x + side / 2) / size} {(y + side / 2) / size} {side / size} {side / size}")
        image.save(folder / "images" / f"{number}.png")
        (folder / "labels" / f"{number}.txt").write_text("\n".join(boxes))


def dataset(folder: Path, images: int, size: int) -> Path:
    draw(folder / "train", images, size, seed=0)
    draw(folder / "val", images // 2, size, seed=1)
    file = folder / "shapes.yaml"
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(SHAPES))
    file.write_text(f"path: {folder.resolve()}\ntrain: train/images\nval: val/images\nnames:\n{names}")
    return file


def main(arguments: Sequence[str] | None = None) -> sc.Result:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="yolo11n.yaml", help="or your trained .pt, with --data")
    parser.add_argument("--folder", type=Path, default=Path("shapes"), help="for the data and the runs")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=40)
    args = parser.parse_args(arguments)

    data = dataset(args.folder / "data", args.images, args.size)
    options = {
        "data": str(data), "imgsz": args.size, "epochs": args.epochs, "batch": 16, "project": str(args.folder / "runs"),
        "device": "cpu", "amp": False, "plots": False, "workers": 0, "optimizer": "AdamW", "lr0": 0.002,
    }  # fmt: skip

    yolo = YOLO(args.model)
    whole = yolo.train(name="whole", **options)

    inputs = torch.zeros(1, 3, args.size, args.size)
    result = sc.prune(yolo.model, inputs, "l1", sc.Budget(macs=0.5), scope="all")
    yolo.model = align(result.model)

    small = yolo.train(trainer=trainer(yolo), name="small", **options)  # the one line: trainer=trainer(yolo)

    # Ultralytics saved best.pt, a pickle: loading it runs the code in it. Our artifact holds tensors and a plan.
    dataclasses.replace(result, model=yolo.model).save(args.folder / "small", overwrite=True)
    again = sc.load(args.folder / "small", model=type(yolo.model)(yolo.model.yaml, verbose=False))
    with torch.no_grad():
        assert torch.equal(again(inputs)[0], yolo.model(inputs)[0])

    onnx = yolo.export(format="onnx", imgsz=args.size, simplify=False)
    box = "metrics/mAP50(B)"
    print(f"{result.before.macs:,} MACs, mAP50 {whole.results_dict[box]:.3f}")
    print(f"{result.after.macs:,} MACs, mAP50 {small.results_dict[box]:.3f}, {onnx}")
    return result


if __name__ == "__main__":
    main()
