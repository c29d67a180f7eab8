"""Models in half precision or float64, in channels_last, and settings that make float32 less than float32."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import secateurs as sc
from secateurs.devices import full_precision
from secateurs.placement import Placement
from secateurs.surgery import verify
from tests.test_device_rule import assert_same, batches, configured, everything, network

FORMATS = [torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("name", sc.methods())
def test_a_model_comes_back_in_the_format_it_was_given_in(name: str, dtype: torch.dtype) -> None:
    model, data = network().to(dtype), batches()
    if dtype == torch.float64:
        data = [(x.double(), y) for x, y in data]
    before = everything(model)
    result = sc.prune(
        model, torch.randn(1, 3, 8, 8, dtype=dtype), configured(name), sc.Budget(macs=0.6), sc.Data(data, data),
        recover=sc.Recover(epochs=1), device="cpu", progress=False,
    )  # fmt: skip
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert_same(everything(model), before)
    assert result.error <= 1e-5
    assert result.after.top1 is not None
    result.model(torch.randn(2, 3, 8, 8, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_batches_of_any_kind_in_half_precision(dtype: torch.dtype) -> None:
    """As the model takes them: the work is done with a copy in float32."""
    model, data = network().to(dtype), [{"image": x.to(dtype), "class": y} for x, y in batches()]
    result = sc.prune(
        model, torch.randn(1, 3, 8, 8, dtype=dtype), "l1", sc.Budget(macs=0.6), sc.Data(data, data),
        recover=[sc.Reconstruct(images=8), sc.Recover(epochs=1)], device="cpu", progress=False, check_speed=False,
        forward=lambda net, batch: (net(batch["image"]), batch["class"]),
    )  # fmt: skip
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert result.after.top1 is not None


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_what_is_not_trained_is_cut_bit_for_bit(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    result = sc.prune(model, torch.randn(1, 3, 8, 8, dtype=dtype), "l1", sc.Budget(macs=0.6))
    assert_same(everything(result.model), everything(sc.apply(model, result.plan)))
    assert (
        result.plan == sc.prune(copy.deepcopy(model).float(), torch.randn(1, 3, 8, 8), "l1", sc.Budget(macs=0.6)).plan
    )


def test_norms_kept_in_float32_stay_so() -> None:
    model = network().half()
    model[1].float(), model[4].float()
    result = sc.prune(
        model, torch.randn(1, 3, 8, 8), "l1", sc.Budget(macs=0.6), batches(), recover=sc.Recover(epochs=1)
    )
    assert {m.weight.dtype for m in result.model.modules() if isinstance(m, nn.BatchNorm2d)} == {torch.float32}
    assert {m.weight.dtype for m in result.model.modules() if isinstance(m, nn.Conv2d)} == {torch.float16}


@pytest.mark.parametrize("recover", [None, sc.Recover(epochs=1)])
@pytest.mark.parametrize("last", [False, True])
def test_the_memory_format_is_the_given_one(last: bool, recover: sc.Recover | None) -> None:
    form = torch.channels_last if last else torch.contiguous_format
    model = network().to(memory_format=form)
    result = sc.prune(
        model, torch.randn(1, 3, 8, 8), "l1", sc.Budget(macs=0.6), batches(), recover=recover, progress=False
    )
    assert all(m.weight.is_contiguous(memory_format=form) for m in result.model.modules() if isinstance(m, nn.Conv2d))


class Video(nn.Module):
    """Two kinds of convolutions, of which `Module.to(memory_format=torch.channels_last)` takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.frames, self.image, self.fc = nn.Conv3d(3, 6, (2, 3, 3)), nn.Conv2d(6, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, H, W)
        x = self.frames(torch.stack([x, x.flip(-1)], 2)).relu()
        return self.fc(self.image(x.squeeze(2)).relu().mean((2, 3)))


