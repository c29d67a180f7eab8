"""One thread: the suite runs in several processes already, and more threads than cores cost minutes."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start

import pytest


def pytest_collection_finish() -> None:
    """What the collection of all tests has made is never garbage: the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run on the CPU, where they are exact, on machines with a GPU too; those marked `gpu` need one."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setenv("SECATEURS_DEVICE", "cpu")
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that CUDA can use")


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on whether the machine is busy: cut networks are not compared in speed unless a test says how fast."""
    monkeypatch.setattr("secateurs.speed.alternated", lambda one, other: None)


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixth of the digits, for tests to which it does not matter what a network learns."""
    fewer_digits(monkeypatch)


def fewer_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    from secateurs.data.digits import digits

    few = tuple((images[::6].clone(), targets[::6].clone()) for images, targets in digits())
    monkeypatch.setattr(importlib.import_module("secateurs.data.load"), "digits", lambda size=32: few)
