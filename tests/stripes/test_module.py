"""A stripe convolution computes what the dense convolution with those stripes zeroed computes, whatever the kernel."""

from __future__ import annotations

import copy
import io
import itertools
import logging
import time
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import secateurs as sc
from secateurs.stripes import StripeConv2d, native, tune
from secateurs.stripes.kernels import KERNELS, padded
from secateurs.stripes.module import size_of
from tests.fakedevice import FakeDevice

COMPILED = [name for name in KERNELS if name.startswith("native")] if native.load() else []
ON_CPU = ["dense", "gemm", *COMPILED]


def layer(
    share: float = 0.4, seed: int = 0, channels: int = 5, filters: int = 19, kernel: Any = 3, **options: Any
) -> tuple[nn.Conv2d, StripeConv2d]:
    """A convolution whose dropped stripes are zero, and its stripes."""
    torch.manual_seed(seed)
    conv = nn.Conv2d(channels, filters, kernel, **options)
    kept = torch.rand(filters, *conv.kernel_size) < share
    with torch.no_grad():
        conv.weight.mul_(kept[:, None])
    return conv, StripeConv2d.of(conv, kept)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max())))


def two(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@pytest.mark.parametrize("name", ON_CPU)
def test_kernels_compute_the_masked_convolution(name: str) -> None:
    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(
        kernel=two(1, 5), stride=two(1, 3), dilation=two(1, 2), padding=st.tuples(two(-3, 3), two(-3, 3)), size=two(1, 34),
        images=st.sampled_from([1, 2, 3, 16, 17, 33]), channels=st.sampled_from([3, 5, 16, 19]),
        share=st.sampled_from([0.0, 0.03, 0.3, 1.0]), filters=st.sampled_from([1, 7, 16, 30]), bias=st.booleans(),
        order=st.sampled_from([torch.contiguous_format, torch.channels_last, None]), seed=st.integers(0, 9),
    )  # fmt: skip
    def check(kernel: Any, stride: Any, dilation: Any, padding: Any, size: Any, images: int, channels: int, share: float,
              filters: int, bias: bool, order: Any, seed: int) -> None:  # fmt: skip
        if any(
            s + sum(p) < d * (k - 1) + 1 for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)
        ):  # not an output at all
            return
        torch.manual_seed(seed)
        kept = torch.rand(filters, *kernel) < share
        stripes = StripeConv2d(
            channels, kept, stride=stride, padding=(*padding[0], *padding[1]), dilation=dilation, bias=bias
        )
        x = torch.randn(images, channels, *size)
        with torch.no_grad():
            if stripes.bias is not None:
                stripes.bias.normal_()
            (top, bottom), (left, right) = padding
            around = F.pad(x.double(), (4, 4, 4, 4))  # F.pad takes nothing off that is not there
            around = around[:, :, 4 - top : 4 + size[0] + bottom, 4 - left : 4 + size[1] + right]
            offset = None if stripes.bias is None else stripes.bias.double()
            wanted = F.conv2d(around, stripes.dense_weight().double(), offset, stride, 0, dilation).float()
            x = x.transpose(2, 3).contiguous().transpose(2, 3) if order is None else x.contiguous(memory_format=order)
            got = stripes.run(name, x)
            assert close(got, wanted)
            last = x.is_contiguous(memory_format=torch.channels_last)  # of single pixels or channels it may be both
            if KERNELS[name].keeps_format and x.is_contiguous() and not last:
                assert got.is_contiguous()
            if not KERNELS[name].keeps_format and images > 1:
                assert got.is_contiguous(memory_format=torch.channels_last)

    check()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.skipif("not native.load()", reason="no compiler")
def test_native_on_threads(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for images, size in ((1, 16), (3, 16), (5, 21), (40, 4), (18, 33)):
            conv, stripes = layer(0.4, filters=40, padding=1)
            x = torch.randn(images, 5, size, size)
            with torch.no_grad():
                assert all(close(stripes.run(name, x), conv(x)) for name in COMPILED)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"padding": (3, 0), "stride": 2, "kernel": (5, 2), "dilation": (2, 1)}]
)
def test_maps_that_are_worked_on_in_bands(options: Any) -> None:
    conv, stripes = layer(0.4, channels=64, filters=5, **options)
    x = torch.randn(2, 64, 60, 90)
    with torch.no_grad():
        wanted = conv(x)
        for name in COMPILED:
            assert close(stripes.run(name, x), wanted), name
            assert close(stripes.run(name, x.contiguous(memory_format=torch.channels_last)), wanted), name


