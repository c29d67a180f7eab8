"""A compiled training step is the step: nothing of a run changes, and what cannot be compiled runs as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.training import CheckpointStore, Engine, Hook, Recipe, capture
from secateurs.training.objective import Objective


class Compiler:
    """A backend that runs a graph as it is, and counts."""

    def __init__(self) -> None:
        self.graphs = self.calls = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.calls += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    torch._dynamo.reset()
    made = Compiler()
    monkeypatch.setattr(capture, "options", lambda device: {"backend": made})
    yield made
    torch._dynamo.reset()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip


def data(rows: int = 44) -> list[tuple[Tensor, Tensor]]:
    """Batches of 8, and an incomplete one."""
    torch.manual_seed(1)
    x, y = torch.randn(rows, 3, 8, 8), torch.randint(0, 4, (rows,))
    return list(zip(x.split(8), y.split(8), strict=True))


def trained(compiled: Any, batches: Any = None, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    model = network()
    recipe = Recipe(epochs=2, precision="fp32", ema=0.9, compile=compiled)
    engine = Engine(model, batches or data(), recipe, progress=False, device="cpu", **options)
    history = [{k: v for k, v in line.items() if "second" not in k} for line in engine.fit()]
    return history, model.state_dict()


def assert_same(a: tuple[Any, dict[str, Tensor]], b: tuple[Any, dict[str, Tensor]]) -> None:
    assert a[0] == b[0]
    assert all(torch.equal(x, b[1][name]) for name, x in a[1].items())


def test_the_run_is_the_same(compiler: Compiler) -> None:
    """Statistics, dropout and all. Only complete batches run compiled: 5 of 6 in each epoch, and the trial."""
    assert_same(trained(True), trained(False))
    assert (compiler.graphs, compiler.calls) == (1, 11)


def test_a_recovery_with_a_teacher(compiler: Compiler) -> None:
    found = []
    for compiled in (True, False):
        recover = sc.Recover(epochs=1, precision="fp32", compile=compiled)
        inputs, budget = torch.randn(1, 3, 8, 8), sc.Budget(macs=0.6)
        found.append(sc.prune(network(), inputs, "l1", budget, data(), recover=recover, progress=False))
    states = [result.model.state_dict() for result in found]
    assert all(torch.equal(x, states[1][name]) for name, x in states[0].items())
    assert compiler.calls == 6 + 5  # the teacher has no trial


def test_a_teacher_that_cannot_be_compiled(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def first_only(graph: Any, inputs: Any) -> Any:
        if compiler.graphs:
            raise RuntimeError("no kernel for this one")
        return compiler(graph, inputs)

    monkeypatch.setattr(capture, "options", lambda device: {"backend": first_only})
    found = [gradually("l2", sc.Recover(epochs=1, precision="fp32", compile=compiled)) for compiled in (True, False)]
    assert_same(*found)
    assert caplog.text.count("no kernel for this one") == 1
    assert compiler.calls == 6


def gradually(method: Any, recover: Any = None) -> tuple[Any, dict[str, Tensor]]:
    """Pruned by a method that trains."""
    batches = data(40)
    result = sc.prune(
        network(), torch.randn(1, 3, 8, 8), method, sc.Budget(macs=0.6), batches, recover=recover, calibrate=False,
        progress=False, device="cpu", check_speed=False,
    )  # fmt: skip
    history = [{k: v for k, v in line.items() if "second" not in k} for line in result.history]
    return history, result.model.state_dict()


@pytest.mark.parametrize(
    ("method", "graphs", "calls"),
    [
        (sc.PFF(epochs=4, precision="fp32"), 1, 21),  # a trial, and every step
        (sc.OneStep(epochs=4, precision="fp32"), 2, 2 * 21),  # β, and the network
        # The pruner network runs in ten steps of the search, the network in all: while the pruner alone is trained, while both
        # are, and with its channels fixed. There are two trials; the last batch of an epoch is never the first to be compiled.
        (sc.NPN(epochs=4, precision="fp32"), 4, 10 + 20 + 2 * 2 - 2),
    ],
)
def test_methods_that_train(compiler: Compiler, method: Any, graphs: int, calls: int) -> None:
    """Gates, masks and what methods measure: to the bit as in a run that is not compiled."""
    compiled = gradually(method.model_copy(update={"compile": True}))
    teacher = 20
    assert (compiler.graphs, compiler.calls) == (graphs + 1, calls + teacher)
    assert_same(compiled, gradually(method))


def test_mimicked_features(compiler: Compiler) -> None:
    found = []
    for compiled in (True, False):
        mimic = sc.Mimic(epochs=1, precision="fp32", compile=compiled, nodes=("6", ":output"))
        found.append(gradually("l2", mimic))
    assert_same(*found)
    assert (compiler.graphs, compiler.calls) == (2, 6 + 5)


@pytest.mark.parametrize("trials", [1, 3])
def test_aofp(compiler: Compiler, trials: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage is measured over whole layers, filters that are not ablated times zero: the same moves, and the same network."""
    monkeypatch.setattr(capture, "trials", lambda device: trials)
    method = sc.AOFP(epochs=8, precision="fp32", search_cost=2, theta=0.3)
    (compiled, network), (plain, same) = gradually(method.model_copy(update={"compile": True})), gradually(method)
    (end,) = [line for line in compiled if line.get("event") == "end"]
    assert (compiler.graphs, compiler.calls) == (1, trials + end["step"])
    assert all(torch.equal(x, same[name]) for name, x in network.items())
    assert "move" in {line.get("event") for line in compiled}
    assert compiled == [
        {**line, "damage": pytest.approx(line["damage"], rel=1e-5)} if "damage" in line else line for line in plain
    ]


