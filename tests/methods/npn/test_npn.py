"""NPN: what the paper's equations say, by hand; the alternation; λ under control; and what becomes of bad input."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs import data as digits_data
from secateurs.methods import Task
from secateurs.methods.npn.control import Controller, Shares
from secateurs.methods.npn.pruner import NPNPruner
from secateurs.recovery import Recover, recover
from secateurs.testing.networks import randomize
from secateurs.training import CheckpointStore


def images(n: int = 8, seed: int = 0, size: int = 16) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def batches(count: int = 4, rows: int = 8) -> list[tuple[Tensor, Tensor]]:
    return [(images(rows, i), torch.arange(rows) % 4) for i in range(count)]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomize(sc.build("zoo:small_cnn", num_classes=4), seed)


def attached(
    steps: int = 40, epoch_steps: int = 10, budget: sc.Budget | None = None, data: Any = None, **settings: Any
) -> tuple[nn.Module, NPNPruner]:
    model = network()
    settings = {"lam": 0.01} | settings if budget is None else settings
    pruner = sc.attach(
        model, images(1), sc.NPN(**settings), budget, steps=steps, epoch_steps=epoch_steps,
        data=batches() if data is None else data,
    )  # fmt: skip
    assert isinstance(pruner, NPNPruner)
    return model, pruner


def set_logits(pruner: NPNPruner, bias: Tensor) -> None:
    """The heads say this, whatever they see."""
    with torch.no_grad():
        pruner.network.heads.weight.zero_()
        pruner.network.heads.bias.copy_(bias)


# -- eq. 3 and the scaled sigmoid --------------------------------------------------------------------------------------


def test_the_scale_is_raised_by_a_step_or_a_ramp() -> None:
    _, pruner = attached(steps=100, sharpen=0.4, scale=30)
    found = []
    for pruner.steps in (0, 39, 40, 99, 100):
        found.append(pruner.sharpness)
    assert found == [1, 1, 30, 30, 30]
    _, pruner = attached(steps=100, sharpen=0.5, scale=50, schedule="ramp")
    found = []
    for pruner.steps in (0, 50, 75, 100, 110):
        found.append(pruner.sharpness)
    assert found == pytest.approx([1, 1, math.sqrt(50), 50, 50])


def test_gates_are_well_open_at_first() -> None:
    model, pruner = attached(open=2.5, gates="sample", prior=0)
    model.train()
    model(images())
    assert pruner._gate is not None
    assert pruner._gate.shape == (8, sum(pruner.sizes))
    assert (pruner._gate - torch.sigmoid(torch.tensor(2.5))).abs().max() < 0.05
    assert pruner._gate.std(0).max() > 0  # but they do look at the image


def test_penalty_by_hand() -> None:
    """λ times the sum over gates, the mean over images, of 1 / (1 + exp(-a·x))."""
    model, pruner = attached(lam=0.02, sharpen=0.5, scale=7, gates="sample")
    for pruner.steps in (0, 30):
        model.train()
        x = images(5)
        model(x)
        found = pruner.penalty()
        with torch.no_grad():
            logits = pruner.network(x)
        a = 1 if pruner.steps == 0 else 7
        want = 0.02 * sum((1 / (1 + torch.exp(-a * row))).sum() for row in logits) / 5
        torch.testing.assert_close(found, want)
        assert pruner.penalty() == 0.0  # once for each batch
    model, pruner = attached(lam=0.02, gates="batch", pruner_images=1)
    model.train()
    model(x)
    with torch.no_grad():
        want = 0.02 * torch.sigmoid(pruner.network(x).mean(0)).sum()
    torch.testing.assert_close(pruner.penalty(), want)


@pytest.mark.parametrize("kind", ["sample", "batch"])
def test_the_main_network_computes_with_the_gates(kind: str) -> None:
    model, pruner = attached(gates=kind, pruner_images=1)
    with torch.no_grad():
        pruner.network.heads.weight.normal_(0, 20)
    twin = network().train()
    x = images(4)
    model.train()
    pruner.steps = 5  # an odd turn: batch norm as in training
    found = model(x)
    with torch.no_grad():
        logits = pruner.network.train()(x)
    gate = torch.sigmoid(logits.mean(0, keepdim=True).expand_as(logits) if kind == "batch" else logits)
    assert gate.std() > 0.05
    parts = dict(zip((g.name for g in pruner.groups), gate.split(pruner.sizes, 1), strict=True))
    consumers = {c: parts[g.name] for g in pruner.groups for c in g.consumers}
    for name, v in consumers.items():

        def scaled(m: nn.Module, args: Any, v: Tensor = v) -> Any:
            return (args[0] * v.view(*v.shape, *[1] * (args[0].ndim - 2)),)

        twin.get_submodule(name).register_forward_pre_hook(scaled)
    torch.testing.assert_close(found, twin(x), rtol=1e-4, atol=1e-5)


# -- algorithm 1 -------------------------------------------------------------------------------------------------------


def test_epochs_alternate() -> None:
    """Even epochs leave the main network as it is, weights and statistics, to the bit; odd ones train both."""
    model, pruner = attached(steps=40, epoch_steps=2)
    frozen = model.get_submodule("bn1") if hasattr(model, "bn1") else None
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()  # once, as many loops do
    for epoch in range(4):
        state, heads = copy.deepcopy(model.state_dict()), pruner.network.heads.bias.clone()
        for x, y in batches(2):
            assert all(p.requires_grad == bool(epoch % 2) for p in model.parameters())
            loss = F.cross_entropy(model(x), y) + pruner.penalty()
            loss.backward()
            opt.step()
            opt.zero_grad()
            pruner.step()
        changed = {k for k, v in model.state_dict().items() if not torch.equal(v, state[k])}
        assert not torch.equal(heads, pruner.network.heads.bias)
        if epoch % 2:
            assert changed == set(state)
        else:
            assert not changed
    assert frozen is None or frozen.training


def test_alternation_under_the_engine() -> None:
    states = []

    class Watch(NPNPruner):
        def advance(self) -> None:
            super().advance()
            if self.steps % 4 == 0:
                states.append(copy.deepcopy(self.model.state_dict()))

    class Watched(sc.NPN):
        def attach(self, task: Task) -> Watch:
            return Watch(task, self)

    model = network()
    sc.prune(model, images(1), Watched(epochs=8, lam=1e-4), data=batches(), progress="silent")
    first = model.state_dict()
    assert all(torch.equal(first[k], states[0][k]) for k in first)
    assert [k for k in first if torch.equal(states[0][k], states[1][k])] == []
    assert all(torch.equal(states[1][k], states[2][k]) for k in first)


def test_frozen_weights_and_norms_of_the_users_stay_so() -> None:
    model = network()
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    first.weight.requires_grad_(False)
    pruner = sc.attach(model, images(1), sc.NPN(lam=0.01), steps=8, epoch_steps=2, data=batches())
    model.train()
    norm.eval()
    for x, _ in batches(4):
        (model(x).sum() + pruner.penalty()).backward()
        pruner.step()
        assert not norm.training
        assert not first.weight.requires_grad
    pruner.plan()
    assert not first.weight.requires_grad
    assert model.training


# -- λ -----------------------------------------------------------------------------------------------------------------


def test_controller_answers_at_once_and_finds_the_scale() -> None:
    control = Controller(1e-3, goals=[0.5])
    assert control.targets(0) == [1]
    assert control.targets(0.375) == pytest.approx([0.75])
    assert control.targets(1.0) == control.targets(0.75) == [0.5]
    on_line, above, below = (control.update([c], 0.375, 1e-4) for c in (0.75, 0.85, 0.65))
    assert on_line == pytest.approx(1e-3)
    assert above > 2 * on_line
    assert below < on_line / 2


def test_lambda_finds_its_scale_however_far_it_is() -> None:
    """Its base is not tied to where it started: in four searches with too much open, by more than e³ in each direction."""
    for open, right in ((0.9, 1e5), (0.1, 1e-6)):
        control = Controller(1e-3, goals=[0.5])
        for _ in range(400):
            lam = control.update([open], 1.0, 0.01)
        assert (lam > right) if open > 0.5 else (lam < right)
    for _ in range(100_000):
        highest = control.update([1.0], 1.0, 0.01)
    assert math.isfinite(highest)


def test_lambda_starts_at_the_scale_of_the_loss() -> None:
    """A loss a thousand times as large starts it at a thousand times as much, whatever multiplies loss and penalty alike."""
    found = {}
    for loss_scale, loop_scale in ((1, 1), (1000, 1), (1, 64)):
        model, pruner = attached(budget=sc.Budget(macs=0.5))
        model.train()
        x, y = batches(1)[0]
        loss = loss_scale * F.cross_entropy(model(x), y) + pruner.penalty()
        (loop_scale * loss).backward()
        pruner.step()
        assert pruner.controller is not None
        found[loss_scale, loop_scale] = pruner.controller.base
    assert found[1000, 1] == pytest.approx(found[1, 1] + math.log(1000), abs=0.05)
    assert found[1, 64] == pytest.approx(found[1, 1], abs=0.01)


def test_an_overflow_says_nothing_about_the_scale() -> None:
    """A loss scaler skips the first steps of float16."""
    model, pruner = attached(budget=sc.Budget(macs=0.5))
    assert pruner.controller is not None
    found: list[Any] = []
    pruner.controller.follow = lambda typical, pace: found.append(typical)  # type: ignore[method-assign]
    model.train()
    x, y = batches(1)[0]
    for scale, measured in ((math.inf, 0), (1.0, 1), (math.inf, 1), (1.0, 2)):
        (scale * (F.cross_entropy(model(x), y) + pruner.penalty())).backward()
        for p in [*model.parameters(), *pruner.network.parameters()]:
            p.grad = None
        pruner.step(own=False)
        assert len(found) == measured
    assert all(0 < typical < math.inf for typical in found)


def test_lambda_follows_a_loss_that_has_no_gradient_at_first() -> None:
    """As that of a network which is its own teacher: its gradient comes with the first gates that close. What the controller
    has found out beyond the scale stays."""
    control = Controller(1e-3, goals=[0.5])
    control.follow(1e-6, 0.5)
    first = control.base
    assert first == pytest.approx(math.log(Controller.GENTLE * 1e-6))
    control.base += 1.5  # by excess
    for _ in range(30):
        control.follow(1e-2, 0.5)
    assert control.base == pytest.approx(first + 1.5 + math.log(1e4), abs=0.01)
    model, pruner = attached(budget=sc.Budget(macs=0.5))
    model.train()
    scales = []
    for strength in (1e-6, 1.0, 1.0, 1.0):
        x, y = batches(1)[0]
        (strength * F.cross_entropy(model(x), y) + pruner.penalty()).backward()
        pruner.step()
        assert pruner.controller is not None
        scales.append(pruner.controller.scale)
    assert scales[3] > scales[2] > scales[1] > scales[0] + 1
    pruner.steps = pruner.search  # then there are no gates to close
    assert not pruner._measuring


def test_each_limit_has_its_own_share_and_goal() -> None:
    """λ follows the limit that is farthest from its own goal, and not the smaller goal or the larger share."""
    model = network()
    shares = Shares(Task(model, sc.trace(model, images(1)), sc.Budget(macs=0.9, params=0.4)).widths)
    assert shares.goals == pytest.approx([0.9, 0.4], abs=1e-3)
    assert shares.of(shares.widths.sizes) == [1, 1]
    control = Controller(1e-3, shares.goals)
    on_goal = control.update([0.9, 0.4], 1.0, 1e-6)
    assert on_goal == pytest.approx(1e-3, rel=1e-3)
    assert control.update([0.9, 0.3], 1.0, 1e-6) == pytest.approx(on_goal, rel=1e-3)
    assert control.update([0.7, 0.5], 1.0, 1e-6) > 2 * on_goal
    assert control.update([0.7, 0.2], 1.0, 1e-6) < on_goal / 2


@pytest.mark.parametrize("budget", [sc.Budget(macs=0.9, params=0.4), sc.Budget(macs=0.5, params=0.95)])
def test_all_limits_hold(budget: sc.Budget) -> None:
    result = sc.prune(network(), images(1), sc.NPN(epochs=4), budget, data=batches(), progress="silent")
    assert result.after.macs <= budget.macs * result.before.macs
    assert result.after.params <= budget.params * result.before.params
    lines = [h for h in result.history if h.get("event") == "open"]
    assert lines[-1]["macs"]["target"] == pytest.approx(budget.macs, abs=1e-3)
    assert lines[-1]["params"]["target"] == pytest.approx(budget.params, abs=1e-3)


def test_gates_are_weighted_by_what_their_channels_cost() -> None:
    _, pruner = attached(budget=sc.Budget(macs=0.5))
    graph, base = pruner.task.graph, pruner.widths.base
    saved = torch.cat([
        torch.full((g.size,), 1 - graph.cost({g.name: g.size - 1}).macs / base.macs) for g in pruner.groups
    ])  # fmt: skip
    torch.testing.assert_close(pruner.weights, saved / saved.mean(), rtol=1e-4, atol=1e-5)
    assert pruner.weights.std() > 0.1
    _, paper = attached(budget=sc.Budget(macs=0.5), **sc.NPN.presets["paper"])
    assert torch.equal(paper.weights, torch.ones_like(saved))


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data = digits_data.load("digits", batch_size=64)
    torch.manual_seed(0)
    model = sc.build("zoo:small_cnn", num_classes=10)
    recover(model, data, Recover(epochs=5, lr=0.1, nesterov=True), progress="silent")
    torch.set_num_threads(threads)
    return model, data


@pytest.mark.slow
@pytest.mark.parametrize("goal", [0.7, 0.3])
def test_control_arrives_at_its_budget(trained: tuple[nn.Module, Any], goal: float) -> None:
    model, data = trained
    result = sc.prune(
        model, torch.zeros(1, 3, 32, 32), sc.NPN(epochs=10), sc.Budget(macs=goal), data=data, progress="silent",
        recover=sc.Recover(epochs=2, lr=0.02),
    )  # fmt: skip
    (gates,) = [h for h in result.history if h.get("event") == "gates"]
    print(f"\n{goal}: {gates['macs']} before trimming, {result.after.top1:.1f} %")
    assert abs(gates["macs"] - goal) < TOLERANCE
    assert not gates["short"]
    assert result.after.macs <= goal * result.before.macs
    assert gates["undecided"] < 0.05
    assert result.after.top1 > 80


TOLERANCE = 0.1  # by itself; what the gates leave over is cut in their order


def test_lambda_alone_decides_without_a_budget() -> None:
    """More of it leaves less of the network."""
    kept = []
    for lam in (1e-4, 1.0):
        model = network()
        result = sc.prune(
            model,
            images(1),
            sc.NPN(epochs=20, lam=lam, lr=1e-3, distil=0),
            data=batches(),
            progress="silent",
            scope="internal",
        )
        (gates,) = [h for h in result.history if h.get("event") == "gates"]
        assert gates["lam"] == lam
        assert gates["macs"] == pytest.approx(result.after.macs / result.before.macs, abs=1e-3)
        kept.append(result.after.macs)
    assert kept[1] < 0.5 * kept[0]


# -- the end -----------------------------------------------------------------------------------------------------------


def test_dead_groups_keep_their_best_channel_and_gates_are_folded() -> None:
    model, pruner = attached(hold=False)
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(sum(pruner.sizes), generator=g) * 0.1 - 3
    alive = pruner.sizes[0]
    logits[:alive] = torch.linspace(-2, 2, alive)  # half of the first group stays
    set_logits(pruner, logits)
    model.eval()
    x = images(3, seed=9)
    selection = pruner.finish().channels
    parts = dict(zip((q.name for q in pruner.groups), logits.split(pruner.sizes), strict=True))
    for i, (name, kept) in enumerate(selection.items()):
        want = np.flatnonzero(parts[name].numpy() >= 0) if i == 0 else [int(parts[name].argmax())]
        assert kept.tolist() == list(want)
    reference = network().eval()
    for group in pruner.groups:  # what the gated network computed, with the dead ones shut
        gate = torch.zeros(group.size)
        gate[selection[group.name]] = torch.sigmoid(parts[group.name])[selection[group.name]]
        for name in group.consumers:

            def scaled(m: nn.Module, args: Any, v: Tensor = gate) -> Any:
                return (args[0] * v.view(1, -1, *[1] * (args[0].ndim - 2)),)

            reference.get_submodule(name).register_forward_pre_hook(scaled)
    plan = pruner.task.graph.plan(selection)
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sc.apply(model, plan).eval()(x), reference(x), rtol=1e-4, atol=1e-5)
    assert sc.verify(model, plan, x) <= 1e-5
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_calibration_by_hand() -> None:
    data = [(images(6, 1), torch.zeros(6, dtype=torch.long)), (images(6, 2), torch.zeros(6, dtype=torch.long))]
    _, pruner = attached(data=data, calibration=7, threshold=0.6, gates="sample", hold=False)
    with torch.no_grad():
        pruner.network.heads.weight.normal_(0, 6, generator=torch.Generator().manual_seed(0))
        pruner.network.heads.bias.normal_(0, 1, generator=torch.Generator().manual_seed(1))
    means = pruner._calibrate()
    with torch.no_grad():
        gates = torch.sigmoid(pruner.network.eval()(torch.cat([x for x, _ in data])))  # both: 6 < 7
    assert gates.shape[0] == 12
    want = gates.mean(0)
    torch.testing.assert_close(means.float(), want, rtol=1e-4, atol=1e-5)
    inside = sum(1 for g in gates.flatten().tolist() if 0.1 < g < 0.9) / gates.numel()
    other = sum((gates[i, j] < 0.6) != (want[j] < 0.6) for i in range(12) for j in range(gates.shape[1]))
    assert pruner.found is not None
    assert pruner.found["undecided"] == pytest.approx(inside, abs=1e-3)
    assert pruner.found["disagree"] == pytest.approx(float(other) / gates.numel(), abs=1e-3)
    assert 0 < pruner.found["disagree"] < pruner.found["undecided"] < 1
    pruner.config = pruner.config.model_copy(update={"calibration": 6})
    torch.testing.assert_close(pruner._calibrate().float(), gates[:6].mean(0), rtol=1e-4, atol=1e-5)
    pruner.config = pruner.config.model_copy(update={"gates": "batch"})
    with torch.no_grad():
        logits = pruner.network(data[0][0])
    torch.testing.assert_close(pruner._calibrate().float(), torch.sigmoid(logits.mean(0)), rtol=1e-4, atol=1e-5)
    assert pruner.found["disagree"] == 0


def test_calibration_does_not_depend_on_where_training_stands() -> None:
    from tests.test_resume_prune import loader

    data = loader()
    _, pruner = attached(data=data)
    with torch.no_grad():
        pruner.network.heads.weight.normal_(0, 1)
    first = pruner._calibrate()
    data.train.set_epoch(3)
    torch.manual_seed(77)
    assert torch.equal(pruner._calibrate(), first)


# -- pruner networks ---------------------------------------------------------------------------------------------------


def test_another_network_as_pruner() -> None:
    model = sc.build("zoo:resnet20", num_classes=4)
    result = sc.prune(
        model,
        images(1),
        sc.NPN(epochs=2, pruner="zoo:small_cnn"),
        sc.Budget(macs=0.6),
        data=batches(),
        progress="silent",
    )
    assert result.after.macs <= 0.6 * result.before.macs
    assert result.error <= 1e-5


@pytest.mark.parametrize(
    ("spec", "why"), [("zoo:no_such", "no model 'no_such'"), ("no_such", "not a valid model spec")]
)
def test_another_network_as_pruner_is_built_before_any_work(
    spec: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sc.NPN, "select", lambda *_: pytest.fail("it started"))
    with pytest.raises(sc.ConfigError, match=rf"NPN\(pruner='{spec}'\) cannot be used here: .*{why}"):
        sc.prune(network(), images(1), sc.NPN(lam=0.1, pruner=spec), data=batches(), progress="silent")


def test_the_weights_of_another_network_as_pruner_follow_the_seed() -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        graph = sc.trace(network(), images(1))
        task = Task(network(), graph, None, seed=seed, example_inputs=images(1))
        state = torch.get_rng_state()
        base = sc.NPN(lam=0.1, pruner="zoo:small_cnn").base(task)
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(7)
        return list(base.parameters())

    one = weights(3)
    assert all(torch.equal(a, b) for a, b in zip(one, weights(3), strict=True))
    assert not torch.equal(one[0], weights(4)[0])


# -- a loop of one's own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sample", "batch"])
def test_five_lines_in_a_plain_loop(kind: str) -> None:
    model, data = network(), batches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    method = sc.NPN(gates=kind)
    pruner = sc.attach(model, images(1), method, sc.Budget(macs=0.5), steps=16, epoch_steps=4, data=data)  # 1
    model.train()
    for _ in range(10):
        for x, y in data:
            loss = F.cross_entropy(model(x), y) + pruner.penalty()  # 2
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            pruner.step()  # 3
        if pruner.done:  # 4
            break
    assert pruner.steps == 16
    whole = copy.deepcopy(model)
    before = sc.count(network(), images(1)).macs
    plan = pruner.plan()
    assert sc.verify(model, plan, images(3)) <= 1e-5
    small = sc.apply(model, plan).eval()
    from secateurs.surgery import cut_

    cut_(model, plan, optimizer)  # 5
    assert sc.count(model, images(1)).macs <= 0.5 * before
    assert model.training
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model).eval()(images(3)), small(images(3)))
        assert whole(images(3)).isfinite().all()  # a copy made meanwhile is an ordinary network by now
    F.cross_entropy(model(images()), torch.zeros(8, dtype=torch.long)).backward()
    optimizer.step()


def test_copies_go_by_the_same_pruner() -> None:
    """An average of the weights, say, which callbacks make by copying."""
    model, pruner = attached()
    with torch.no_grad():
        pruner.network.heads.weight.normal_(0, 3)
    twin = copy.deepcopy(model).eval()
    model.eval()
    with torch.no_grad():
        assert torch.equal(twin(images()), model(images()))
        pruner.finish()
        plain = network().eval()
        assert torch.equal(twin(images()), plain(images()))


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"lam": 0}, "lam"), ({"lam": -1e-3}, "lam"), ({"lam": 11}, "lam"), ({"lam": math.nan}, "lam"), ({"lr": 0}, "lr"),
     ({"lr": 100}, "lr"), ({"pruner_lr": -1}, "pruner_lr"), ({"head_lr": math.inf}, "head_lr"), ({"epochs": 0}, "epochs"),
     ({"epochs": math.inf}, "epochs"), ({"threshold": 1}, "threshold"), ({"gates": "layer"}, "gates"),
     ({"open": math.nan}, "open"), ({"lambda_": 1}, "lambda_")],
)  # fmt: skip
def test_settings_out_of_range(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(
        sc.ConfigError, match=rf"NPN\({named}=.*npn's settings are: steps_per_epoch, compile, epochs, distil, lam"
    ):
        sc.NPN(**settings)


def test_what_npn_needs() -> None:
    model = network()
    with pytest.raises(sc.ConfigError, match="npn prunes during training: pass data="):
        sc.prune(model, images(1), "npn", sc.Budget(macs=0.5))
    with pytest.raises(sc.ConfigError, match=r"npn needs a budget, .* or NPN\(lam="):
        sc.prune(model, images(1), "npn", data=batches())
    with pytest.raises(sc.ConfigError, match="l1 does not prune during training: call prune"):
        sc.attach(model, images(1), "l1", sc.Budget(macs=0.5), steps=1, epoch_steps=1, data=batches())
    with pytest.raises(sc.SecateursError, match=r"length|ran out|one-shot"):
        sc.prune(model, images(1), "npn", sc.Budget(macs=0.5), data=iter(batches()), progress="silent")


def test_a_loss_that_is_not_finite_names_the_batch(tmp_path: Any) -> None:
    data = batches(6)
    bad = [*data]
    bad[4] = (data[4][0] * math.nan, data[4][1])
    with pytest.raises(sc.TrainingError, match=r"epoch 1, batch 4.*last valid checkpoint is .*step-0+4\b"):
        sc.prune(
            network(), images(1), sc.NPN(epochs=2), sc.Budget(macs=0.5), data=bad, folder=tmp_path, save_steps=2,
            progress="silent",
        )  # fmt: skip
    store = CheckpointStore(tmp_path / "prune" / "checkpoints")
    assert store.steps() == [2, 4]
    step, state = store.load() or (0, {})
    assert step == 4
    assert all(v.isfinite().all() for v in state["parts"]["pruner"]["module"].values())
    result = sc.prune(
        network(), images(1), sc.NPN(epochs=2), sc.Budget(macs=0.5), data=data, folder=tmp_path, resume=True,
        save_steps=2, progress="silent",
    )  # fmt: skip
    assert result.error <= 1e-5


def test_the_original_can_teach() -> None:
    """Its class probabilities are in the loss, and its gates are open all along."""
    models = [
        sc.prune(
            network(), images(1), sc.NPN(epochs=2, distil=share), sc.Budget(macs=0.5), data=batches(), progress="silent"
        )
        for share in (0.0, 0.9)
    ]
    first, second = ([h["train_loss"] for h in r.history if "train_loss" in h] for r in models)
    assert first != second
    assert [h.get("share") for h in models[0].history if "train_loss" in h] == [None] * 2
    assert [h["share"] for h in models[1].history if "train_loss" in h] == [0.9] * 2
