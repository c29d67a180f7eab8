"""Two networks timed in turn. No test asserts on seconds: clocks and programs are made up."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.deploy import Target, clock, memory
from secateurs.deploy.clock import Program, Spread, in_turn, ratios
from secateurs.deploy.inputs import batch_of, batched
from secateurs.deploy.target import DTYPES
from tests.networks import conv, head


def network(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(conv(3, width), nn.BatchNorm2d(width), nn.ReLU(), conv(width, width), head(width))


X = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class _Clock:
    """Time passes only when a program runs, and more slowly or fast with the load of the machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.load, self.runs = 0.0, 1.0, list[str]()
        monkeypatch.setattr(clock.time, "perf_counter", lambda: self.now)

    def program(self, name: str, seconds: float) -> Program:
        def run() -> None:
            self.now += seconds * self.load
            self.runs.append(name)

        return Program(run)


def test_the_load_of_the_machine_falls_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    time = _Clock(monkeypatch)
    slow, fast = time.program("slow", 0.04), time.program("fast", 0.02)

    def loaded() -> None:
        time.load = 1.0 + len(time.runs) % 7  # other in every run
        slow.run()

    found = in_turn({"slow": Program(loaded), "fast": fast}, 10.0)
    assert len(found["slow"]) == len(found["fast"]) >= clock.LEAST
    pairs = [time.runs[i : i + 2] for i in range(-8, 0, 2)]
    assert pairs[0] != pairs[1]  # neither is always the first
    steady = _Clock(monkeypatch)
    found = in_turn({"a": steady.program("a", 0.03), "b": steady.program("b", 0.01)}, 1.0)
    assert ratios(found, "a", "b").median == pytest.approx(3)
    assert Spread.of(found["a"]).median == pytest.approx(0.03)


def test_short_runs_are_repeated_between_two_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    time = _Clock(monkeypatch)
    found = in_turn({"a": time.program("a", 1e-4)}, 0.05)
    assert Spread.of(found["a"]).median == pytest.approx(1e-4)
    assert len(time.runs) >= 100 * len(found["a"])


def test_a_run_that_the_machine_holds_up_at_first_does_not_say_how_many_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    time = _Clock(monkeypatch)
    short = time.program("a", 1e-4)

    def held_up() -> None:
        time.load = 200.0 if len(time.runs) == 1 else 1.0  # the run after the one that compiles
        short.run()

    found = in_turn({"a": Program(held_up)}, 0.05)
    assert len(time.runs) >= 100 * len(found["a"])


def test_inputs_that_do_not_fit_are_said() -> None:
    with pytest.raises(sc.TraceError, match=r"'0' \(Conv2d\) expects \(N, 3, H, W\) but gets \(1, 4, 12, 12\)"):
        sc.bench(network(8), network(4), torch.randn(1, 4, 12, 12))


def test_a_bench() -> None:
    model, small = network(8).train(), network(4)
    found = sc.bench(model, small, X, seconds=0.01, batches=[1, 3])
    assert [row.batch for row in found.rows] == [1, 3]
    assert [row.inputs for row in found.rows] == [((3, 12, 12),)] * 2
    assert all(row.speedup > 0 and row.ratio.low <= row.speedup <= row.ratio.high for row in found.rows)
    assert found.speedup == found.rows[0].speedup
    assert found.original.macs == sc.count(model, X).macs
    assert model.training
    assert json.loads(json.dumps(found.record()))["rows"][1]["batch"] == 3
    for row in found.rows:
        assert row.memory is not None
        assert row.memory[0] > row.memory[1]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes(runtime: Any) -> None:
    if torch.__version__.startswith("2.6.") or Target(runtime).missing:
        pytest.skip("not installed, or PyTorch 2.6")
    found = sc.bench(network(8), network(4), X, Target(runtime, threads=1), seconds=0.01)
    assert found.rows[0].threads == 1
    assert found.rows[0].memory is None


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_take_the_inputs_of_a_network_in_any_number_format(runtime: Any, dtype: torch.dtype) -> None:
    if (missing := Target(runtime).missing) is not None or torch.__version__.startswith("2.6."):
        pytest.skip(missing or "ONNX needs a newer PyTorch")
    found = sc.bench(network(8).to(dtype), network(4).to(dtype), X.to(dtype), target=runtime, seconds=0.01)
    assert found.rows[0].speedup > 0


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"channels_last": True}, {"threads": 1, "batch": 2}])
def test_settings_of_pytorch(options: dict[str, Any]) -> None:
    threads = torch.get_num_threads()
    found = sc.bench(network(8), network(4), X, Target("torch-cpu", **options), seconds=0.01)
    assert found.rows[0].batch == options.get("batch", 1)
    assert torch.get_num_threads() == threads