def test_same_padding_and_shrunk_kernels() -> None:
    """Rows and columns that no filter uses go, with padding that may end uneven or negative."""
    for used in [(0, 0), (2, 2), (0, 2), (1, 1)]:
        conv = nn.Conv2d(4, 6, 3, padding="same", dilation=2)
        kept = torch.zeros(6, 3, 3, dtype=torch.bool)
        kept[:, used[0], used[1]] = True
        with torch.no_grad():
            conv.weight.mul_(kept[:, None])
        stripes = StripeConv2d.of(conv, kept)
        assert stripes.kernel_size == (1, 1)
        x = torch.randn(2, 4, 9, 8)
        with torch.no_grad():
            for name in ON_CPU:
                assert close(stripes.run(name, x), conv(x)), (used, name)
            assert close(stripes.to_dense()(x), conv(x))
    kept = torch.zeros(6, 3, 3, dtype=torch.bool)
    kept[2, 0, 1] = kept[4, 1, 1] = True
    conv = nn.Conv2d(4, 6, 3, padding=1, stride=2)
    stripes = StripeConv2d.of(conv, kept)
    assert (stripes.kernel_size, stripes.padding) == ((2, 1), (1, 0, 0, 0))
    x = torch.randn(1, 4, 7, 7)
    wanted = F.conv2d(x, conv.weight * kept[:, None], conv.bias, 2, 1)
    assert close(stripes(x), wanted)
    assert close(stripes.to_dense()(x), wanted)


def test_more_is_taken_off_than_is_there() -> None:
    """Of a map smaller than the dilation, say. There and back: so are gradients padded."""
    sides = [-4, -1, 0, 2, 5]
    for size, top, bottom, left, right in itertools.product([1, 3], sides, sides, sides, sides):
        x = torch.randn(1, 2, size, 2)
        height, width = size + top + bottom, 2 + left + right
        if height < 1 or width < 1:
            continue
        wanted = F.pad(x, (9, 9, 9, 9))[:, :, 9 - top : 9 - top + height, 9 - left : 9 - left + width]
        got = padded(x, (top, bottom, left, right))
        assert torch.equal(got, wanted)
        wanted = F.pad(got, (9, 9, 9, 9))[:, :, 9 + top : 9 + top + size, 9 + left : 11 + left]
        assert torch.equal(padded(got, (-top, -bottom, -left, -right)), wanted)
    conv = nn.Conv2d(4, 6, 3, padding=2, dilation=2)
    kept = torch.zeros(6, 3, 3, dtype=torch.bool)
    kept[:, 2, 2] = True
    stripes, x = StripeConv2d.of(conv, kept), torch.randn(2, 4, 1, 1)
    assert close(stripes(x), F.conv2d(x, conv.weight * kept[:, None], conv.bias, padding=2, dilation=2))


def test_no_stripes_leave_the_bias() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1)
    stripes = StripeConv2d.of(conv, torch.zeros(4, 3, 3, dtype=torch.bool))
    x = torch.randn(2, 3, 5, 6)
    wanted = conv.bias.detach().view(1, 4, 1, 1).expand(2, 4, 5, 6)
    with torch.no_grad():
        for name in ON_CPU:
            assert close(stripes.run(name, x), wanted)


def test_gradients_are_the_dense_ones() -> None:
    conv, stripes = layer(padding=1, stride=2)
    x = torch.randn(2, 5, 8, 9)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    for module, own in zip((conv, stripes), inputs, strict=True):
        module(own).square().sum().backward()
    assert close(inputs[1].grad, inputs[0].grad)
    assert close(stripes.weight.grad, conv.weight.grad.permute(0, 2, 3, 1)[stripes.kept])
    assert close(stripes.bias.grad, conv.bias.grad)
    assert not any(stripes.run(name, x).requires_grad for name in ON_CPU)


