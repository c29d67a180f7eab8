"""Exported files are checked in their own runtime, and only then kept."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.data.structure import leaves
from secateurs.deploy import formats
from secateurs.deploy.dynamic import output_names
from secateurs.deploy.export import _reason
from secateurs.deploy.formats import FORMATS
from secateurs.deploy.formats.onnx import _name_outputs
from secateurs.stripes import StripeConv
from secateurs.surgery.compare import apart
from tests.networks import conv, head

X = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def network(**inside: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(conv(3, 8), *inside.values(), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8), head(8))


OLD = torch.__version__.startswith("2.6.")  # its exporters refuse ordinary networks


def installed(suffix: str) -> Any:
    missing = OLD or FORMATS[suffix].missing is not None
    return pytest.param(suffix, marks=pytest.mark.skipif(missing, reason="not installed, or PyTorch 2.6"))


every = pytest.mark.parametrize("suffix", [installed(s) for s in FORMATS])
onnx = pytest.mark.skipif(OLD or FORMATS[".onnx"].missing is not None, reason="not installed, or PyTorch 2.6")


@every
def test_a_file_of_each_format(suffix: str, tmp_path: Path) -> None:
    model = network().train()
    small = sc.prune(model, X, "l1", sc.Budget(macs=0.6)).model
    state = {k: v.clone() for k, v in small.state_dict().items()}
    path = tmp_path / f"small{suffix}"
    done = sc.export(small, path, X, metadata={"classes": ["cat", "dog"]})
    assert done.path == path
    assert done.dynamic_batch
    assert 0 <= done.error < 1e-4
    assert done.size == sum(f.stat().st_size for f in tmp_path.iterdir())
    assert {f.stem for f in tmp_path.iterdir()} == {"small"}  # nothing else is left there
    assert small.training
    assert all(torch.equal(state[k], v) for k, v in small.state_dict().items())
    file = FORMATS[suffix].open(path)
    assert file.metadata() == {"classes": ["cat", "dog"]}
    for n in (1, 2, 5):  # the batch is dynamic, though one image was given
        x = torch.randn(n, 3, 12, 12)
        with torch.no_grad():
            assert apart(file.run(x)[0], small.eval()(x)) < 1e-4


class Found:
    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


@every
@pytest.mark.parametrize("kind", ["dict", "object"])
def test_what_is_not_a_tensor_is_left_out_of_a_file(suffix: str, kind: str, tmp_path: Path) -> None:
    """Exporters raise errors of their own for it. A cut of such a network is verified by its tensors, too."""

    class Telling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Any:
            values = {"logits": self.net(x), "stride": 4, "name": "net"}
            return values if kind == "dict" else Found(**values)

    model = Telling()
    assert sc.export(model, tmp_path / f"small{suffix}", X).error < 1e-4
    found = FORMATS[suffix].open(tmp_path / f"small{suffix}").run(X)
    assert len(found) == 1
    with torch.no_grad():
        assert apart(found[0], model.net.eval()(X)) < 1e-4


@every
def test_arguments_of_any_number(suffix: str, tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 4), conv(3, 4)

        def forward(self, *xs: Tensor) -> Tensor:
            return self.a(xs[0]) - self.b(xs[1])

    assert sc.export(Wrapped(), tmp_path / f"small{suffix}", (X, 2 * X)).error < 1e-4


@every
def test_stripes_are_exported(suffix: str, tmp_path: Path) -> None:
    small = sc.prune(network(), X, "l2-stripes", sc.Budget(macs=0.6)).model
    assert any(isinstance(m, sc.StripeConv2d) for m in small.modules())
    assert sc.export(small, tmp_path / f"s{suffix}", X).error < 1e-4


@onnx
def test_stripes_are_ordinary_convolutions_in_the_file(tmp_path: Path) -> None:
    import onnx

    small = sc.prune(network(), X, "l2-stripes", sc.Budget(macs=0.6), check_speed=False).model
    path = tmp_path / "s.onnx"
    sc.export(small, path, X)
    assert {node.op_type for node in onnx.load(path).graph.node} <= {"Conv", "Relu", "ReduceMean", "Gemm", "Reshape"}
    assert any(isinstance(m, sc.StripeConv2d) for m in small.modules())  # a copy was exported


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 4), conv(1, 4)

    def forward(self, image: Tensor, depth: Tensor) -> dict[str, Tensor]:
        x = self.a(image) + self.b(depth)
        return {"map": x, "mean": x.mean((2, 3))}


@every
@pytest.mark.parametrize("named", [False, True])
def test_several_inputs_and_outputs(suffix: str, named: bool, tmp_path: Path) -> None:
    depth = torch.randn(1, 1, 12, 12)
    done = sc.export(_Two(), tmp_path / f"t{suffix}", {"image": X, "depth": depth} if named else (X, depth))
    assert done.error < 1e-4


class _Graded(nn.Module):
    """A mask and a grade; an inner value has the name of an output, an output that of an input."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep, self.out = conv(3, 6), conv(6, 6), conv(12, 2)
        self.grade = nn.Linear(6, 3)

    def forward(self, image: Tensor) -> dict[str, Any]:
        a = self.down(image).relu()
        b = self.deep(nn.functional.max_pool2d(a, 2)).relu()
        up = nn.functional.interpolate(b, size=a.shape[-2:])
        pooled = b.mean((2, 3))
        return {"image": self.out(torch.cat([a, up], 1)), "relu": {"grade": self.grade(pooled)}, "mean": [pooled * 2]}


