"""What only a GPU can show. `pytest -m gpu` runs these, and the device rule's tests on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import secateurs as sc
from secateurs.cli import main
from tests.test_device_rule import assert_same, batches, configured, everything, network

pytestmark = pytest.mark.gpu


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_number_formats(dtype: torch.dtype, image: Tensor) -> None:
    model = network().to("cuda", dtype)
    for name in ("l1", "npn"):
        result = sc.prune(model, image.to(dtype), configured(name), sc.Budget(macs=0.6), batches(), progress=False)
        assert {(p.device.type, p.dtype) for p in result.model.parameters()} == {("cuda", dtype)}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_training_in_reduced_precision(precision: str, image: Tensor, tmp_path: Path) -> None:
    recipe = sc.Recover(epochs=2, precision=precision)
    result = sc.prune(
        network(), image, "l1", sc.Budget(macs=0.6), sc.Data(batches(), batches()), recover=recipe, progress=False,
        folder=tmp_path,
    )  # fmt: skip
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    assert all(bool(p.isfinite().all()) for p in result.model.parameters())
    state = load_file(next(tmp_path.glob("recover/checkpoints/step-*")) / "state.safetensors")
    assert state


@pytest.fixture
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_tf32")
def test_the_proof_is_unaffected_by_tf32_and_autocast() -> None:
    model, x = sc.build("zoo:resnet20").cuda(), torch.randn(4, 3, 32, 32)
    with torch.autocast("cuda", dtype=torch.float16):
        result = sc.prune(model, x, "random", sc.Budget(macs=0.5), scope="all")
    assert result.error <= 1e-5


@pytest.fixture
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("name", ["l1", "aofp", "npn", "onestep", "pff"])
def test_deterministic_algorithms_give_the_same_result_twice(name: str, image: Tensor) -> None:
    first, second = (
        sc.prune(
            network(), image, configured(name), sc.Budget(macs=0.6), batches(), recover=sc.Recover(epochs=1),
            progress=False,
        )
        for _ in range(2)
    )  # fmt: skip
    assert first.plan == second.plan
    assert_same(everything(first.model), everything(second.model))


def test_the_result_compiles(image: Tensor) -> None:
    result = sc.prune(network().cuda().eval(), image, "l1", sc.Budget(macs=0.6))
    x = torch.randn(4, 3, 8, 8, device="cuda")
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(result.model)(x), result.model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["aofp", "npn", "onestep", "pff"])
def test_steps_in_cuda_graphs_are_the_steps(name: str, image: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    method, recover = configured(name).model_copy(update={"precision": "fp32"}), sc.Recover(epochs=2, precision="fp32")
    compiled, plain = (
        sc.prune(
            network().cuda(), image, method.model_copy(update={"compile": whether}), sc.Budget(macs=0.6), batches(),
            recover=recover.model_copy(update={"compile": whether}), progress=False,
        )
        for whether in (True, False)
    )  # fmt: skip
    assert "not compiled" not in caplog.text
    assert compiled.plan == plain.plan
    for a, b in zip(compiled.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_stripes_compute_what_the_masked_network_does() -> None:
    model, x = sc.build("zoo:resnet20").cuda().eval(), torch.randn(8, 3, 32, 32, device="cuda")
    graph = sc.trace(model, x)
    torch.manual_seed(0)
    kept = {w: torch.rand(shape) < 0.4 for w, shape in graph.kernels.items() if shape[1] > 1}
    for stripes in kept.values():
        stripes[:, 1, 1] = True
    plan = graph.plan({}, stripes=kept)
    assert sc.verify(model, plan, x) <= 1e-5
    small, masked = sc.apply(model, plan), sc.mask(model, plan)
    times = sc.tune(small, x, rounds=2)
    assert times
    with torch.no_grad():
        torch.testing.assert_close(small(x), masked(x), rtol=1e-3, atol=1e-3)


def test_the_command_line(tmp_path: Path) -> None:
    save_file(sc.build("zoo:small_cnn", num_classes=10).state_dict(), tmp_path / "w.safetensors")
    model = ("zoo:small_cnn", "--weights", str(tmp_path / "w.safetensors"))
    run = ("--data", "digits", "--method", "pff", "--macs", "0.5", "--set", "epochs=1", "--recover-epochs", "1")
    assert main(["prune", *model, *run, "--out", str(tmp_path / "run")]) == 0
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--device", "cpu"]) == 0
