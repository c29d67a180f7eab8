"""The papers' networks: their published size, the checkpoints trained with them, and cuts they have to survive."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from secateurs.zoo import build, names
from secateurs.zoo.cifar_resnet import ResNet
from tests import localdata

SIZES = {  # MACs and parameters in millions
    "vgg16": (313.20, 14.724),
    "resnet20": (40.55, 0.270),
    "resnet32": (68.86, 0.464),
    "resnet44": (97.17, 0.659),
    "resnet56": (125.49, 0.853),
    "resnet110": (252.89, 1.728),
    "googlenet": (1521.76, 6.166),
    "alexnet_bn": (180.91, 4.562),
    "small_cnn": (2.99, 0.046),
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def test_sizes_cover_the_zoo() -> None:
    assert sorted(SIZES) == names("zoo")


@pytest.mark.parametrize("name", SIZES)
def test_size(name: str) -> None:
    model = build(f"zoo:{name}").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        out = model(torch.zeros(1, 3, 32, 32))
    macs, parameters = SIZES[name]
    assert out.shape == (1, 10)
    assert counter.get_total_flops() / 2e6 == pytest.approx(macs, abs=0.006)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=6e-4)


@pytest.mark.parametrize("name", [name for name in SIZES if name not in ("googlenet", "resnet110")])
def test_classes_and_input_channels(name: str) -> None:
    model = build(f"zoo:{name}", num_classes=7, in_channels=1)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_alexnet_takes_large_images() -> None:
    assert build("zoo:alexnet_bn", num_classes=5, small=False)(torch.zeros(1, 3, 224, 224)).shape == (1, 5)


def test_googlenet_has_the_channels_of_the_paper() -> None:
    assert sum(m.out_channels for m in build("zoo:googlenet").modules() if isinstance(m, nn.Conv2d)) == 7904


def test_shortcut_takes_every_second_pixel_and_pads_both_ends() -> None:
    model = build("zoo:resnet20")
    assert isinstance(model, ResNet)
    x = torch.rand(2, 16, 8, 8)
    out = model.layer2[0].shortcut(x)
    assert out.shape == (2, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()
    cut = model.layer2[0].shortcut(x[:, :11])  # the pad stays, whatever comes in
    assert torch.equal(cut[:, 8:19], x[:, :11, ::2, ::2])
    assert cut.shape[1] == 27


@pytest.fixture(scope="module")
def test_images(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, torch.Tensor]:
    """1000 real images in [0, 1], (1000, 3, 32, 32), and their classes, (1000,)."""
    image = pytest.importorskip("PIL.Image")
    folder = localdata.unpack_test_images(tmp_path_factory.mktemp("cifar"), every=10)
    if folder is None:
        pytest.skip(localdata.MISSING)
    pixels, targets = [], []
    for label, cls in enumerate(sorted((folder / "test").iterdir())):
        for file in sorted(cls.iterdir()):
            with image.open(file) as opened:
                pixels.append(np.asarray(opened))
            targets.append(label)
    assert len(pixels) == 1000
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255, torch.tensor(targets)


@pytest.mark.parametrize(
    ("name", "normalize", "top1"),
    [("resnet20", IMAGENET, 88.3), ("resnet56", IMAGENET, 90.1), ("vgg16", CIFAR, 87.3)],
)
def test_checkpoint_has_its_accuracy(
    name: str, normalize: tuple, top1: float, test_images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    weights = localdata.checkpoint(name)
    if weights is None:
        pytest.skip(localdata.MISSING)
    model = build(f"zoo:{name}", weights=weights).eval()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    images, targets = test_images
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalize)
    with torch.no_grad():
        predicted = torch.cat([model(batch).argmax(1) for batch in ((images - mean) / std).split(250)])
    # The standard error of 1000 images is one point; a wrong shortcut, pool or normalization costs far more than 3.
    assert 100 * (predicted == targets).float().mean().item() == pytest.approx(top1, abs=3)
