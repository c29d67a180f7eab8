"""Figures as people read them."""

from __future__ import annotations

import pytest

from secateurs.report import count, duration


@pytest.mark.parametrize(
    ("n", "one", "text"),
    [
        (1, "epoch", "1 epoch"),
        (0.5, "epoch", "0.5 epochs"),
        (1203, "image", "1,203 images"),
        (1.0, "training pass", "1 training pass"),
        (2, "training pass", "2 training passes"),
    ],
)
def test_count(n: float, one: str, text: str) -> None:
    assert count(n, one) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.00031, "0.31 ms"),
        (0.0042, "4.2 ms"),
        (0.00996, "10 ms"),
        (0.0417, "42 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1:00"),
        (185, "3:05"),
        (3765, "1:02:45"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
