"""Tiny data sets as others keep them: tables and tar shards."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def image(seed: int, size: tuple[int, int] = (16, 16), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def truncated(seed: int = 0) -> bytes:
    return image(seed, kind="JPEG")[:-200]


def table(
    count: int,
    *,
    label: str = "label",
    names=("ant", "bee", "cat"),
    start: int = 0,
    broken=(),
    column="image",
    size=(16, 16),
):
    """A `datasets.Dataset` of images; classes in turn. names: of a ClassLabel, or None for their plain values."""
    import datasets

    def cell(i: int) -> dict:
        return {"bytes": truncated() if i in broken else image(start + i, size), "path": None}

    feature = datasets.ClassLabel(names=list(names)) if names else datasets.Value("string")
    values = [i % 3 if names else "cab"[i % 3] for i in range(count)]
    features = datasets.Features({column: datasets.Image(), label: feature, "id": datasets.Value("int64")})
    rows = {column: [cell(i) for i in range(count)], label: values, "id": list(range(start, start + count))}
    return datasets.Dataset.from_dict(rows, features=features)


def parquet(root: Path, **splits) -> Path:
    """`data/<split>-0000i-of-0000n.parquet`, as on the Hub."""
    (root / "data").mkdir(parents=True)
    for split, tables in splits.items():
        for i, rows in enumerate(tables):
            rows.to_parquet(root / "data" / f"{split}-{i:05d}-of-{len(tables):05d}.parquet")
    return root


def tar(path: Path, count: int, *, start: int = 0, classes: int = 3, broken=(), **more: bytes) -> Path:
    """A shard of count examples; the label of image number n is n % classes."""
    with tarfile.open(path, "w") as archive:
        for i in range(start, start + count):
            files = {"png": truncated() if i in broken else image(i), "cls": str(i % classes).encode(), **more}
            for ending, content in files.items():
                info = tarfile.TarInfo(f"images/{i:05d}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path
