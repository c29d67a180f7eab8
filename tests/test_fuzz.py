"""The fuzzer: fixed networks that must have no fault, and faults that it must find."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc

FOLDER = Path(__file__).parents[1] / "benchmarks"
SEEDS = [*range(9), *range(10, 26)]


@pytest.fixture(scope="module")
def fuzzing() -> Iterator[SimpleNamespace]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        from fuzzing import judge, kinds, networks, shrink, snapshot

        yield SimpleNamespace(
            judge=judge.judge, kinds=kinds.KINDS, network=networks.network, Spec=networks.Spec, due=judge.due,
            program=shrink.program, shrunk=shrink.shrunk, culprit=shrink.culprit, Snapshot=snapshot.Snapshot,
        )  # fmt: skip


@pytest.fixture
def plain(fuzzing: SimpleNamespace) -> Any:
    options = {"o": 5, "k": 3, "normed": True, "act": "relu"}
    return fuzzing.Spec(2, "Chain", (("Plain", options), ("Plain", {**options, "o": 6})), 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_fault(fuzzing: SimpleNamespace, seed: int) -> None:
    assert fuzzing.judge(fuzzing.network(seed)).faults == []


def test_a_seed_is_a_network(fuzzing: SimpleNamespace) -> None:
    for seed in range(5):
        spec = fuzzing.network(seed)
        a, b = spec.build(), fuzzing.Spec.from_json(spec.to_json()).build()
        assert a.state_dict().keys() == b.state_dict().keys()
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_every_block_keeps_its_space(fuzzing: SimpleNamespace) -> None:
    for kind in fuzzing.kinds.values():
        inside = {name: ("Plain", {"o": 4, "k": 1, "normed": False, "act": "relu"}) for name in kind.around}
        options = {**{name: values[0] for name, values in kind.options.items()}, **inside}
        spec = fuzzing.Spec(
            kind.dims[-1], "Chain", ((kind.name, {**({"o": 5} if "o" in kind.given else {}), **options}),), 0
        )
        net = spec.build()
        x = net.inputs()
        with torch.no_grad():
            y = net.features(x)[-1]
        assert y.shape == (2, net.width, *x.shape[2:]), kind.name
        modules = dict(net.named_modules())
        assert all(name in modules or name in dict(net.named_parameters()) for name in fuzzing.due(net)), kind.name


def test_what_is_due(fuzzing: SimpleNamespace, plain: Any) -> None:
    assert fuzzing.due(plain.build()) == ["stem", "blocks.0.conv", "blocks.1.conv"]
    kept = fuzzing.Spec(2, "Returns", plain.blocks, 0).build()
    assert fuzzing.due(kept) == ["stem", "blocks.0.conv"]
    normed = fuzzing.Spec(2, "Chain", (plain.blocks[0], ("Eca", {})), 0).build()
    assert fuzzing.due(normed) == ["stem"]


def test_rounding_of_a_small_difference_of_large_numbers_is_no_fault(
    fuzzing: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two equal images: what the frame returns second is zero but for rounding, of which little is left as a share of it."""
    options = {"o": 8, "k": 3, "normed": True, "act": "relu"}
    spec = fuzzing.Spec(2, "Siamese", (("Plain", options), ("Plain", options)), 3)

    def inputs(net: Any) -> dict[str, Tensor]:
        left = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        return {"left": left, "right": left + 1e-8 * left.roll(1, 0)}

    monkeypatch.setattr(type(spec.build()), "inputs", inputs)
    assert fuzzing.judge(spec).faults == []


@pytest.mark.parametrize("stored", ["complex", "real"])
def test_weights_of_frequencies_last_in_memory(fuzzing: SimpleNamespace, stored: str) -> None:
    inner = ("FourierGate", {"stored": stored})
    assert fuzzing.judge(fuzzing.Spec(2, "Chain", (("LastInMemory", {"inner": inner}),), 0)).faults == []