@pytest.mark.parametrize("recover", [None, sc.Recover(epochs=1, channels_last=True)])
@pytest.mark.parametrize("method", ["l1", "oracle"])
def test_channels_last_beside_tensors_of_five_axes(method: str, recover: sc.Recover | None) -> None:
    model = Video()
    model.image.to(memory_format=torch.channels_last)
    result = sc.prune(
        model, torch.randn(1, 3, 8, 8), method, sc.Budget(macs=0.6), batches(), recover=recover, progress=False
    )
    assert result.model.image.weight.is_contiguous(memory_format=torch.channels_last)
    assert result.model.frames.weight.is_contiguous()


class Witness(TorchFunctionMode):
    """Notes the settings that convolutions run under."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d:
            self.seen.append((settings(), torch.is_autocast_enabled("cpu")))
        return func(*args, **(kwargs or {}))


NEW = hasattr(torch.backends.cudnn, "conv")


def settings() -> list[object]:
    b = torch.backends
    if NEW:
        return [o.fp32_precision for o in (b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv)]
    return [torch.get_float32_matmul_precision(), b.cudnn.allow_tf32]


@pytest.fixture
def _settings_are_restored() -> Iterator[None]:
    before = settings()
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    if NEW:
        for owner, value in zip(
            (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.mkldnn.matmul,
             torch.backends.mkldnn.conv), before, strict=True,
        ):  # fmt: skip
            owner.fp32_precision = value


@pytest.mark.usefixtures("_settings_are_restored")
@pytest.mark.parametrize("way", ["default", "medium", "legacy", "new"])
def test_the_proof_is_in_float32_whatever_the_settings(way: str) -> None:
    if way == "medium":
        torch.set_float32_matmul_precision("medium")
    elif way == "legacy":
        torch.backends.cuda.matmul.allow_tf32 = True
    elif way == "new":
        if not NEW:
            pytest.skip("this PyTorch has no fp32_precision")
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.cudnn.conv.fp32_precision = "tf32"
    before, model, x = settings(), network(), torch.randn(1, 3, 8, 8)
    plan = sc.trace(model, x).plan({"0": range(5)})
    with torch.autocast("cpu", dtype=torch.bfloat16), Witness() as witness:
        assert verify(model, plan, x) <= 1e-5
        assert torch.is_autocast_enabled("cpu")
    assert settings() == before
    exact = ["ieee"] * 5 if NEW else ["highest", False]
    assert witness.seen
    assert all(seen == (exact, False) for seen in witness.seen)


@pytest.mark.usefixtures("_settings_are_restored")
def test_settings_come_back_after_an_error() -> None:
    torch.set_float32_matmul_precision("medium")
    before = settings()

    def fails() -> None:
        with full_precision():
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert settings() == before


def test_example_inputs_are_converted_to_the_models_format() -> None:
    for dtype in FORMATS:
        result = sc.prune(network().to(dtype), torch.randn(1, 3, 8, 8), "l1", sc.Budget(macs=0.6))
        assert result.error <= 1e-5


def test_weights_that_are_not_finite_are_named() -> None:
    model = network()
    model[3].weight.data[0, 0] = float("nan")
    with pytest.raises(sc.VerificationError, match=r"^3\.weight of the model has values that are NaN"):
        sc.prune(model, torch.randn(1, 3, 8, 8), "random", sc.Budget(macs=0.9))


def test_a_convolution_that_stripes_replace_keeps_the_number_format() -> None:
    net, x = (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)).bfloat16().eval(),
        torch.ones(1, 3, 8, 8),
    )
    placement = Placement.of(net)
    work = placement.working_copy(net, torch.device("cpu"))
    kept = torch.ones(4, 3, 3, dtype=torch.bool)
    kept[:, 0] = False  # a whole border row: a padding and a smaller convolution take its place
    small = placement.restore(sc.apply(work, sc.trace(work, x).plan({}, stripes={"2.weight": kept.numpy()})))
    assert [n for n, _ in small.named_parameters()][2:] == ["2.1.weight", "2.1.bias"]
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert small(x.bfloat16()).dtype == torch.bfloat16