def test_numbers_of_any_kind() -> None:
    found = sc.bench(network(8), network(4), X, seconds=0.01, batches=np.arange(1, 3))
    assert [row["batch"] for row in json.loads(json.dumps(found.record()))["rows"]] == [1, 2]


@pytest.mark.parametrize(("dtype", "precision"), [(torch.bfloat16, "bf16"), (torch.float64, "fp32")])
def test_what_runs_is_what_the_target_says(dtype: torch.dtype, precision: str) -> None:
    """A network in half precision stays so, and any other one is converted."""
    seen = set[torch.dtype]()
    model = network(8).to(dtype)
    model[0].register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    found = sc.bench(model, network(4).to(dtype), X.to(dtype), seconds=0.01)
    assert found.rows[0].target.precision == precision
    assert seen == {DTYPES[precision]}


def test_a_network_of_several_precisions_runs_as_it_is() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 4, 3).bfloat16(), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x.bfloat16()).mean((2, 3)).float())

    assert sc.bench(Mixed(), Mixed(), torch.randn(1, 3, 8, 8), seconds=0.01).rows


def test_a_target_that_is_not_there_is_skipped_if_there_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = sc.bench(network(8), network(4), X, ["torch-cuda", "torch-cpu"], seconds=0.01)
    assert [row.target.runtime for row in found.rows] == ["torch-cpu"]
    assert "no GPU" in found.skipped[0]
    with pytest.raises(sc.ConfigError, match="target='torch-cuda' cannot be used: there is no GPU"):
        sc.bench(network(8), network(4), X, "torch-cuda")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "tensorrt"}, "target='tensorrt' does not exist. Known: onnxruntime, openvino, torch-cpu"),
        ({"target": 3}, "target=3 is not a valid target"),
        ({"target": []}, "There is no target"),
        ({"seconds": 0}, "seconds=0 must be positive"),
        ({"batches": [0]}, "batch=0 must be a whole number"),
        ({"batches": 2.5}, "batch=2.5 must be a whole number"),
    ],
)
def test_what_is_not_valid(options: dict[str, Any], message: str) -> None:
    with pytest.raises(sc.ConfigError, match=message):
        sc.bench(network(8), network(4), X, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "onnxruntime", "precision": "fp16"}, "runs in fp32"),
        ({"runtime": "openvino", "channels_last": True}, "channels_last=True is a setting of PyTorch"),
        ({"mode": "cudagraphs"}, "needs a GPU"),
        ({"precision": "int4"}, "precision='int4' does not exist"),
        ({"channels_last": "yes"}, "channels_last='yes' must be True or False"),
        ({"threads": 0}, "threads=0 must be a whole number"),
    ],
)
def test_targets_that_do_not_exist(options: dict[str, Any], message: str) -> None:
    with pytest.raises(sc.ConfigError, match=message):
        Target(**options)


def test_batches_of_example_inputs() -> None:
    x = torch.arange(6.0).reshape(3, 2)
    assert batch_of({"a": x, "b": x[:, :1]}) == 3
    assert batch_of((x, x[:2])) is None
    assert batched((x, x), 5)[1].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    assert batched(x, 1).tolist() == [[0, 1]]
    assert batched(x, None) is x
    with pytest.raises(sc.ConfigError, match="batch=2 needs inputs whose first axis is the batch"):
        batched([torch.randn(3, 8, 8), torch.randn(1, 9, 9)], 2)


def test_batches_of_a_detectors_inputs() -> None:
    """Lists of images of several sizes, and of their targets."""
    images, targets = [torch.zeros(3, 8, 9), torch.ones(3, 7, 8)], [{"labels": torch.tensor([i])} for i in range(2)]
    assert batch_of((images, targets)) == 2
    more, theirs = batched((images, targets), 5)
    assert [x.shape[1] for x in more] == [8, 7, 8, 7, 8]
    assert [y["labels"].item() for y in theirs] == [0, 1, 0, 1, 0]
    assert len(batched({"images": tuple(images)}, 1)["images"]) == 1


def test_the_peak_of_memory() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(100))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x + self.weight  # 400 bytes
            z = y.repeat(10)  # 4,000
            del y
            z = z * 2  # two of 4,000 are alive now
            return z[:100].clone()

    x = torch.zeros(100)
    model = Net()
    with torch.no_grad():
        assert memory.peak(model, lambda: model(x), x) == 400 + 400 + 2 * 4000
