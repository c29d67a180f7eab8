"""Building blocks of the zoo's networks."""

from __future__ import annotations

from torch import nn


def conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> list[nn.Module]:
    """Return a convolution with same padding (at stride 1), a batch norm and a ReLU."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class Network(nn.Module):
    """A network with its own initialization: `reset_parameters` is called after its layers' initialization."""

    def reset_parameters(self) -> None:
        initialize(self)


def initialize(model: nn.Module) -> None:
    """Apply He initialization (fan out) to the convolutions, and small normal weights to the linear layers."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
