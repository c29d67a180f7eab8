"""What follows what in a network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import secateurs as sc
from secateurs.graph.families import Family
from secateurs.graph.flow import Flow, Op


def flow(model: nn.Module, shape: tuple[int, ...] = (2, 3, 8, 8)) -> Flow:
    return sc.trace(model, torch.zeros(shape)).flow


def reader(found: Flow, name: str) -> Op:
    return found.readers([name])[0]


class Residual(nn.Module):
    """conv → bn → relu (in place) → conv → bn → += shortcut → relu → pool → fc."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.fc(self.relu(y).mean((2, 3)))


def test_layers_come_in_execution_order() -> None:
    found = flow(Residual())
    assert [found.parameters(op)[0].split(".")[0] for op in found.layers] == ["stem", "conv1", "conv2", "fc"]
    assert [op.call.module for op in found.layers] == ["stem", "conv1", "conv2", "fc"]
    assert found.layers[-1].family is Family.PRODUCT


def test_consumers_of_channels() -> None:
    graph = sc.trace(Residual(), torch.zeros(2, 3, 8, 8))
    group = graph["stem"]
    readers = graph.flow.readers(s.param for s in group.slots if s.consumes)
    assert [op.call.module for op in readers] == ["conv1", "fc"]


def test_what_follows_a_layer_with_ops_in_place_and_a_reused_module() -> None:
    found = flow(Residual())
    after = found.after(reader(found, "conv1.weight"))
    assert [op.call.module for op in after.norm] == ["bn1"]
    assert [(op.call.module, op.call.occurrence) for op in after.activation] == [("relu", 0)]
    assert after.output is not None
    assert found.uses(after.output) == (reader(found, "conv2.weight"),)
    second = found.after(reader(found, "conv2.weight"))
    assert second.norm
    assert not second.activation  # an addition is between
    assert [c.occurrence for c in found.runs("relu")] == [0, 1]


def test_the_sum_that_a_layer_flows_into() -> None:
    found = flow(Residual())
    (total,) = found.sums(reader(found, "conv2.weight"))
    assert total.op.family is Family.ADDITION
    assert [op.call.module for op in total.through] == ["bn2"]
    (other,) = total.others
    maker = found.maker(other)
    assert maker is not None
    assert maker.call.module == "stem"
    assert found.sums(reader(found, "conv1.weight")) == ()  # a non-linearity is between
    assert found.sums(reader(found, "stem.weight")) == ()  # used by two
    between = found.between(reader(found, "conv2.weight"), reader(found, "fc.weight"))
    assert [op.family for op in between] == [Family.BATCH_NORM, Family.ADDITION, Family.ACTIVATION, Family.POOLING]
    assert [op.linear for op in between] == [True, True, False, False]