def test_the_op_counts_stripes_and_has_the_same_gradients() -> None:
    conv, stripes = layer(padding=(1, 2))
    x = torch.randn(2, 5, 8, 9, requires_grad=True)
    conv(x).square().sum().backward()
    wanted, x.grad = x.grad, None
    with FlopCounterMode(display=False) as counter:
        out = stripes(x)
    out.square().sum().backward()
    assert close(x.grad, wanted)
    assert close(stripes.weight.grad, conv.weight.grad.permute(0, 2, 3, 1)[stripes.kept])
    assert close(stripes.bias.grad, conv.bias.grad)
    positions = out.shape[0] * out.shape[2] * out.shape[3]
    assert counter.get_total_flops() == 2 * len(stripes.weight) * 5 * positions
    assert sc.count(stripes, x.detach()).macs == len(stripes.weight) * 5 * positions


def test_one_image_has_gradients_in_the_op() -> None:
    """As in nn.Conv2d, (C, H, W) is one image. The backward pass failed."""
    layer, image = StripeConv2d(3, torch.rand(4, 3, 3) < 0.5, padding=1), torch.randn(3, 6, 5, requires_grad=True)
    wanted = torch.autograd.grad(layer(image).sum(), [image, *layer.parameters()])
    with FlopCounterMode(display=False):
        out = layer(image)
    for found, own in zip(torch.autograd.grad(out.sum(), [image, *layer.parameters()]), wanted, strict=True):
        assert torch.allclose(found, own, atol=1e-5)