@pytest.mark.parametrize("why", ["runs", "rows"])
def test_aofp_where_halves_cannot_be_drawn_before(
    why: str, compiler: Compiler, caplog: pytest.LogCaptureFixture
) -> None:
    class Irregular(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = self[1](self[0](x))
            x = self[2](self[2](x)) if why == "runs" else self[2](x.repeat_interleave(2, 0))[::2]
            return self[4](self[3](x).mean((2, 3)))

    model = Irregular(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 4))
    method, budget = sc.AOFP(epochs=1, precision="fp32", compile=True), sc.Budget(macs=0.8)
    sc.prune(model, torch.randn(1, 3, 8, 8), method, budget, data(), scope="all", progress=False, check_speed=False)
    assert compiler.graphs == 0
    assert "aofp's steps are not compiled: 2 runs several times in a pass, or on other rows" in caplog.text


def test_a_method_that_is_not_compiled(compiler: Compiler, caplog: pytest.LogCaptureFixture) -> None:
    gradually(sc.AOFP(epochs=1, precision="fp32", halves="batch", compile=True))
    assert compiler.graphs == 0
    assert "AOFP(compile=True) has no effect" in caplog.text


def test_more_networks_than_pytorch_compiles_of_one_class(compiler: Compiler) -> None:
    for _ in range(10):
        trained(True)
    assert (compiler.graphs, compiler.calls) == (10, 110)


def test_again_after_a_cut(compiler: Compiler) -> None:
    class Cut(Hook):
        def after_step(self, engine: Any) -> None:
            if engine.step == 3:
                graph = sc.trace(engine.model, torch.randn(1, 3, 8, 8))
                engine.cut(graph.plan({"0": range(5)}))

    runs = [trained(compiled, hooks=[Cut()]) for compiled in (True, False)]
    assert_same(*runs)
    assert runs[0][1]["0.weight"].shape[0] == 5
    assert compiler.graphs == 2


@pytest.mark.parametrize("again", [True, False])
def test_resumed(again: bool, compiler: Compiler, tmp_path: Path) -> None:
    """Compiled or not, as before or not: it is the same run."""

    class Stop(Exception):
        pass

    class Killed(Hook):
        def after_step(self, engine: Any) -> None:
            if engine.step == 5:
                raise Stop

    store = CheckpointStore(tmp_path)
    with pytest.raises(Stop):
        trained(True, hooks=[Killed()], checkpoints=store, save_steps=5)
    model = network()
    recipe = Recipe(epochs=2, precision="fp32", ema=0.9, compile=again)
    engine = Engine(model, data(), recipe, progress=False, device="cpu", checkpoints=store, hooks=[Hook()])
    engine.fit(resume=True)
    _, whole = trained(False, hooks=[Hook()])
    assert all(torch.equal(x, whole[name]) for name, x in model.state_dict().items())


def test_what_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One line says so, and the network trains as it is."""

    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no such compiler\nand much more")

    torch._dynamo.reset()
    monkeypatch.setattr(capture, "options", lambda device: {"backend": broken})
    assert_same(trained(True), trained(False))
    (line,) = [r.getMessage() for r in caplog.records if "compile" in r.getMessage()]
    assert "The training step is not compiled" in line
    assert "no such compiler" in line
    assert "\n" not in line
    torch._dynamo.reset()


def test_the_network_s_own_errors_are_its_own(compiler: Compiler) -> None:
    wrong = [(torch.randn(8, 5, 8, 8), torch.randint(0, 4, (8,)))] * 3
    with pytest.raises(sc.DataError, match="Batch 0 of train does not fit the model"):
        trained(True, wrong)


def test_where_it_pays() -> None:
    def run(**changes: Any) -> Any:
        plain = {
            "recipe": Recipe(), "device": torch.device("cuda"), "world": 1, "objective": Objective(), "total": 10**5, "step": 0,
            "hooks": [],
        }  # fmt: skip
        return SimpleNamespace(**{**plain, **changes})

    has_triton = capture.importlib.util.find_spec("triton") is not None
    assert capture.wanted(run()) is has_triton
    assert capture.wanted(run(recipe=Recipe(compile=True), device=torch.device("cpu")))
    own = SimpleNamespace(captures=False)
    for changes in (
        {"recipe": Recipe(compile=False)}, {"recipe": Recipe(accumulate=2)}, {"device": torch.device("cpu")}, {"world": 2},
        {"objective": Objective(step=lambda model, batch: torch.zeros(()))}, {"total": None}, {"total": 100},
        {"step": 10**5 - 100}, {"hooks": [own]},
    ):  # fmt: skip
        assert not capture.wanted(run(**changes)), changes