def test_the_deepest_feature_map() -> None:
    found = flow(Residual())
    assert found.deepest is not None
    assert found.deepest.shape == (2, 4, 8, 8)
    maker = found.maker(found.deepest)
    assert maker is not None
    assert (maker.call.module, maker.call.occurrence) == ("relu", 1)


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(6, 5, 1)
        self.scale = nn.Parameter(torch.ones(5, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.cat([F.relu(self.a(x)), F.group_norm(self.b(x), 2)], 1)
        return {"y": self.c(y) * self.scale, "x": x}


def test_concatenation_functions_and_structured_outputs() -> None:
    found = flow(Concat())
    c = reader(found, "c.weight")
    joined = found.maker(c.live[0])
    assert joined is not None
    assert joined.family is Family.CONCATENATION
    assert len(joined.inputs) == 2
    assert [op.family for op in found.after(reader(found, "b.weight")).norm] == [Family.NORM]
    assert found.readers(["scale"])[0].inputs[0] is c.outputs[0]
    assert found.outputs[1] is found.inputs[0]
    assert found.depends_on(found.outputs[0]) == (
        "a.weight",
        "a.bias",
        "b.weight",
        "b.bias",
        "c.weight",
        "c.bias",
        "scale",
    )


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(5))
        self.prelu = nn.PReLU(4)

    def forward(self, x: Tensor) -> Tensor:
        a = F.softsign(F.instance_norm(self.convs[0](x)))
        b = self.prelu(self.convs[1](x))
        c = torch.sigmoid(self.convs[2](x))
        d = self.convs[3](x)
        return a * b * c * F.relu(d) * d + torch.add(self.convs[4](x), x[:, :1], alpha=2)


def test_functions_of_several_ops() -> None:
    found = flow(Norms())
    first = found.after(reader(found, "convs.0.weight"))
    assert first.norm[0].function is not None
    assert first.activation[0].function is not None
    assert (first.norm[0].function.name, first.activation[0].function.name) == ("instance_norm", "softsign")
    assert first.norm[0].function.function is F.instance_norm
    assert [op.call.module for op in found.after(reader(found, "convs.1.weight")).activation] == ["prelu"]
    assert found.after(reader(found, "convs.2.weight")).activation
    assert not found.after(reader(found, "convs.3.weight")).activation  # something else uses its output, too
    assert found.sums(reader(found, "convs.4.weight")) == ()  # an addition with a factor is not a plain sum


class Views(nn.Module):
    """A tensor that is filled piece by piece, and one that is changed through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x.new_zeros(x.shape[0], 8, *x.shape[2:])
        y[:, :4] = self.a(x)
        y[:, 4:] = self.b(x)
        left, right = y.chunk(2, 1)
        left.relu_()
        return self.c(y) + right


def test_writes_through_views() -> None:
    found = flow(Views())
    c = reader(found, "c.weight")
    assert set(found.depends_on(c.live[0])) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    total = found.maker(found.outputs[0])
    assert total is not None
    right = total.live[1]
    assert "aten.relu_" not in {
        str(op.target and op.target.overloadpacket) for op in found.before(right)
    }  # not changed
    assert "aten.relu_" in {str(op.target and op.target.overloadpacket) for op in found.before(c.live[0])}


class Reshaped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).mean((2, 3), keepdim=True)
        y.squeeze_(3).squeeze_(2)
        if y.sum() > 1e9:  # needs values: not on meta tensors
            return y
        return self.fc(y)


def test_real_tensors_and_shapes_that_change_in_place() -> None:
    found = flow(Reshaped())
    conv, fc = found.layers
    pooled = next(op for op in found.ops if op.family is Family.POOLING).outputs[0]
    assert pooled.shape == (2, 4, 1, 1)
    assert fc.live[0].shape == (2, 4)
    assert fc in found.behind(*conv.outputs)


def test_weights_that_are_computed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 5, 1)))
    found = flow(model)
    assert len(found.layers) == 2
    assert "1.parametrizations.weight.original1" in found.parameters(found.layers[1])
    assert found.readers(["1.parametrizations.weight.original1"]) == (found.layers[1],)


def test_modules_are_followed_under_hooks_of_any_kind() -> None:
    """A hook of every module, as a FLOP counter sets it, or one of the backward pass takes another way through PyTorch."""
    plain, model = flow(Residual()), Residual()
    with FlopCounterMode(display=False):
        counted = flow(model)
    model.conv1.register_full_backward_hook(lambda *_: None)
    for found in (counted, flow(model)):
        assert [call.module for call in found.calls] == [call.module for call in plain.calls]


def test_tracing_leaves_the_hooks_alone(capsys: pytest.CaptureFixture[str]) -> None:
    model = Residual()
    model.conv1.register_forward_hook(lambda m, a, out: print("ran"))
    hooks = [(m._forward_hooks, dict(m._forward_hooks)) for m in model.modules()]
    found = flow(model)
    assert all(m._forward_hooks is h and dict(h) == old for m, (h, old) in zip(model.modules(), hooks, strict=True))
    assert capsys.readouterr().out == "ran\n"
    assert found.runs("conv1")[0].output is reader(found, "conv1.weight").outputs[0]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_every_value_comes_before_its_uses(kinds: list[int]) -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in kinds)

        def forward(self, x: Tensor) -> Tensor:
            last = x
            for kind, conv in zip(kinds, self.convs, strict=True):
                y = conv(x)
                if kind == 0:
                    y.relu_()
                elif kind < 3:
                    y += (x, last)[kind - 1]
                else:
                    y = torch.cat([y, x], 1)[:, :3]
                last, x = x, y
            return x

    found = flow(Random(), (1, 3, 2, 2))
    assert [op.call.module for op in found.layers] == [f"convs.{i}" for i in range(len(kinds))]
    for op in found.ops:
        assert all(v.made < op.index for v in op.inputs)
        assert all(v.made == op.index and found.maker(v) is op for v in op.outputs)
        assert all(op in found.uses(v) for v in op.inputs)
        assert set(found.before(*op.outputs)) - {op} == set(found.before(*op.inputs))
    for layer in found.layers:
        for total in found.sums(layer):
            assert set(total.through) <= set(found.between(layer, total.op))