def test_uneven_padding_has_gradients_in_the_op() -> None:
    stripes = StripeConv2d(3, torch.ones(4, 2, 3, dtype=torch.bool), padding=(0, 1, 2, -1))
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    stripes = stripes.double()
    with FlopCounterMode(display=False):
        counted = stripes(x)
    wanted = stripes(x)
    assert torch.allclose(counted, wanted)
    a, b = (torch.autograd.grad(out.square().sum(), [x, *stripes.parameters()]) for out in (counted, wanted))
    for one, other in zip(a, b, strict=True):
        assert torch.allclose(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    conv, stripes = layer(padding=1, channels=16)
    x = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        wanted = conv(x)
        stripes.to(dtype)
        for name in (*ON_CPU, "native"):  # native ones are for float32: the dense one takes their place
            assert close(stripes.run(name, x.to(dtype)).float(), wanted, 0.02)
            assert stripes.run(name, x.to(dtype)).dtype == dtype


def test_autocast() -> None:
    conv, stripes = layer(padding=1)
    x = torch.randn(2, 5, 8, 8)
    for grad in (True, False):
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
            stripes.kernels[size_of(x.bfloat16())] = "gemm"
            out = stripes(x)
        assert out.dtype == torch.bfloat16
        assert close(out.float(), conv(x).detach(), 0.05)


def test_weights_that_change_are_noticed() -> None:
    """Kernels keep the weights packed as they like: not beyond a change of them."""
    _, stripes = layer(padding=1)
    x = torch.randn(2, 5, 8, 8)
    for name in (None, *ON_CPU):
        stripes.kernels |= {size_of(x): name} if name else {}
        with torch.no_grad():
            before = stripes(x)
            stripes.weight.mul_(2)
            stripes.bias.mul_(2)
            assert close(stripes(x), 2 * before)
            stripes.load_state_dict({k: v / 4 if v.is_floating_point() else v for k, v in stripes.state_dict().items()})
            assert close(stripes(x), before / 2)
            other = copy.deepcopy(stripes)
            other.weight.zero_()
            other.bias.zero_()
            assert not other(x).any()
            assert stripes(x).any()


@pytest.mark.parametrize("name", [*ON_CPU, None])
def test_changes_that_pytorch_cannot_see(name: str | None) -> None:
    """In-place on `.data`, as hand-written averages of weights do it; casts and moves."""
    _, stripes = layer(padding=1)
    x = torch.randn(2, 5, 8, 8)
    stripes.kernels |= {size_of(x): name} if name else {}
    with torch.no_grad():
        before = stripes(x)
        stripes.weight.data.mul_(0.5).add_(stripes.weight.data, alpha=3)
        stripes.bias.data.mul_(2)
        assert close(stripes(x), 2 * before)
        stripes.half().float()
        assert close(stripes(x), stripes.to_dense()(x))
        stripes.weight.data[0, 0] += 1  # a single one may lie beside those that are looked at, until …
        stripes.eval()
        assert close(stripes(x), stripes.to_dense()(x))
        stripes.weight = nn.Parameter(torch.zeros_like(stripes.weight))
        stripes.bias = nn.Parameter(torch.zeros_like(stripes.bias))
        assert not stripes(x).any()


@pytest.mark.parametrize("name", [*ON_CPU, None])
def test_changes_in_inference_mode(name: str | None) -> None:
    x = torch.randn(2, 5, 8, 8)
    with torch.inference_mode():
        _, stripes = layer(padding=1, bias=False)
        stripes.kernels |= {size_of(x): name} if name else {}
        before = stripes(x)
        stripes.weight[0, 0] += 1  # any of them
        assert close(stripes(x), stripes.to_dense()(x))
        assert not close(stripes(x), before)
        stripes.load_state_dict({"weight": -stripes.weight, "kept": stripes.kept.flip(0)})
        assert close(stripes(x), stripes.to_dense()(x))


def test_a_call_is_nothing_but_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the weights stay as they are, and no other kernel was chosen."""
    conv, stripes = layer(padding=1)
    x = torch.randn(2, 5, 8, 8)
    ways: list[str] = []
    run = StripeConv2d.run
    monkeypatch.setattr(StripeConv2d, "run", lambda self, *args: ways.append("run") or run(self, *args))
    with torch.no_grad():
        for _ in range(3):
            assert close(stripes(x), conv(x))
        assert ways == ["run"]  # once, which prepares the weights
        assert close(stripes(x[0]), conv(x[:1])[0])
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(2):
                assert stripes(x).dtype == torch.bfloat16
        assert len(ways) == 2
        with pytest.raises(sc.ConfigError, match=r"got an input of torch\.bfloat16"):
            stripes(x.bfloat16())  # the weights are prepared in this type, for autocast
        stripes(x)
        with pytest.raises(sc.ConfigError, match="5 input channels"):
            stripes(x[:, :3])
        ways.clear()
        stripes.kernels[size_of(x)] = "gemm"
        assert close(stripes(x), conv(x))
        assert ways == ["run"]
        stripes.kernels.clear()
    ways.clear()
    assert stripes(x).requires_grad
    assert not ways


def test_a_bias_behind_a_parametrization() -> None:
    _, stripes = layer(padding=1)
    x = torch.randn(2, 5, 8, 8)
    with torch.no_grad():
        plain = stripes(x) - stripes.bias[:, None, None]
        torch.nn.utils.parametrize.register_parametrization(stripes, "bias", nn.Softplus())
        for _ in range(2):
            assert close(stripes(x), plain + stripes.bias[:, None, None])


def test_on_an_accelerator() -> None:
    """Only the dense convolution, with a weight in the format of the input: cuDNN would convert it in each call."""
    conv, stripes = layer(padding=1)
    images = torch.randn(2, 5, 8, 8)
    with FakeDevice():
        there, x = copy.deepcopy(stripes).to("xpu"), images.to("xpu")
        assert [name for name, kernel in KERNELS.items() if kernel.usable(x)] == ["dense"]
        for form in (torch.contiguous_format, torch.channels_last):
            there.eval()
            with torch.no_grad():
                assert close(there.run("gemm", x.contiguous(memory_format=form)).cpu(), conv(images))
            assert there._prepared.cached["dense"].is_contiguous(memory_format=form)  # type: ignore[union-attr]
    with torch.inference_mode(), FakeDevice():  # a change would go unnoticed
        x = images.to("xpu")
        there = sc.StripeConv2d(5, stripes.kept.to("xpu"), padding=1, device="xpu")
        before = there.run("dense", x)
        there.weight.mul_(2)
        there.bias.mul_(2)  # type: ignore[union-attr]
        assert close(there.run("dense", x).cpu(), 2 * before.cpu())


def test_inputs_of_another_type_are_refused_as_by_a_convolution() -> None:
    _, stripes = layer(padding=1)
    x = torch.randn(1, 5, 8, 8)
    for dtype in (torch.uint8, torch.int64, torch.float64, torch.float16):
        with torch.no_grad(), pytest.raises(sc.ConfigError, match=f"torch.float32 weights got an input of {dtype}"):
            stripes(x.to(dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), pytest.raises(sc.ConfigError, match="float64"):
        stripes(x.double())


@pytest.mark.parametrize("name", ON_CPU)
def test_an_output_that_would_be_empty_is_refused(name: str) -> None:
    stripes = sc.StripeConv2d(5, torch.ones(4, 3, 5, dtype=torch.bool), stride=(3, 1), padding=(3, 0))
    with torch.no_grad(), pytest.raises((RuntimeError, sc.ConfigError)):
        stripes.run(name, torch.randn(17, 5, 2, 4))


def test_one_channel_and_uneven_strides() -> None:
    """PyTorch's convolution goes wrong here with a weight whose strides are not the usual ones."""
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 12, 5, stride=(1, 2), padding=(0, 1))
    kept = torch.rand(12, 5, 5) < 0.6
    x, stripes = torch.randn(10, 1, 11, 4), sc.StripeConv2d.of(conv, kept)
    with torch.no_grad():
        conv.weight.mul_(kept[:, None])
        wanted = conv(x)
        for name in ON_CPU:
            assert close(stripes.run(name, x), wanted), name
    assert close(stripes(x).detach(), wanted)


