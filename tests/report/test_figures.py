"""Figures as people read them."""

from __future__ import annotations

import pytest

from secateurs.report import count


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