class TestFinds:
    """Faults that are put into the library."""

    def judged(
        self, fuzzing: SimpleNamespace, spec: Any, monkeypatch: pytest.MonkeyPatch, name: str, broken: Any
    ) -> set[str]:
        monkeypatch.setattr(sc, name, broken)
        return fuzzing.judge(spec).kinds

    def test_a_wrong_slice(self, fuzzing: SimpleNamespace, plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def apply(model: nn.Module, plan: Any, real: Any = sc.apply) -> nn.Module:
            small = real(model, plan)
            weight = small.blocks[1].conv.weight
            weight.data = weight.data.roll(1, 1)
            return small

        found = self.judged(fuzzing, plain, monkeypatch, "apply", apply)
        assert found == {"mismatch", "passed"}  # sc.verify slices for itself, and is content

    def test_a_wrong_refusal(self, fuzzing: SimpleNamespace, plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def verify(*_: Any) -> float:
            raise sc.VerificationError("no")

        assert self.judged(fuzzing, plain, monkeypatch, "verify", verify) == {"refused"}

    def test_a_wrong_count(self, fuzzing: SimpleNamespace, plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def count(model: nn.Module, x: Any, real: Any = sc.count) -> Any:
            cost = real(model, x)
            return type(cost)(cost.macs + 1, cost.params)

        assert self.judged(fuzzing, plain, monkeypatch, "count", count) == {"cost"}

    @pytest.mark.parametrize("what", ["buffer", "attribute", "random", "input", "module"])
    def test_what_has_changed(
        self, fuzzing: SimpleNamespace, plain: Any, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        def trace(model: Any, x: Tensor, real: Any = sc.trace) -> Any:
            graph = real(model, x)
            if what == "buffer":
                model.blocks[0].norm.running_mean += 1e-6
            elif what == "attribute":
                model.blocks[0].conv.calls = 1
            elif what == "random":
                torch.rand(1)
            elif what == "input":
                x[0, 0, 0, 0] += 1
            else:
                model.blocks[0].conv.weight = nn.Parameter(model.blocks[0].conv.weight.detach())
            return graph

        assert self.judged(fuzzing, plain, monkeypatch, "trace", trace) == {"touched"}

    def test_another_exception(self, fuzzing: SimpleNamespace, plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def apply(*_: Any) -> nn.Module:
            raise ZeroDivisionError

        assert self.judged(fuzzing, plain, monkeypatch, "apply", apply) == {"crash"}

    def test_what_does_not_end(self, fuzzing: SimpleNamespace, plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def trace(*_: Any) -> Any:
            while True:
                pass

        monkeypatch.setattr(sc, "trace", trace)
        assert fuzzing.judge(plain, seconds=0.3).kinds == {"slow"}

    def test_different_answers(self, fuzzing: SimpleNamespace, plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[int] = []

        def trace(model: nn.Module, x: Any, real: Any = sc.trace) -> Any:
            graph = real(model, x)
            calls.append(1)
            graph.groups = graph.groups[: -len(calls)]
            return graph

        assert "unstable" in self.judged(fuzzing, plain, monkeypatch, "trace", trace)

    def test_the_least_network_and_its_program(
        self, fuzzing: SimpleNamespace, plain: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        def verify(model: nn.Module, *_: Any) -> float:
            if any(isinstance(m, nn.PReLU) for m in model.modules()):
                raise sc.VerificationError("no")
            return 0.0

        monkeypatch.setattr(sc, "verify", verify)
        spec = fuzzing.Spec(2, "Dense", (*plain.blocks, ("Prelu", {"shared": False})), 0)
        least, verdict = fuzzing.shrunk(spec, "refused")
        assert fuzzing.culprit(least) == "Prelu"
        (tmp_path / "shown.py").write_text(fuzzing.program(least, "refused", "no", verdict.kept))
        monkeypatch.undo()
        runpy.run_path(str(tmp_path / "shown.py"))
        assert float(capsys.readouterr().out) <= 1e-5


def test_a_run_is_continued(
    fuzzing: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = runpy.run_path(str(FOLDER / "fuzz.py"), run_name="imported")
    judged: list[int] = []

    def examine(seed: int, *_: Any) -> dict[str, Any]:
        judged.append(seed)
        return {
            "seed": seed,
            "blocks": ["Plain"],
            "frame": "Chain",
            "faults": [["cost", "one"]] * (seed == 2),
            "least": {},
        }

    module["main"].__globals__["examine"] = examine
    out = tmp_path / "found.jsonl"
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--n", "2", "--out", str(out)])
    assert module["main"]() == 0
    out.write_text(out.read_text() + '{"seed": 2, "fau')  # killed while it wrote
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--n", "4", "--out", str(out)])
    assert module["main"]() == 1
    assert judged == [0, 1, 2, 3]
    (tmp_path / "found.jsonl.now").write_text("4 2")  # the process died twice in it
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--n", "6", "--out", str(out)])
    assert module["main"]() == 1
    assert judged == [0, 1, 2, 3, 5]
    assert "the process died" in out.read_text()
    assert "2 networks with a fault" in capsys.readouterr().out