def test_traced_by_others() -> None:
    _, stripes = layer(padding=1)
    net = nn.Sequential(stripes, nn.ReLU()).eval()
    x = torch.randn(2, 5, 8, 8)
    sc.tune(net, x)
    wanted = net(x).detach()
    symbolic = torch.fx.symbolic_trace(net)
    assert close(symbolic(x).detach(), wanted)
    assert any("stripe_conv" in str(node.target) for node in symbolic.graph.nodes)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            assert close(torch.jit.trace(net, x)(x).detach(), wanted)
    with torch.no_grad():
        assert copy.deepcopy(net).to("meta")(x.to("meta")).shape == wanted.shape


def test_inference_tensors_have_no_version() -> None:
    """Of one of them nothing is said about the other."""
    _, stripes = layer(padding=1, bias=False)
    x = torch.randn(1, 5, 8, 8)
    with torch.inference_mode():
        stripes.kept = stripes.kept.clone()
    with torch.no_grad():
        before = stripes(x)
        stripes.weight.mul_(2)
        assert close(stripes(x), 2 * before)
    with torch.inference_mode():
        stripes.weight = nn.Parameter(stripes.weight.clone(), requires_grad=False)
        assert close(stripes(x), 2 * before)
    wide, x = sc.StripeConv2d(16, torch.ones(8, 3, 3, dtype=torch.bool), padding=1), torch.randn(1, 16, 8, 8)
    with torch.inference_mode():
        wide.kept = wide.kept.clone()
    with torch.no_grad():
        wide(x)
        wide.weight[0, 1] += 1  # one that lies beside those whose values are looked at
        assert close(wide(x), wide.to_dense()(x))


def test_changes_of_where_stripes_are() -> None:
    """Which they are, and the convolution's own attributes, beside weights that stay."""
    _, stripes = layer(padding=1, bias=False)
    x = torch.randn(2, 5, 8, 8)
    for name in (None, *ON_CPU):
        stripes.kernels |= {size_of(x): name} if name else {}
        with torch.no_grad():
            stripes.padding, stripes.stride = (1, 1, 1, 1), (1, 1)
            stripes(x)
            stripes.kept.copy_(stripes.kept.flip(0))
            assert close(stripes(x), stripes.to_dense()(x))
            stripes.padding, stripes.stride = (0, 2, 1, 1), (2, 1)
            assert close(stripes(x), stripes.to_dense()(x))


def test_saved_and_copied() -> None:
    _, stripes = layer(padding=1)
    x = torch.randn(1, 5, 8, 8)
    with torch.no_grad():
        wanted = stripes(x)
        again = StripeConv2d(5, stripes.kept, padding=1)
        again.load_state_dict(stripes.state_dict())
        assert torch.equal(again(x), wanted)
        stream = io.BytesIO()
        torch.save(stripes, stream)
        stream.seek(0)
        assert torch.equal(torch.load(stream, weights_only=False)(x), wanted)
        assert torch.equal(stripes(x[0]), wanted[0])


def test_exported() -> None:
    _, stripes = layer(padding=1)
    x = torch.randn(2, 5, 8, 8)
    program = torch.export.export(stripes.eval(), (x,))
    assert close(program.module()(x), stripes(x))


