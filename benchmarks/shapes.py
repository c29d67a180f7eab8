"""A small detection set of drawn shapes, in COCO format: disks, squares and triangles on images of several sizes.

The same seed draws the same images. Some images have no shape, and some a crowd of dots, marked `iscrowd`. Category ids have
gaps, as COCO's.

    python benchmarks/shapes.py /data/shapes --train 300 --val 100
    secateurs prune … --task detection --data coco:/data/shapes
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

CATEGORIES = {2: "disk", 3: "square", 7: "triangle"}
SIZES = ((96, 128), (128, 96), (112, 112))  # height, width
MOST = 4  # shapes on an image
Box = tuple[float, float, float, float]  # x, y, width, height


def make(folder: Path, train: int = 300, val: int = 100, seed: int = 0, scale: float = 1.0) -> None:
    """Write `train/`, `val/`, `annotations/instances_train.json` and `annotations/instances_val.json`. scale: of all sizes."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate({"train": train, "val": val}.items()):
        (folder / split).mkdir(exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            rng = np.random.default_rng((seed, number, index))
            image, found = picture(rng, scale)
            name = f"{index:05}.{'png' if index % 2 else 'jpg'}"
            image.save(folder / split / name, quality=95)
            images.append({"id": index + 1, "file_name": name, "width": image.width, "height": image.height})
            for category, box, crowd in found:
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": index + 1, "category_id": category, "bbox": list(box),
                        "area": box[2] * box[3], "iscrowd": int(crowd),
                    }
                )  # fmt: skip
        categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def picture(rng: np.random.Generator, scale: float) -> tuple[Image.Image, list[tuple[int, Box, bool]]]:
    """An image, and what is on it: category, box, whether it is a crowd."""
    height, width = (round(side * scale) for side in SIZES[rng.integers(len(SIZES))])
    image = background(rng, height, width)
    draw = ImageDraw.Draw(image)
    found: list[tuple[int, Box, bool]] = []
    for _ in range(int(rng.integers(0 if rng.random() < 0.05 else 1, MOST + 1))):
        category = int(rng.choice(list(CATEGORIES)))
        side = float(rng.uniform(0.18, 0.42)) * min(height, width)
        box = free(rng, height, width, side, found)
        if box is None:
            continue
        found.append((category, shape(draw, rng, CATEGORIES[category], box), False))
    if rng.random() < 0.05 and (box := free(rng, height, width, 0.3 * min(height, width), found)) is not None:
        x, y, side, _ = box
        for _ in range(12):
            at, down, radius = x + side * rng.random(), y + side * rng.random(), side / 16
            draw.ellipse((at - radius, down - radius, at + radius, down + radius), fill=color(rng))
        found.append((2, box, True))
    return image, found


def background(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """A gray gradient with noise and a few lines."""
    ramp = (
        np.linspace(*rng.uniform(60, 140, 2), width)[None, :] + np.linspace(*rng.uniform(-30, 30, 2), height)[:, None]
    )
    pixels = ramp[..., None] + rng.normal(0, 12, (height, width, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        ends = [(float(rng.uniform(0, width)), float(rng.uniform(0, height))) for _ in range(2)]
        draw.line(ends, fill=color(rng), width=1)
    return image


def color(rng: np.random.Generator) -> tuple[int, ...]:
    """Far from gray in one channel at least."""
    found = rng.integers(0, 256, 3)
    found[rng.integers(3)] = rng.choice([0, 255])
    return tuple(map(int, found))


def free(
    rng: np.random.Generator, height: int, width: int, side: float, taken: list[tuple[int, Box, bool]]
) -> Box | None:
    """A square place that overlaps others little."""
    for _ in range(20):
        x, y = float(rng.uniform(0, width - side)), float(rng.uniform(0, height - side))
        if all(overlap((x, y, side, side), box) < 0.1 * side**2 for _, box, _ in taken):
            return x, y, side, side
    return None


def overlap(a: Box, b: Box) -> float:
    across, down = (min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    return max(0.0, across) * max(0.0, down)


def shape(draw: ImageDraw.ImageDraw, rng: np.random.Generator, name: str, place: Box) -> Box:
    """Draw a shape within a place; its box."""
    x, y, width, height = place
    height *= float(rng.uniform(0.75, 1.0))
    if name == "triangle":
        tilt = float(rng.uniform(0.2, 0.8))
        points = [(x + tilt * width, y), (x, y + height), (x + width, y + height)]
        draw.polygon(points, fill=color(rng))
    else:
        kind = draw.ellipse if name == "disk" else draw.rectangle
        kind((x, y, x + width, y + height), fill=color(rng))
    left, top = math.floor(x), math.floor(y)  # whole pixels are drawn
    return float(left), float(top), math.floor(x + width) + 1.0 - left, math.floor(y + height) + 1.0 - top


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=300, help="training images")
    parser.add_argument("--val", type=int, default=100, help="validation images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="of the images' sizes, 96 to 128 pixels")
    given = parser.parse_args()
    make(given.folder, given.train, given.val, given.seed, given.scale)


if __name__ == "__main__":
    main()
