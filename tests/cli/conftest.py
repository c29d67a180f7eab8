"""A command run in this process, and what it said; a folder of images that even an untrained eye tells apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import secateurs as sc
from secateurs.cli import main


class Ran(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    threads = torch.get_num_threads()

    def command(*tokens: object) -> Ran:
        capsys.readouterr()
        status = main([str(t) for t in tokens])
        return Ran(status, *capsys.readouterr())

    yield command
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """folder:… with two classes, dark and light, 32 and 16 images."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 32), ("val", 16)):
        for name, level in (("dark", 40), ("light", 200)):
            (root / split / name).mkdir(parents=True)
            for i in range(count // 2):
                pixels = random.integers(level - 40, level + 40, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i:02d}.png")
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of zoo:small_cnn with two classes, untrained."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(sc.build("zoo:small_cnn", num_classes=2).state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded images are cached elsewhere than in the home of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