def test_tuned() -> None:
    """Every usable kernel is measured at the sizes that occur, the choice is the fastest, the model is left alone."""
    _, one = layer(0.5, channels=8, filters=8, padding=1)
    _, two_ = layer(0.05, channels=8, filters=8, padding=1)
    model = nn.Sequential(one, nn.BatchNorm2d(8), nn.MaxPool2d(2), two_)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(2, 8, 32, 32)
    found = tune(model, x, rounds=3)
    assert list(found) == ["0", "3"]
    assert model.training
    for name, times in found.items():
        module: Any = model.get_submodule(name)
        assert set(times) >= {"dense", "gemm"}
        (chosen,) = module.kernels.values()
        kept = [t for kernel, t in times.items() if KERNELS[kernel].keeps_format]
        assert times[chosen] in ([1.0] if chosen == "dense" else [min(times.values()), min(kept)])
    assert list(one.kernels) == ["cpu float32 2x8x32x32"]
    assert list(two_.kernels) == ["cpu float32 2x8x16x16"]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    wanted = [one.to_dense(), two_.to_dense()]
    with torch.no_grad():
        assert close(one(x), wanted[0](x))
        assert close(two_(x[..., :16, :16]), wanted[1](x[..., :16, :16]))


def test_a_slow_kernel_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateurs.stripes import kernels

    _, stripes = layer(padding=1)

    def slowly(run: Any) -> Any:
        return lambda *args: [run(*args) for _ in range(50)].pop()

    for name, kernel in KERNELS.items():
        if name != "dense":
            monkeypatch.setitem(KERNELS, name, kernels.Kernel(slowly(kernel.run), kernel.usable))
    tune(stripes, torch.randn(4, 5, 32, 32), rounds=3)
    assert set(stripes.kernels.values()) == {"dense"}


class SlowUnlessLast(nn.Module):
    """Likes channels_last, as pooling on CPUs does."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_contiguous(memory_format=torch.channels_last):
            time.sleep(0.01)
        return x


class Views(nn.Module):
    """Can't take channels_last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1)


@pytest.mark.skipif("not native.load()", reason="no compiler")
def test_what_follows_decides_about_the_memory_format() -> None:
    _, stripes = layer(padding=1)
    x = torch.randn(3, 5, 8, 8)
    (own,) = tune(nn.Sequential(stripes, SlowUnlessLast()), x, rounds=2).values()
    assert list(stripes.kernels.values()) == ["native-images-last"]
    assert own["native-images-last"] < 0.5
    with torch.no_grad():
        assert stripes(x).is_contiguous(memory_format=torch.channels_last)
    (own,) = tune(nn.Sequential(stripes, Views()), x, rounds=2).values()
    assert set(own) == {*ON_CPU} - {"native-images-last"}
    assert set(stripes.kernels.values()) <= set(own)


