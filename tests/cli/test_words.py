from __future__ import annotations

import pytest

from secateurs.cli.words import spoken


@pytest.mark.parametrize(
    ("python", "here"),
    [
        ("is macs=0.0042; scope='all' may allow less.", "is --macs 0.0042; --scope all may allow less."),
        ("l1 needs a budget, for example budget=sc.Budget(macs=0.5).", "l1 needs a budget, for example --macs 0.5."),
        ("Recover: lr=-1.0: input should be greater than 0 (lr: peak)", "--lr -1.0: must be greater than 0 (peak)"),
        ("image_size=0 must be at least 1.", "--image-size 0 must be at least 1."),
        ("normalize='cfar10' is not known.", "--normalize cfar10 is not known."),
        ("unless you ask with allow_inexact=True.", "unless you ask with --allow-inexact."),
        (
            "--set params=3 is no setting of my.lr=2, nor is x_lr=3.",
            "--set params=3 is no setting of my.lr=2, nor is x_lr=3.",
        ),
        ("Conv2d(3, 8, kernel_size=(3, 3)) fails", "Conv2d(3, 8, kernel_size=(3, 3)) fails"),
    ],
)
def test_settings_have_the_names_of_options(python, here):
    assert spoken(python) == here
