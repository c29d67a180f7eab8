"""Iterative pruning: one plan of the original, budgets and limits of the whole, and the same network after a kill."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.artifact.history import rounds
from secateurs.data.augment import Augment
from secateurs.data.loader import ArraySource, Loader
from secateurs.errors import ArtifactError, ConfigError
from secateurs.graph import Cost
from secateurs.methods.rounds import Rounds
from secateurs.training import CheckpointStore, Hook

INPUTS = torch.zeros(1, 3, 16, 16)
RECOVER = sc.Recover(epochs=1, lr=0.01, precision="fp32")


def network() -> nn.Module:
    torch.manual_seed(0)
    return sc.build("zoo:small_cnn", num_classes=4).eval()


def batches(count: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(16, 3, 16, 16, generator=g), torch.randint(0, 4, (16,), generator=g)) for _ in range(count)]


DATA = sc.Data(batches(2), batches(1, 1))


DEEP = sc.Budget(macs=0.4)


def pruned(method: Any = "l1", budget: Any = DEEP, rounds: int = 3, **options: Any) -> sc.Result:
    options = {"data": DATA, "device": "cpu", "progress": "silent", **options}
    return sc.prune(network(), INPUTS, method, budget, rounds=rounds, **options)


def ends(result: sc.Result) -> list[dict[str, Any]]:
    return [entry for entry in result.history if entry.get("event") == "round"]


# -- the schedule ------------------------------------------------------------------------------------------------------


def test_budgets_approach_the_final_one() -> None:
    base, final = Cost(1000, 500), sc.Budget(macs=0.2, params=100, align=4)
    linear = [Rounds(4).budget(k, final, base) for k in range(1, 5)]
    assert [(b.macs, b.params, b.align) for b in linear if b] == [
        (800, 400, 4),
        (600, 300, 4),
        (400, 200, 4),
        (200, 100, 4),
    ]
    cubic = [Rounds(4, "cubic").budget(k, sc.Budget(macs=0.2), base) for k in range(1, 5)]
    # kept = final + (1 - final) · (1 - k/n)³
    assert [b.macs for b in cubic if b] == [int(200 + 800 * (1 - k / 4) ** 3) for k in range(1, 5)]
    assert all(b.params is None for b in cubic if b)
    assert Rounds(1).budget(1, final, base) is final


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", None])
def test_invalid_rounds(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"rounds=.* is not valid: it must be an integer of at least 1"):
        pruned(rounds=value)


def test_refused_before_any_work() -> None:
    with pytest.raises(ConfigError, match=r"schedule='cubi' is not a schedule of rounds. Did you mean cubic\?"):
        pruned(schedule="cubi")
    with pytest.raises(ConfigError, match=r"rounds=3: l2-stripes cuts stripes, .* method='l2', and stripes last"):
        pruned("l2-stripes")
    with pytest.raises(ConfigError, match=r"rounds=3 needs a budget"):
        pruned(sc.OneStep(rate=2.0), None)
    assert pruned("l2-stripes", rounds=1).plan.stripes  # one round is a cut like any other


# -- the whole ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "cubic"])
@pytest.mark.parametrize("method", ["l1", "taylor", "epruner", "npn"])
def test_every_round_is_within_its_budget_and_all_are_one_cut(method: str, schedule: Any) -> None:
    model, final = network(), sc.Budget(macs=0.4, params=0.5, align=2)
    result = pruned(method, final, schedule=schedule, recover=RECOVER)
    found = ends(result)
    assert [(e["round"], e["rounds"]) for e in found] == [(1, 3), (2, 3), (3, 3)]
    for end in found:
        assert end["after"]["macs"] <= end["budget"]["macs"]
        assert end["after"]["params"] <= end["budget"]["params"]
    limits = final.limits(Cost(result.before.macs, result.before.params))
    assert (found[-1]["budget"]["macs"], found[-1]["budget"]["params"]) == (limits.macs, limits.params)
    costs = [end["after"]["macs"] for end in found]
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) == 3
    # One plan of the original, of which the result has the shapes and the cost.
    assert sc.verify(model, result.plan, INPUTS + 1) <= 1e-5
    once = sc.apply(model, result.plan)
    assert {n: p.shape for n, p in once.state_dict().items()} == {
        n: p.shape for n, p in result.model.state_dict().items()
    }
    assert sc.count(result.model, INPUTS) == Cost(result.after.macs, result.after.params)
    assert sc.trace(model, INPUTS).cost_of(result.plan) == Cost(result.after.macs, result.after.params)


def test_figures_are_those_of_the_whole() -> None:
    result = pruned(recover=RECOVER)
    first, *_, last = ends(result)
    assert result.before == pruned(rounds=1).before
    assert (result.cut.loss, result.calibrated.loss, result.after.loss) == tuple(
        last[name]["loss"] for name in ("cut", "calibrated", "after")
    )
    assert first["after"]["loss"] != last["after"]["loss"]
    assert [e["round"] for e in result.history if "epoch" in e] == [1, 2, 3]  # the recipe runs after every round
    assert [e["round"] for e in result.history if e.get("event") == "calibrated"] == [1, 2, 3]
    assert result.error >= max(e["error"] for e in ends(result)[:-1])


def test_an_inexact_cut_in_rounds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.GroupNorm(1, 16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    result = sc.prune(
        model, INPUTS, "l1", sc.Budget(macs=0.5), rounds=2, allow_inexact=True, folder=tmp_path, progress="silent"
    )  # fmt: skip
    assert not result.plan.exact
    assert math.isnan(result.error)
    assert [r.error for r in rounds(result.history)] == [None, None]
    again = sc.prune(
        model, INPUTS, "l1", sc.Budget(macs=0.5), rounds=2, allow_inexact=True, folder=tmp_path, resume=True,
        progress="silent",
    )  # fmt: skip
    assert again.plan == result.plan


def test_one_round_is_a_cut_like_any_other() -> None:
    once, plain = pruned(rounds=1, recover=RECOVER), sc.prune(
        network(), INPUTS, "l1", sc.Budget(macs=0.4), data=DATA, recover=RECOVER, device="cpu", progress="silent"
    )  # fmt: skip
    assert once.plan.to_json() == plain.plan.to_json()
    assert not ends(once)
    assert not any("round" in entry for entry in once.history)
    assert equal(once.model, plain.model)


def test_the_original_teaches_in_every_round() -> None:
    seen: list[int] = []

    class Watch(Hook):
        def loss(self, engine: Any, loss: Tensor, outputs: Any, targets: Any) -> Tensor:
            teacher = next(h.teacher for h in engine.hooks if hasattr(h, "teacher"))
            seen.append(sc.count(teacher, INPUTS).macs)
            return loss

    result = pruned(recover=sc.Recover(epochs=1, lr=0.01, share=0.5), hooks=[Watch()])
    assert set(seen) == {result.before.macs}
    assert len(seen) == 3 * len(DATA.train)


def test_methods_are_taught_by_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateurs.methods import pruner

    seen: list[int] = []
    made = pruner.Distilling

    def watched(student: nn.Module, teacher: nn.Module, recipe: Any, **options: Any) -> Any:
        seen.append(sc.count(teacher, INPUTS).macs)
        return made(student, teacher, recipe, **options)

    monkeypatch.setattr(pruner, "Distilling", watched)
    result = pruned(sc.NPN(epochs=1, distil=0.5), rounds=2)
    assert seen == [result.before.macs] * 2


def test_reconstruction_is_to_the_original() -> None:
    plain, solved = (pruned("index", recover=r) for r in (None, sc.Reconstruct(images=32)))
    x = torch.cat([x for x, _ in batches(2)])
    target = network()(x).detach()

    def distance(result: sc.Result) -> float:
        with torch.no_grad():
            return float((result.model.eval()(x) - target).norm())

    assert distance(solved) < distance(plain)
    layers = [e for e in solved.history if e.get("event") == "reconstructed"]
    assert [e["round"] for e in layers] == [1, 2, 3]


def test_every_round_sees_other_batches() -> None:
    images = torch.arange(32, dtype=torch.uint8).view(32, 1, 1, 1).expand(32, 16, 16, 3).contiguous()
    source = ArraySource(images, torch.arange(32) % 4, device=torch.device("cpu"))
    train = Loader(source, batch_size=16, mean=(0.0,) * 3, std=(1.0,) * 3, augment=Augment(pad=2), shuffle=True)
    seen: list[Tensor] = []

    class Watch(Hook):
        def before_batch(self, engine: Any, batch: Any) -> None:
            seen.append(batch.inputs.clone())

    pruned(data=sc.Data(train), recover=RECOVER, hooks=[Watch()])
    assert len(seen) == 6
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(seen, 2))
    assert train.epoch == 0


# -- limits ------------------------------------------------------------------------------------------------------------


def widths(result: sc.Result) -> dict[str, float]:
    graph = sc.trace(network(), INPUTS)
    return {g.name: len(result.plan.groups.get(g.name, range(g.size))) / g.size for g in graph.groups if g.prunable}


def test_limits_hold_for_the_whole() -> None:
    names = list(widths(pruned(rounds=1)))
    result = pruned(budget=sc.Budget(macs=0.35), rounds=5, max_cut={names[0]: 0.5}, exclude=[names[1]])
    assert widths(result)[names[0]] >= 0.5
    assert widths(result)[names[1]] == 1
    least = pruned(budget=sc.Budget(macs=0.2), rounds=5, min_channels=7)
    assert min(map(len, least.plan.groups.values())) >= 7
    only = pruned(budget=sc.Budget(macs=0.95), rounds=5, only=[names[0]])
    assert list(only.plan.groups) == [names[0]]


@pytest.mark.parametrize("budget", [None, sc.Budget(macs=0.5)])
def test_ratios_are_of_the_original_widths_and_are_approached(budget: Any) -> None:
    name = next(iter(widths(pruned(rounds=1))))
    result = pruned(budget=budget, rounds=3, ratios={name: 0.4})
    size = sc.trace(network(), INPUTS)[name].size
    assert len(result.plan.groups[name]) == -(-size * 4 // 10)
    costs = [end["after"]["macs"] for end in ends(result)]
    assert costs[0] > costs[1] > costs[2]
    if budget is None:
        assert list(result.plan.groups) == [name]


def test_the_floor_is_a_tenth_of_the_original() -> None:
    """Scores that would leave one channel of a layer: the floor holds over all rounds, as in one."""

    class Only(sc.Criterion):
        def scores(self, task: Any) -> dict[str, Tensor]:
            return {g.name: torch.arange(g.size) + (0.0 if i == 0 else 1e6) for i, g in enumerate(task.groups)}

    Only.name, Only.comparable = "only", True
    several, once = (pruned(Only(), sc.Budget(macs=0.65), rounds=n) for n in (6, 1))
    name = min(widths(once), key=lambda n: widths(once)[n])
    assert widths(several)[name] == widths(once)[name] == 0.125


# -- folders, resuming -------------------------------------------------------------------------------------------------


def equal(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


@pytest.mark.parametrize("method", ["taylor", "npn"])
@pytest.mark.parametrize("at", range(1, 7))
def test_killed_in_any_round_and_resumed(method: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if method == "npn" and at % 2:
        pytest.skip("every second one is enough")
    method = sc.NPN(epochs=1) if method == "npn" else method
    options = {"method": method, "recover": sc.Recover(epochs=2, lr=0.01, precision="fp32"), "rounds": 3}
    whole = pruned(**options, folder=tmp_path / "whole")
    save, left = CheckpointStore.save, at

    def dying(store: CheckpointStore, step: int, state: dict[str, Any]) -> Path:
        nonlocal left
        left -= 1
        found = save(store, step, state)
        if left == 0:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            pruned(**options, folder=tmp_path / "r")
    resumed = pruned(**options, folder=tmp_path / "r", resume=True)
    assert equal(resumed.model, whole.model)
    assert resumed.plan.to_json() == whole.plan.to_json()
    assert (resumed.before, resumed.cut, resumed.calibrated, resumed.after) == (
        whole.before, whole.cut, whole.calibrated, whole.after,
    )  # fmt: skip

    def told(result: sc.Result) -> Any:
        skip = {"seconds", "images_per_second"}
        return json.loads(json.dumps([{k: v for k, v in e.items() if k not in skip} for e in result.history]))

    assert told(resumed) == told(whole)
    files = {p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if "checkpoints" not in p.parts}
    assert files == {p.relative_to(tmp_path / "r") for p in (tmp_path / "r").rglob("*") if "checkpoints" not in p.parts}


def test_finished_rounds_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pruned(recover=RECOVER, folder=tmp_path)
    calls: list[int] = []
    select = sc.L1.select

    def counted(self: Any, task: Any) -> Any:
        calls.append(task.graph.cost().macs)
        return select(self, task)

    monkeypatch.setattr(sc.L1, "select", counted)
    lines: list[str] = []
    again = pruned(recover=RECOVER, folder=tmp_path, resume=True, report=lines.append)
    assert calls == [ends(whole)[1]["after"]["macs"]]
    assert "2 of 3 rounds are done already" in lines
    assert equal(again.model, whole.model)
    with pytest.raises(
        ConfigError, match=r"round-2 is a round of another run, which differs in seed \(0 then, 1 now\)"
    ):
        pruned(recover=RECOVER, folder=tmp_path, resume=True, seed=1)
    with pytest.raises(ConfigError, match=r"differs in budget\.macs \(0\.4 then, 0\.5 now\)\. To resume it"):
        pruned(budget=sc.Budget(macs=0.5), recover=RECOVER, folder=tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"round-1 holds a round of an earlier run. Resume it \(resume=True\)"):
        pruned(recover=RECOVER, folder=tmp_path)
    (tmp_path / "round-2" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises((ArtifactError, ConfigError), match=r"model\.safetensors"):
        pruned(recover=RECOVER, folder=tmp_path, resume=True)


def test_rounds_of_another_network_are_not_resumed(tmp_path: Path) -> None:
    pruned(folder=tmp_path, data=None)
    other = network()
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    with pytest.raises(ConfigError, match=r"round-2 is a round of another network: its weights were others"):
        sc.prune(other, INPUTS, "l1", DEEP, rounds=3, folder=tmp_path, resume=True)
    assert pruned(folder=tmp_path, data=None, resume=True).plan.groups


def test_a_round_is_an_artifact(tmp_path: Path) -> None:
    result = pruned(recover=RECOVER, folder=tmp_path)
    for number in (1, 2):
        found = sc.load(tmp_path / f"round-{number}")
        assert sc.count(found, INPUTS).macs == ends(result)[number - 1]["after"]["macs"]
    result.save(tmp_path / "end")
    assert equal(sc.load(tmp_path / "end"), result.model)
    # Pruned again: one cut for all the rounds.
    again = sc.prune(result.model, INPUTS, "l1", sc.Budget(macs=0.8))
    assert len(again.source["plans"]) == 1  # type: ignore[index]


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    sc.prune(network(), INPUTS, "l1", sc.Budget(macs=0.5)).save(tmp_path / "round-1")
    with pytest.raises(ConfigError, match="round-1 holds an artifact that is not a round's"):
        pruned(folder=tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "round-2").write_text("mine")
    with pytest.raises(ConfigError, match="round-2 is not a folder"):
        pruned(folder=tmp_path / "b")
    (tmp_path / "c" / "round-2").mkdir(parents=True)
    (tmp_path / "c" / "round-2" / "plan.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"round-2 holds plan.json, which is not ours"):
        pruned(folder=tmp_path / "c")


class Unsaveable(nn.Sequential):
    def get_extra_state(self) -> Any:
        return object()

    def set_extra_state(self, state: Any) -> None:
        pass


def test_a_network_that_cannot_be_saved_is_refused_before_any_work(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(
        ArtifactError, match=r"The network cannot be saved: The extra state of module the network holds"
    ):
        sc.prune(Unsaveable(network()), INPUTS, "l1", DEEP, rounds=2, folder=tmp_path, report=lines.append)
    assert not lines