def test_a_failed_tuning_leaves_the_choice() -> None:
    _, stripes = layer(padding=1)
    stripes.kernels["cpu float32 3x5x8x8"] = "gemm"
    model = nn.Sequential(stripes, nn.Linear(3, 2))
    with pytest.raises(sc.TraceError, match="expects 3 features"):
        tune(model, torch.randn(3, 5, 8, 8), rounds=2)
    assert stripes.kernels == {"cpu float32 3x5x8x8": "gemm"}
    assert model.training
    assert stripes.training


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The reason is said once, and the dense convolution does."""
    _, stripes = layer(padding=1)
    x = torch.randn(1, 5, 8, 8)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    native.load.cache_clear()
    try:
        with caplog.at_level(logging.WARNING), torch.no_grad():
            stripes.kernels[size_of(x)] = "native"
            assert torch.equal(stripes(x), stripes.run("dense", x))
            assert torch.equal(stripes(x), stripes.run("dense", x))
        assert [r.name for r in caplog.records].count("secateurs") == 1
        assert "cannot be built" in caplog.text
        assert not list(tmp_path.rglob("*.so"))
    finally:
        native.load.cache_clear()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_any_number_of_axes(axes: int) -> None:
    """The outputs, gradients and costs of the masked convolution, whole and by itself, as a module and as one op."""
    conv_of = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    every = st.tuples(*[st.integers(1, 3)] * axes)

    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(kernel=every, stride=every, dilation=every, padding=st.one_of(every, st.sampled_from(["same", "valid"])),
           share=st.sampled_from([0.0, 0.2, 0.6, 1.0]), seed=st.integers(0, 9), bias=st.booleans())  # fmt: skip
    def check(kernel: Any, stride: Any, dilation: Any, padding: Any, share: float, seed: int, bias: bool) -> None:
        torch.manual_seed(seed)
        stride = 1 if padding == "same" else stride
        conv = conv_of(3, 5, kernel, stride, padding, dilation, bias=bias)
        kept = torch.rand(5, *kernel) < share
        with torch.no_grad():
            conv.weight.mul_(kept[:, None])
        stripes, x = sc.StripeConv.of(conv, kept), torch.randn(2, 3, *(9, 8, 7)[:axes])
        assert type(stripes).__name__ == f"StripeConv{axes}d"
        expected = conv(x)
        with torch.no_grad():
            assert close(stripes(x), expected)
            assert close(stripes(x[0]), expected[0])
            assert close(stripes.to_dense()(x), expected)
            with FlopCounterMode(display=False) as counted:
                assert close(stripes(x), expected)  # as one op
        assert counted.get_total_flops() == 2 * int(kept.sum()) * 3 * expected[:, 0].numel()
        grads = torch.autograd.grad(expected.square().sum(), conv.weight)[0]
        own = torch.autograd.grad(stripes(x).square().sum(), stripes.weight)[0]
        assert not kept.any() or close(own, grads.movedim(1, -1)[kept])

    check()


@pytest.mark.parametrize("axes", [1, 3])
def test_other_axes_than_two_are_dense(axes: int) -> None:
    kind = (sc.StripeConv1d, sc.StripeConv3d)[axes // 2]
    stripes, x = kind(3, torch.rand(5, *[3] * axes) < 0.5), torch.randn(2, 3, *[8] * axes)
    assert sc.tune(stripes, x, rounds=1) == {"": {"dense": 1.0}}
    with torch.no_grad(), pytest.raises(sc.ConfigError, match="3 input channels got an input of shape"):
        stripes(x.transpose(0, 1))


def test_padding_of_any_number_of_axes() -> None:
    x = torch.randn(1, 2, 6)
    once = sc.StripeConv1d(2, torch.ones(3, 2, dtype=torch.bool), padding=(1, -2))
    weight, bias = once.dense_weight(), once.bias
    assert close(once(x), F.conv1d(F.pad(x, (1, -2)), weight, bias))
    volume = torch.randn(1, 2, 5, 6, 7)
    deep = sc.StripeConv3d(2, torch.ones(3, 2, 1, 3, dtype=torch.bool), padding=(0, 1, 2, -1, -2, 3))
    expected = F.conv3d(F.pad(volume, (-2, 3, 2, -1, 0, 1)), deep.dense_weight(), deep.bias)
    assert close(deep(volume), expected)
    assert close(deep.to_dense()(volume), expected)
    with pytest.raises(
        sc.ConfigError, match=r"kept must be a bool tensor \(filters, columns\), not torch\.bool \(3, 2, 2\)"
    ):
        sc.StripeConv1d(2, torch.ones(3, 2, 2, dtype=torch.bool))


def test_bad_input() -> None:
    conv = nn.Conv2d(4, 6, 3)
    with pytest.raises(sc.ConfigError, match=r"require an nn\.Conv1d, nn\.Conv2d or nn\.Conv3d, got Linear"):
        StripeConv2d.of(nn.Linear(4, 6), torch.ones(6, 3, 3, dtype=torch.bool))  # type: ignore[arg-type]
    with pytest.raises(sc.ConfigError, match="groups"):
        StripeConv2d.of(nn.Conv2d(4, 6, 3, groups=2), torch.ones(6, 3, 3, dtype=torch.bool))
    with pytest.raises(sc.ConfigError, match="padding_mode='reflect'"):
        StripeConv2d.of(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), torch.ones(6, 3, 3, dtype=torch.bool))
    with pytest.raises(sc.ConfigError, match=r"\(6, 3, 3\)"):
        StripeConv2d.of(conv, torch.ones(6, 9, dtype=torch.bool))
    with pytest.raises(sc.ConfigError, match="bool"):
        StripeConv2d.of(conv, torch.ones(6, 3, 3))
    with pytest.raises(sc.ConfigError, match="4 input channels"), torch.no_grad():
        StripeConv2d.of(conv, torch.ones(6, 3, 3, dtype=torch.bool))(torch.randn(1, 3, 8, 8))