@every
def test_images_of_any_size(suffix: str, tmp_path: Path) -> None:
    path, model = tmp_path / f"u{suffix}", _Graded().eval()
    done = sc.export(model, path, X, dynamic_size=True)
    assert done.dynamic_batch
    assert done.dynamic_size
    file = FORMATS[suffix].open(path)
    for shape in ((1, 3, 12, 12), (3, 3, 20, 32), (2, 3, 48, 10)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert max(map(apart, file.run(x), leaves(model(x)))) < 1e-4
    assert not sc.export(model, path, X).dynamic_size


@onnx
def test_axes_and_outputs_have_names(tmp_path: Path) -> None:
    import onnx

    path, model = tmp_path / "u.onnx", _Graded().eval()
    sc.export(model, path, X, dynamic_size=True)
    onnx.checker.check_model(path, full_check=True)
    file: Any = FORMATS[".onnx"].open(path)
    assert [(i.name, i.shape) for i in file.session.get_inputs()] == [("image", ["batch", 3, "height", "width"])]
    assert [o.name for o in file.session.get_outputs()] == ["image_out", "relu.grade", "mean.0"]
    sc.export(network(), path, X)
    assert [o.name for o in FORMATS[".onnx"].open(path).session.get_outputs()] == ["output"]  # type: ignore[attr-defined]


@onnx
def test_an_inner_value_with_the_name_of_an_output_makes_way(tmp_path: Path) -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"mean": x.mean((2, 3)) * 2, "relu": x.relu()}

    path = tmp_path / "m.onnx"
    assert sc.export(Mean(), path, X).error < 1e-4
    assert [o.name for o in FORMATS[".onnx"].open(path).session.get_outputs()] == ["mean", "relu"]  # type: ignore[attr-defined]


def test_a_network_for_one_size_only(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = conv(3, 4), nn.Linear(4 * 12 * 12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).flatten(1))

    with pytest.raises(sc.ExportError, match=r"does not run on inputs of 24×36: .*export without dynamic_size=True"):
        sc.export(Flat(), tmp_path / "f.pt2", X, dynamic_size=True)
    with pytest.raises(sc.ConfigError, match=r"dynamic_size=True is for images .* have none"):
        sc.export(nn.Linear(4, 2), tmp_path / "f.pt2", torch.randn(1, 4), dynamic_size=True)
    assert not list(tmp_path.iterdir())


