"""The GPU kernel, under Triton's interpreter (which is decided on when Triton is first imported) or on a GPU."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from secateurs.stripes import StripeConv2d

SCRIPT = """
import itertools, torch
from torch import nn
from secateurs.stripes import StripeConv2d, gpu
torch.manual_seed(0)
for stride, dilation, padding, share in itertools.product([(1, 1), (2, 1)], [(1, 1), (2, 1)], [1, (2, 3)], [0.5, 0.05, 0.0]):
    conv = nn.Conv2d(37, 19, 3, stride=stride, padding=padding, dilation=dilation)
    layer = StripeConv2d.of(conv, torch.rand(19, 3, 3) < share)
    x = torch.randn(2, 37, 9, 11)
    with torch.no_grad():
        wanted = layer.run("dense", x)
        got = gpu.stripe_conv2d(layer.layout, gpu.Packed(layer.layout, layer.weight.detach()), layer.bias.detach(), x)
    assert got.shape == wanted.shape and (got - wanted).abs().max() <= 1e-5, (stride, dilation, padding, share)
"""


def release(package: str) -> tuple[int, int]:
    major, minor = importlib.metadata.version(package).split(".")[:2]
    return int(major), int(minor)


def test_interpreted() -> None:
    pytest.importorskip("triton", reason="Triton is not installed (pip install 'secateurs[gpu]')")
    if release("triton") < (3, 7) and release("numpy") >= (2, 4):
        pytest.skip(
            "the interpreter of Triton 3.6 and older does not work with NumPy 2.4 and newer; kernels on a GPU do"
        )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 80, 3, padding=1, stride=2, device="cuda", dtype=dtype)
    layer = StripeConv2d.of(conv, torch.rand(80, 3, 3, device="cuda") < 0.3)
    x = torch.randn(4, 64, 20, 20, device="cuda", dtype=dtype)
    with torch.no_grad():
        wanted = layer.double().run("dense", x.double())
        got = layer.to(dtype).run("triton", x)
    assert (got.double() - wanted).abs().max() <= (1e-4 if dtype == torch.float32 else 0.03) * wanted.abs().max()
