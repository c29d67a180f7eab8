"""Plain and multi-branch networks for 32×32 images: VGG-16, GoogLeNet, AlexNet with batch norm, and a small one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.zoo.blocks import Network, conv_bn_relu


class VGG16(Network):
    """Thirteen 3×3 convolutions with batch norm, four max pools, an average pool, one linear layer.

    Input (N, in_channels, 32, 32). 313.2M MACs, 14.72M parameters.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(zip([in_channels, *widths], widths, strict=False), start=1):
            layers += conv_bn_relu(inputs, outputs, 3)
            if i in (2, 4, 7, 10):
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.AvgPool2d(2))
        self.classifier = nn.Linear(512, num_classes)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # (N, 512, 1, 1)
        return self.classifier(x.flatten(1))


class Inception(nn.Module):
    """Four branches side by side: 1×1; 1×1, 3×3; 1×1, 3×3, 3×3 (in place of the original 5×5); max pool, 1×1."""

    def __init__(self, inputs: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int) -> None:
        super().__init__()
        self.branch1 = nn.Sequential(*conv_bn_relu(inputs, one, 1, bias=True))
        self.branch2 = nn.Sequential(
            *conv_bn_relu(inputs, three[0], 1, bias=True),
            *conv_bn_relu(three[0], three[1], 3, bias=True),
        )
        self.branch3 = nn.Sequential(
            *conv_bn_relu(inputs, five[0], 1, bias=True),
            *conv_bn_relu(five[0], five[1], 3, bias=True),
            *conv_bn_relu(five[1], five[1], 3, bias=True),
        )
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), *conv_bn_relu(inputs, pool, 1, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class GoogLeNet(Network):
    """GoogLeNet as the CIFAR-10 pruning papers use it: a 3×3 stem at full size and nine inceptions.

    Input (N, in_channels, 32, 32). 1.52G MACs, 6.17M parameters. Convolutions have biases, as the published counts do.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn_relu(in_channels, 192, 3, bias=True))
        self.inception3 = nn.Sequential(
            Inception(192, 64, (96, 128), (16, 32), 32),
            Inception(256, 128, (128, 192), (32, 96), 64),
        )
        self.inception4 = nn.Sequential(
            Inception(480, 192, (96, 208), (16, 48), 64),
            Inception(512, 160, (112, 224), (24, 64), 64),
            Inception(512, 128, (128, 256), (24, 64), 64),
            Inception(512, 112, (144, 288), (32, 64), 64),
            Inception(528, 256, (160, 320), (32, 128), 128),
        )
        self.inception5 = nn.Sequential(
            Inception(832, 256, (160, 320), (32, 128), 128),
            Inception(832, 384, (192, 384), (48, 128), 128),
        )
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.fc = nn.Linear(1024, num_classes)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.inception3(self.stem(x)))  # (N, 480, H/2, W/2)
        x = self.inception5(self.pool(self.inception4(x)))  # (N, 1024, H/4, W/4)
        return self.fc(x.mean((2, 3)))


class AlexNetBN(Network):
    """AlexNet with batch norm: five convolutions, an adaptive pool, three linear layers.

    Input (N, in_channels, H, W). `small=True` (the default) is for 32×32 images: its first convolution is 5×5 with stride 1.
    `small=False` is for images of 64 pixels and more, with the original's 11×11 convolution with stride 4.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, small: bool = True) -> None:
        super().__init__()
        stem = (
            nn.Conv2d(in_channels, 64, 5, padding=2, bias=False)
            if small
            else nn.Conv2d(in_channels, 64, 11, stride=4, padding=2, bias=False)
        )
        self.features = nn.Sequential(
            *(stem, nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2)),
            *(*conv_bn_relu(64, 192, 5), nn.MaxPool2d(3, stride=2)),
            *conv_bn_relu(192, 384, 3),
            *conv_bn_relu(384, 256, 3),
            *(*conv_bn_relu(256, 256, 3), nn.MaxPool2d(3, stride=2)),
        )
        side, hidden = (2, 1024) if small else (6, 4096)
        self.pool = nn.AdaptiveAvgPool2d(side)
        self.classifier = nn.Sequential(
            *(nn.Dropout(0.5), nn.Linear(256 * side * side, hidden), nn.ReLU(inplace=True)),
            *(nn.Dropout(0.5), nn.Linear(hidden, hidden), nn.ReLU(inplace=True)),
            nn.Linear(hidden, num_classes),
        )
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))  # (N, 256, side, side)
        return self.classifier(x.flatten(1))


class SmallCNN(Network):
    """One plain stage and one residual stage with about 50k parameters: trains within minutes on a CPU.

    Input (N, in_channels, H, W), designed for 32×32.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn_relu(in_channels, 16, 3, stride=2))
        self.plain = nn.Sequential(*conv_bn_relu(16, 32, 3, stride=2), *conv_bn_relu(32, 40, 3))
        self.conv1 = nn.Conv2d(40, 40, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(40)
        self.conv2 = nn.Conv2d(40, 40, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(40)
        self.fc = nn.Linear(40, num_classes)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.stem(x))  # (N, 40, H/4, W/4)
        out = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(out)) + x)
        return self.fc(x.mean((2, 3)))


def vgg16(num_classes: int = 10, in_channels: int = 3) -> VGG16:
    """Build VGG-16-BN for CIFAR."""
    return VGG16(num_classes, in_channels)


def googlenet(num_classes: int = 10, in_channels: int = 3) -> GoogLeNet:
    """Build GoogLeNet for CIFAR."""
    return GoogLeNet(num_classes, in_channels)


def alexnet_bn(num_classes: int = 10, in_channels: int = 3, small: bool = True) -> AlexNetBN:
    """Build AlexNet with batch norm."""
    return AlexNetBN(num_classes, in_channels, small)


def small_cnn(num_classes: int = 10, in_channels: int = 3) -> SmallCNN:
    """Build the network of `secateurs demo`."""
    return SmallCNN(num_classes, in_channels)