class _Settings(nn.Module):
    """Takes arguments that are no tensors, between and after those that are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor, flag: bool | None = None, offset: Tensor | None = None, k: float = 1.0) -> Tensor:
        y = self.body(x) * k
        return y if flag is None or offset is None else y + offset


@every
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("flag", [None, True])
def test_arguments_that_are_no_tensors(suffix: str, named: bool, flag: bool | None, tmp_path: Path) -> None:
    offset = torch.randn(1, 1)
    given: Any = {"x": X, "k": 3.0, "flag": flag, "offset": offset} if named else (X, flag, offset, 3.0)
    assert sc.export(_Settings(), tmp_path / f"s{suffix}", given).error < 1e-4


class _Again(nn.Module):
    """Returns one tensor under several names, and in ways that converters see through."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.drop, self.how = network(), nn.Dropout(), how

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        if self.how == "dict":
            return {"out": y, "aux": y}
        if self.how == "tuple":
            return y, y > 0, (y, y > 0)
        return y, self.drop(y), y.clone(), y.detach()


@every
@pytest.mark.parametrize("how", ["dict", "tuple", "copies"])
def test_one_tensor_under_several_names(suffix: str, how: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    assert sc.export(_Again(how), path, X).error < 1e-4
    model, x = _Again(how).eval(), torch.randn(3, 3, 12, 12)
    with torch.no_grad():
        due, found = leaves(model(x)), FORMATS[suffix].open(path).run(x)
    assert len(found) == len(due)
    assert max(map(apart, found, due)) < 1e-4
    assert not model._forward_hooks


@every
def test_half_precision_is_exported_in_float32(suffix: str, tmp_path: Path) -> None:
    assert sc.export(network().half(), tmp_path / f"h{suffix}", X.half()).error < 1e-4


@onnx
def test_a_fixed_batch(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.offset = conv(3, 4), nn.Parameter(torch.ones(2, 1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.offset

    path = tmp_path / "fixed.onnx"
    with pytest.raises(sc.ExportError, match=r"with a batch of 4.*dynamic_batch=False"):
        sc.export(Fixed(), path, X.repeat(2, 1, 1, 1))
    assert not list(tmp_path.iterdir())
    assert not sc.export(Fixed(), path, X.repeat(2, 1, 1, 1), dynamic_batch=False).dynamic_batch


@pytest.mark.skipif(OLD, reason="PyTorch 2.6")
def test_a_file_that_does_not_agree_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = FORMATS[".pt2"].write

    def wrong(network: nn.Module, *args: Any) -> None:
        with torch.no_grad():
            next(network.parameters()).mul_(1.01)
        write(network, *args)

    before = tmp_path / "n.pt2"
    sc.export(network(), before, X)
    kept = before.read_bytes()
    monkeypatch.setitem(formats.FORMATS, ".pt2", replace(FORMATS[".pt2"], write=wrong))
    with pytest.raises(sc.ExportError, match="does not agree with the network"):
        sc.export(network(), before, X)
    assert before.read_bytes() == kept
    assert len(list(tmp_path.iterdir())) == 1


@onnx
def test_int8(tmp_path: Path) -> None:
    model = network().eval()
    whole = sc.export(model, tmp_path / "whole.onnx", X)
    batches = [(torch.randn(4, 3, 12, 12), torch.zeros(4, dtype=torch.long)) for _ in range(3)]
    done = sc.export(model, tmp_path / "int8.onnx", X, int8=sc.Data(train=batches), metadata={"a": 1})
    assert 1e-4 < done.error < 0.2
    text = (tmp_path / "int8.onnx").read_bytes()
    assert b"QuantizeLinear" in text
    assert b"QuantizeLinear" not in whole.path.read_bytes()
    assert FORMATS[".onnx"].open(done.path).metadata() == {"a": 1}
    assert {f.name for f in tmp_path.iterdir()} == {"whole.onnx", "int8.onnx"}


@pytest.mark.parametrize(
    ("path", "options", "error", "message"),
    [
        ("a.tflite", {}, sc.ConfigError, r"\.tflite is not a format.*Known: \.onnx, \.pt2, \.xml"),
        ("a", {}, sc.ConfigError, "no suffix"),
        ("a.pt2", {"int8": []}, sc.ConfigError, r"int8=… is for \.onnx files, not for \.pt2"),
    ],
)
def test_what_cannot_be_exported(path: str, options: Any, error: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        sc.export(network(), tmp_path / path, X, **options)
    assert not list(tmp_path.iterdir())


def test_inputs_without_a_batch(tmp_path: Path) -> None:
    with pytest.raises(sc.ConfigError, match=r"no common first axis.*dynamic_batch=False"):
        sc.export(_Two(), tmp_path / "a.pt2", (X, torch.randn(3, 1, 12, 12)))


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(sc.TraceError, match=r"expects \(N, 3, H, W\) but gets \(2, 4, 12, 12\)") as caught:
        sc.export(network(), tmp_path / "m.pt2", torch.randn(2, 4, 12, 12))
    assert "batch" not in str(caught.value)  # its size is not what is wrong
    assert not list(tmp_path.iterdir())


def test_metadata_that_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(sc.ConfigError, match=r"metadata=… must be JSON-serializable: .*set"):
        sc.export(network(), tmp_path / "m.pt2", X, metadata={"classes": {"cat", "dog"}})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(FORMATS[".xml"].missing is not None, reason="OpenVINO is not installed")
def test_openvino_reports_nothing_over_the_network(tmp_path: Path) -> None:
    """In a process of its own, which nothing has imported OpenVINO in."""
    (tmp_path / "openvino_telemetry.py").write_text("import sys; sys.exit('it reports')")
    code = (
        "import sys, torch, secateurs as sc; sys.path.insert(0, sys.argv[1]);"
        "sc.export(torch.nn.Conv2d(3, 4, 3), sys.argv[1] + '/c.xml', torch.randn(1, 3, 8, 8));"
        "assert 'openvino' in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    import onnx

    return onnx.helper.make_node(kind, inputs, outputs, **attributes)


@onnx
def test_names_that_are_taken() -> None:
    """Inner values make way, also where a branch reads them; inputs do not, and no two outputs have one name."""
    import onnx
    from onnx import TensorProto, helper

    def value(name: str, kind: Any = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, [1])

    branches = [helper.make_graph([node("Neg", ["seg"], [f"b{i}"])], f"g{i}", [], [value(f"b{i}")]) for i in range(2)]
    nodes = [
        node("Relu", ["x"], ["seg"]), node("Abs", ["seg"], ["one"]), node("Exp", ["x"], ["two"]),
        node("If", ["flag"], ["three"], then_branch=branches[0], else_branch=branches[1]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [value("x"), value("flag", TensorProto.BOOL)], [value("one"), value("two"), value("three")]
    )
    _name_outputs(graph, ["seg", "x", "x_out"])
    assert [output.name for output in graph.output] == ["seg", "x_out", "x_out_out"]
    onnx.checker.check_model(helper.make_model(graph), full_check=True)
    assert graph.node[3].attribute[0].g.node[0].input[0] == graph.node[0].output[0] != "seg"


def test_outputs_are_named_by_their_place() -> None:
    x = torch.zeros(1)
    assert output_names(x) == ["output"]
    assert output_names((x, None, [x, {"a": x}])) == ["output0", "output2.0", "output2.1.a"]
    assert output_names({"a": {"b": x}, "a.b": x, "c": 3}) == ["a.b", "a.b_1"]


def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(sc.ConfigError, match=r"onnxscript.*not installed: pip install 'secateurs\[export\]'"):
        sc.export(network(), tmp_path / "a.onnx", X)


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle, self.up = conv(3, 8), conv(8, 8), nn.Upsample(scale_factor=2)
        self.head = conv(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x).relu()
        return self.head(torch.cat([self.up(self.middle(nn.functional.max_pool2d(skip, 2))), skip], 1))


@onnx
def test_int8_of_a_network_with_skips(tmp_path: Path) -> None:
    torch.manual_seed(0)  # random weights differ in how much they lose
    done = sc.export(_UNet(), tmp_path / "u.onnx", X, int8=[torch.randn(4, 3, 12, 12) for _ in range(3)])
    assert done.error < 0.2


@onnx
def test_int8_needs_batches(tmp_path: Path) -> None:
    with pytest.raises(sc.ConfigError, match="int8=… is calibrated on batches: it needs dynamic_batch=True"):
        sc.export(network(), tmp_path / "q.onnx", X, int8=[X], dynamic_batch=False)


def test_arrays_as_inputs_are_told_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(
        sc.TraceError,
        match=r"tuple, int\) \(cifar\.py:\d+\)\. It is a numpy\.ndarray: pass a tensor, for example torch\.from_numpy",
    ):
        sc.export(sc.build("zoo:small_cnn"), tmp_path / "a.pt2", np.zeros((1, 3, 32, 32), np.float32))


def test_stripes_whose_kernels_shrank_keep_what_the_code_reads(tmp_path: Path) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            conv = nn.Conv2d(3, 4, 3, padding=1)
            kept = torch.ones(4, 3, 3, dtype=torch.bool)
            kept[:, 0] = False  # the kernel loses a row, and its padding is uneven
            self.layer = StripeConv.of(conv, kept)

        def forward(self, x: Tensor) -> Tensor:
            assert self.layer.bias is not None
            return self.layer(x.to(self.layer.bias.dtype)) * self.layer.out_channels

    network = Reads().eval()
    assert sc.export(network, tmp_path / "a.pt2", torch.randn(2, 3, 8, 8)).error < 1e-6
    assert set(network.state_dict()) == set(Reads().state_dict())


def test_what_is_no_place_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").mkdir()
    with pytest.raises(sc.ConfigError, match=r"net\.pt2 is a folder: give the path of a file"):
        sc.export(network(), tmp_path / "net.pt2", X)
    with pytest.raises(sc.ConfigError, match="path=None is not the path of a file"):
        sc.export(network(), None, X)  # type: ignore[arg-type]
    with pytest.raises(sc.ConfigError, match="example inputs are empty"):
        sc.export(network(), tmp_path / "a.pt2", X[:0])


class _Chooses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * 2 if y.sum() > 0 else y


class _Eigen(_Chooses):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.linalg.eigvals(y @ y.mT).real


class _OfTwo(_Chooses):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.flatten(1) if x.shape[0] == 2 else y.flatten(1)[:, :3]


@onnx
@pytest.mark.parametrize(
    ("network", "suffix", "cause"),
    [
        (_Chooses, ".onnx", r"GuardOnDataDependentSymNode: Could not guard on data-dependent expression"),
        (_Eigen, ".onnx", r"DispatchError: No ONNX function found for .*linalg_eig"),
        (_Chooses, ".pt2", r"GuardOnDataDependentSymNode: Could not guard on data-dependent expression"),
    ],
)
def test_what_an_exporter_cannot_do_is_said_without_its_advice(
    network: type[nn.Module], suffix: str, cause: str, tmp_path: Path
) -> None:
    with pytest.raises(sc.ExportError, match=f"cannot be exported to .*: {cause}") as error:
        sc.export(network().eval(), tmp_path / f"x{suffix}", X)
    assert not re.search(r"dynamic_batch|GitHub|pytorch\.org|run with", str(error.value))


def test_a_fixed_batch_is_suggested_where_it_may_help(tmp_path: Path) -> None:
    with pytest.raises(sc.ExportError, match=r"Constraints violated \(batch\)!?\. .*dynamic_batch=False\.$"):
        sc.export(_OfTwo().eval(), tmp_path / "x.pt2", X)


def test_a_reason_is_not_the_place_of_an_error() -> None:
    text = "Exception from src/core.cpp:117:\nCheck 'x' failed at src/node.cpp:108:\nUnexpected: no dynamic rank\n"
    assert _reason(RuntimeError(text)) == "RuntimeError: Unexpected: no dynamic rank"
    steps = "Failed. Next steps:\n- Create an issue in the PyTorch GitHub repository\n\n## Summary\n\n<class 'X'>: it is odd"
    assert _reason(RuntimeError(steps)) == "RuntimeError: <class 'X'>: it is odd"
    assert _reason(RuntimeError("alone:")) == "RuntimeError: alone:"
    assert _reason(RuntimeError()) == "RuntimeError: no reason given"


@pytest.mark.parametrize("suffix", [installed(".xml")])
def test_a_file_of_the_users_beside_it_stays(suffix: str, tmp_path: Path) -> None:
    weights, path = tmp_path / "model.bin", tmp_path / f"model{suffix}"
    weights.write_bytes(b"mine")
    with pytest.raises(sc.ConfigError, match=r"model\.bin exists, without its model\.xml, and would be overwritten"):
        sc.export(network(), path, X)
    assert weights.read_bytes() == b"mine"
    weights.unlink()
    for _ in range(2):  # its own is replaced
        sc.export(network(), path, X)
