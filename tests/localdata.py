"""Where the real images and trained checkpoints are, for the tests that want them; None where they are not.

They are looked for in the folder that SECATEURS_DATA names, and in `*/data` beside the checkout: a folder that holds
`cifar10-jpeg.tar.gz` (train|test/<class>/NNNN.jpg) and `checkpoints/`.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

ARCHIVE = "cifar10-jpeg.tar.gz"
MISSING = "needs the CIFAR-10 (JPEG) data: set SECATEURS_DATA to its folder"


def root() -> Path | None:
    """The folder of the local data."""
    given = os.environ.get("SECATEURS_DATA")
    beside = sorted(Path(__file__).resolve().parents[2].glob("*/data"))
    for folder in [Path(given)] if given else beside:
        if (folder / ARCHIVE).is_file() and (folder / "checkpoints").is_dir():
            return folder
    return None


def checkpoint(name: str) -> Path | None:
    """The file of a trained network: resnet20, resnet56 or vgg16."""
    folder = root()
    path = folder / "checkpoints" / f"{name}-cifar10.safetensors" if folder else None
    return path if path and path.is_file() else None


def unpack_test_images(target: Path, every: int = 1) -> Path | None:
    """Unpack every `every`-th test image of each class into `target/test/<class>/`; returns `target`."""
    folder = root()
    if folder is None:
        return None
    seen: dict[str, int] = {}
    with tarfile.open(folder / ARCHIVE, "r:gz") as archive:
        for member in archive:
            split, *rest = Path(member.name).parts[-3:]
            if split != "test" or len(rest) != 2 or not member.isfile():
                continue
            label, image = rest
            seen[label] = seen.get(label, 0) + 1
            file = archive.extractfile(member)
            if (seen[label] - 1) % every == 0 and file is not None:
                path = target / "test" / label / image
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.read())
    return target
