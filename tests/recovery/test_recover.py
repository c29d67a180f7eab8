"""Recovery: fine-tuning, mimicking, distillation, one after another."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
import secateurs.recovery as R
import secateurs.training as T
from secateurs.graph.families import Family
from secateurs.recovery import mimic
from secateurs.recovery.distil import soft_loss
from secateurs.recovery.features import Capture, FeatureMap, feature_maps
from tests.training.helpers import batches, data, net, same

QUIET: dict[str, Any] = {"progress": "silent", "device": "cpu"}


class Net(nn.Module):
    """Two stages, each with a residual block that adds and activates in the forward; dropout, a classifier with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.block1 = Block(8)
        self.down = nn.Sequential(nn.Conv2d(8, 12, 3, 2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.block2 = Block(12)
        self.neck = nn.BatchNorm1d(12)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.down(self.block1(self.stem(x))))
        return self.fc(self.neck(x.mean((2, 3))))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.conv2, self.bn2 = nn.Conv2d(10, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)


def pair(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """A network with statistics that are not the initial ones, and the same with half of each block's channels cut."""
    torch.manual_seed(seed)
    model = Net()
    with torch.no_grad():
        for x, _ in batches(8, seed=5):
            model(x)
        for m in model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.weight.uniform_(0.5, 1.5)
                m.bias.uniform_(-0.2, 0.2)
    model.eval()
    graph = sc.trace(model, X)
    return model, sc.apply(model, graph.plan({"block1.conv1": range(5), "block2.conv1": range(5)}))


def given() -> sc.Data:
    return sc.Data(train=batches(), val=batches(2, seed=1))


X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def recover(model: nn.Module, teacher: nn.Module, recipe: T.Recipe, source: Any = None, **options: Any) -> list[Any]:
    return R.recover(model, source or data(), recipe, teacher=teacher, example_inputs=X, **{**QUIET, **options})


# -- how far two maps are apart -----------------------------------------------------------------------------------------


def by_hand(kind: str, t: Tensor, s: Tensor) -> float:
    """As the paper writes it, pixel by pixel, in float64."""
    n, _, h, w = t.shape
    total = 0.0
    for i in range(n):
        for y in range(h):
            for x in range(w):
                a, b = t[i, :, y, x].double(), s[i, :, y, x].double()
                if kind in ("mse", "l1"):
                    total += float(((a - b) ** 2 if kind == "mse" else (a - b).abs()).mean())
                    continue
                p, q = a.exp() / a.exp().sum(), b.exp() / b.exp().sum()
                if kind == "kl":
                    total += float((p * (p / q).log()).sum())
                else:
                    m = (p + q) / 2
                    total += float(0.5 * (p * (p / m).log()).sum() + 0.5 * (q * (q / m).log()).sum())
    return total / (n * h * w)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", list(mimic.FUNCTIONS))
def test_mimicking_functions(kind: str, layout: torch.memory_format) -> None:
    g = torch.Generator().manual_seed(0)
    t, s = (3 * torch.randn(2, 5, 3, 4, generator=g).relu().to(memory_format=layout) for _ in range(2))
    assert float(mimic.FUNCTIONS[kind](t, s)) == pytest.approx(by_hand(kind, t, s), rel=1e-5)
    assert float(mimic.FUNCTIONS[kind](t, t)) == pytest.approx(0, abs=1e-7)
    wide = s.double().requires_grad_()
    # KL is not symmetric: the teacher's distribution comes first.
    if kind == "kl":
        assert by_hand(kind, t, s) != pytest.approx(by_hand(kind, s, t), rel=1e-2)
    mimic.FUNCTIONS[kind](t, wide).backward()
    e, at = 1e-3, (1, 2, 0, 1)
    up, down = s.double().clone(), s.double().clone()
    up[at] += e
    down[at] -= e
    slope = (by_hand(kind, t, up) - by_hand(kind, t, down)) / (2 * e)
    assert float(wide.grad[at]) == pytest.approx(slope, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("kind", list(mimic.FUNCTIONS))
def test_half_precision_maps_are_compared_in_float32(kind: str) -> None:
    t, s = torch.randn(2, 64, 4, 4).bfloat16(), torch.randn(2, 64, 4, 4).bfloat16()
    found = mimic.FUNCTIONS[kind](t, s)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(by_hand(kind, t, s), rel=1e-4)


# -- a run --------------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_nodes_of_post_activation_maps() -> None:
    teacher, student = pair()
    before = copy.deepcopy(student)
    x, y = batches(1)[0]
    recipe = R.Mimic(steps=1, lr=1e-9, function="mse", nodes=("block1", "block2.conv2:input"), precision="fp32")
    with pytest.raises(
        sc.ConfigError, match=r"'block2.conv2:input' cannot be mimicked: its shape was 10x4x4, and is 5x4x4 after"
    ):
        recover(student, teacher, recipe, [(x, y)])
    recipe = R.Mimic(steps=1, lr=1e-9, function="mse", nodes=("block1", "down"), precision="fp32")
    (line,) = recover(student, teacher.train(), recipe, [(x, y)])
    teacher.eval()  # as it is asked, whatever mode it was given in
    before.train()
    with torch.no_grad(), Capture(teacher, recipe.nodes) as theirs, Capture(before, recipe.nodes) as ours:
        teacher(x)
        before(x)
        expected = sum(F.mse_loss(a, b) for a, b in zip(theirs.take(), ours.take(), strict=True)) / 2
    assert line["train_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert line["nodes"] == ["block1", "down"]


@pytest.mark.parametrize("function", list(mimic.FUNCTIONS))
def test_mimicking_brings_the_networks_together(function: Any) -> None:
    teacher, student = pair()
    lines = recover(student, teacher, R.Mimic(epochs=8, lr=1e-2, function=function), data(12))
    assert lines[0]["nodes"] == ["block1", "block2"]
    assert lines[-1]["train_loss"] < 0.5 * lines[0]["train_loss"]


def test_the_teacher_is_untouched_and_the_student_left_as_an_ordinary_network() -> None:
    teacher, student = pair()
    teacher.train()
    teacher.neck.eval()
    before, modes = copy.deepcopy(teacher), [m.training for m in teacher.modules()]
    for recipe in (R.Mimic(epochs=1), R.Distil(epochs=1)):
        recover(student, teacher, recipe)
    assert same(teacher, before)
    assert modes == [m.training for m in teacher.modules()]
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    for model in (teacher, student):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad for p in student.parameters())


def test_what_comes_after_the_last_node_stands_still() -> None:
    """The classifier is the original's: weights, and the statistics of its norm."""
    teacher, student = pair()
    student.stem[0].weight.requires_grad_(False)  # frozen by the user
    before = copy.deepcopy(student.state_dict())
    asked: set[str] = set()

    class Watch(T.Hook):
        def before_batch(self, engine: Any, batch: Any) -> None:
            asked.update(n for n, p in engine.model.named_parameters() if p.requires_grad)

    recover(student, teacher, R.Mimic(epochs=2), hooks=[Watch()])
    assert not [n for n in asked if n.startswith(("neck", "fc"))]  # several processes must not wait for their gradients
    moved = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert not [name for name in moved if name.startswith(("neck", "fc", "stem.0"))]
    assert {"block2.bn2.weight", "block2.bn2.running_mean", "block1.conv1.weight"} <= moved
    frozen = [n for n, p in student.named_parameters() if not p.requires_grad]
    assert frozen == ["stem.0.weight"]
    recover(student, teacher, R.Mimic(epochs=1, nodes=("stem", "block1")))
    after = {name for name, value in student.state_dict().items() if name.startswith(("down", "block2"))}
    assert after
    assert all(torch.equal(student.state_dict()[n], before[n]) for n in ("fc.weight", "neck.running_mean"))


def test_labels_play_no_part_in_mimicking() -> None:
    results = []
    for shift in (0, 1):
        teacher, student = pair()
        source = [(x, (y + shift) % 4) for x, y in batches()]
        recover(student, teacher, R.Mimic(epochs=2), source)
        results.append(student)
    assert same(*results)


def test_one_batch_of_features_is_held_and_no_more() -> None:
    """At no step's beginning is any feature map of the last one alive, the teacher's or the student's."""
    teacher, student = pair()
    alive: list[weakref.ref[Tensor]] = []
    most = []

    class Watch(T.Hook):
        def before_batch(self, engine: Any, batch: Any) -> None:
            gc.collect()
            most.append(sum(ref() is not None for ref in alive))
            alive.clear()

    def note(t: Tensor, s: Tensor) -> Tensor:
        alive.extend([weakref.ref(t), weakref.ref(s)])
        assert not t.requires_grad
        assert s.requires_grad
        return F.mse_loss(s, t)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mimic.FUNCTIONS, "mse", note)
        recover(student, teacher, R.Mimic(epochs=2, function="mse"), hooks=[Watch()])
    assert len(most) == 12
    assert most == [0] * 12
    assert len(alive) == 4  # two nodes of the last batch


def test_mixed_images_are_what_both_networks_see() -> None:
    for recipe in (R.Mimic(epochs=1, mixup=1.0), R.Distil(epochs=1, mixup=1.0)):
        teacher, student = pair()
        seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}
        for name, model in (("teacher", teacher), ("student", student)):
            training = name == "student"

            def note(m: nn.Module, args: Any, to: Any = seen[name], training: bool = training) -> None:
                if m.training == training and len(args[0]) > 1:
                    to.append(args[0])

            model.register_forward_pre_hook(note)  # the teacher's copy has it, too
        recover(student, teacher, recipe, batches())
        assert len(seen["teacher"]) == len(seen["student"]) == 6
        for a, b, (x, _) in zip(seen["teacher"], seen["student"], batches(), strict=True):
            assert a is b
            assert not torch.equal(a, x)


def test_accumulated_batches_and_gradients() -> None:
    """Two halves of a batch, accumulated, move the student as the whole one does (in eval-mode norms)."""
    results = []
    x, y = batches(1, rows=16)[0]
    for parts, accumulate in (([(x, y)], 1), ([(x[:8], y[:8]), (x[8:], y[8:])], 2)):
        teacher, student = pair()
        student = nn.Sequential(student)  # names change, nodes are found again
        for m in student.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.momentum = 0.0
                m.forward = lambda x, m=m: F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias)  # type: ignore
        recipe = R.Mimic(steps=3, optimizer="sgd", momentum=0, lr=0.1, accumulate=accumulate, precision="fp32")
        recover(student, nn.Sequential(teacher), recipe, parts)
        results.append(student)
    for a, b in zip(results[0].parameters(), results[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# -- nodes --------------------------------------------------------------------------------------------------------------


def test_a_node_that_the_cut_has_changed_is_refused_by_name_with_its_neighbors() -> None:
    teacher, student = pair()
    recipe = R.Mimic(nodes=("block1.bn1", "block2"))
    with pytest.raises(sc.ConfigError) as caught:
        recover(student, teacher, recipe)
    message = str(caught.value)
    assert "'block1.bn1' cannot be mimicked: its shape was 10x8x8, and is 5x8x8 after the cut" in message
    assert "stem" in message or "block1.conv2" in message
    assert not any(m._forward_hooks for m in student.modules())


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        (("layer9", "block2"), "no module 'layer9'"),
        (("blok1", "block2"), "Did you mean .*block1"),
        (("block1:output", "block2"), "MODULE:input"),
    ],
)
def test_an_unknown_node_is_refused_before_any_work(nodes: tuple[str, ...], says: str) -> None:
    teacher, _ = pair()

    def touched() -> Any:
        raise AssertionError("the data was looked at")

    with pytest.raises(sc.ConfigError, match=says):
        sc.prune(teacher, X, "l1", sc.Budget(macs=0.8), sc.Data(train=touched), sc.Mimic(nodes=nodes))


def test_a_module_that_runs_twice_is_no_node() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.relu = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.relu(self.b(self.relu(self.a(x)))).mean((2, 3)))

    model = Twice()
    maps = {m.name: m for m in feature_maps(model, X)}
    assert list(maps) == ["a", "b:input", "b", "fc"]
    assert [maps[n].family for n in ("a", "b:input")] == [Family.CONVOLUTION, Family.ACTIVATION]
    with pytest.raises(sc.ConfigError, match="'relu' cannot be mimicked: it runs more than once"):
        recover(copy.deepcopy(model), model, R.Mimic(nodes=("relu", "b")))


@pytest.mark.parametrize("function", ["kl", "js"])
def test_a_divergence_needs_two_nodes(function: Any) -> None:
    with pytest.raises(sc.ConfigError, match="needs two nodes"):
        sc.Mimic(nodes=("block2",), function=function)
    assert sc.Mimic(nodes=("block2",), function="mse").nodes == ("block2",)
    with pytest.raises(sc.ConfigError, match="repeats a node"):
        sc.Mimic(nodes=("block2", "block2"))
    with pytest.raises(sc.ConfigError, match=r"Mimic\(nodes=\(\)\) is empty"):
        sc.Mimic(nodes=())


def test_the_output_is_mimicked_where_the_cut_changed_all_maps() -> None:
    """Then the classifier trains, too: what it reads is no longer there."""
    teacher, _ = pair()
    graph = sc.trace(teacher, X)
    student = sc.apply(teacher, graph.plan({g.name: range(g.size // 2) for g in graph.groups if g.prunable}))
    before = copy.deepcopy(student.state_dict())
    lines = recover(student, teacher, R.Mimic(epochs=8, lr=0.01), data(12))
    assert lines[-1]["nodes"] == [":output"]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert not torch.equal(before["fc.weight"], student.state_dict()["fc.weight"])


def test_the_output_is_mimicked_where_the_cut_changed_what_comes_after_the_last_map() -> None:
    """Nothing would train the layers in between."""
    teacher, _ = pair()
    graph = sc.trace(teacher, X)
    (stream,) = (g for g in graph.groups if "down.0" in g.producers)
    student = sc.apply(teacher, graph.plan({stream.name: range(6), "block1.conv1": range(5)}))
    before = copy.deepcopy(student.state_dict())
    (line,) = recover(student, teacher, R.Mimic(epochs=1))
    assert line["nodes"] == ["block1", "block2.conv2:input", ":output"]
    moved = [n for n, v in student.state_dict().items() if not torch.equal(v, before[n])]
    assert {"block2.conv2.weight", "fc.weight", "neck.running_mean"} <= set(moved)


def test_nodes_of_the_method_come_first_where_they_kept_their_shape() -> None:
    teacher, student = pair()
    (line,) = recover(student, teacher, R.Mimic(epochs=1), nodes=["stem", "block1.bn1", "block2"])
    assert line["nodes"] == ["stem", "block2"]
    (line,) = recover(student, teacher, R.Mimic(epochs=1, nodes=("down", "block2")), nodes=["stem", "block2"])
    assert line["nodes"] == ["down", "block2"]


def test_the_last_map_is_a_node_whatever_made_it() -> None:
    """Else all that comes after the last non-linearity would not be trained."""

    def named(name: str, width: int, family: Family) -> FeatureMap:
        return FeatureMap(name, (name,), (1, width, 8, 8), family)

    relu, add, cat = Family.ACTIVATION, Family.ADDITION, Family.CONCATENATION
    maps = [named("a", 4, relu), named("b", 4, add), named("c", 6, relu), named("d", 6, cat)]
    assert [m.name for m in mimic._stage_ends(maps)] == ["a", "d"]
    pooled = FeatureMap("e", ("e",), (1, 6, 1, 1), Family.POOLING)
    assert [m.name for m in mimic._stage_ends([*maps[:3], pooled])] == ["a", "c"]


def test_spread_keeps_the_last_and_even_distances() -> None:
    maps = [FeatureMap(str(i), (str(i),), (1, 4, 8, 8), Family.ACTIVATION) for i in range(9)]
    assert [m.name for m in mimic._spread(maps, 4)] == ["1", "3", "6", "8"]
    assert [m.name for m in mimic._spread(maps[:3], 4)] == ["0", "1", "2"]
    assert [m.name for m in mimic._spread(maps, 1)] == ["8"]


# -- distillation -------------------------------------------------------------------------------------------------------


def test_soft_loss() -> None:
    g = torch.Generator().manual_seed(0)
    t, s = (4 * torch.randn(6, 5, generator=g) for _ in range(2))
    p, q = (torch.softmax(x.double() / 3, 1) for x in (t, s))
    expected = 9 * (p * (p.log() - q.log())).sum(1).mean()
    assert float(soft_loss(t, s, 3)) == pytest.approx(float(expected), rel=1e-5)


def test_distillation_mixes_the_original_and_the_labels() -> None:
    x, y = batches(1)[0]
    for share in (0.3, 1.0):
        teacher, student = pair()
        before = copy.deepcopy(student).train()
        recipe = R.Distil(steps=1, lr=1e-9, share=share, temperature=2, precision="fp32")
        (line,) = recover(student, teacher, recipe, [(x, y)])
        with torch.no_grad():
            logits = before(x)
            expected = share * soft_loss(teacher(x), logits, 2) + (1 - share) * F.cross_entropy(logits, y)
        assert line["train_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_distillation_brings_the_outputs_together() -> None:
    teacher, student = pair()
    with torch.no_grad():
        for model in (teacher, student):
            model.fc.weight *= 20
    lines = recover(student, teacher, R.Distil(epochs=10, lr=0.02, share=1.0), data(12))
    assert lines[-1]["train_loss"] < 0.5 * lines[0]["train_loss"]


# -- one after another --------------------------------------------------------------------------------------------------


def test_phases() -> None:
    assert R.phases(None) == []
    assert R.phases([]) == []
    assert [name for name, _ in R.phases(R.Recover())] == ["recover"]
    assert [name for name, _ in R.phases([R.Mimic()])] == ["recover"]
    names = [name for name, _ in R.phases([R.Mimic(), R.Distil(), R.Recover(), R.Recover()])]
    assert names == ["recover-1-mimic", "recover-2-distil", "recover-3-finetune", "recover-4-finetune"]
    for wrong in ("mimic", ["mimic:5"], 3):
        with pytest.raises(sc.ConfigError, match=r"sc\.Mimic"):
            R.phases(wrong)  # type: ignore[arg-type]


def test_one_after_another_is_what_they_are_alone() -> None:
    teacher, _ = pair()
    recipes = [R.Mimic(epochs=1), R.Recover(epochs=1, lr=0.01)]
    result = sc.prune(
        teacher, X, "l1", sc.Budget(macs=0.8), given(), recipes, calibrate=False, progress="silent", device="cpu"
    )
    by_hand = sc.apply(teacher, result.plan)
    for recipe in recipes:
        recover(by_hand, teacher, recipe)
    assert same(result.model, by_hand)
    assert [h["phase"] for h in result.history] == ["mimic", "finetune"]


def test_the_teacher_is_the_network_that_was_given_not_the_one_that_was_trained_while_pruning() -> None:
    teacher, _ = pair()
    kept = copy.deepcopy(teacher)
    seen = []
    asked = R.recover

    def spied(model: nn.Module, *args: Any, **options: Any) -> Any:
        seen.append(options["teacher"])
        return asked(model, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(R, "recover", spied)
        method = sc.NPN(epochs=1, lam=0.01)
        sc.prune(teacher, X, method, sc.Budget(macs=0.8), given(), R.Mimic(epochs=1), progress="silent", device="cpu")
    assert seen == [teacher]
    assert same(teacher, kept)


def test_what_is_missing_is_asked_for() -> None:
    teacher, student = pair()
    for recipe in (R.Mimic(), R.Distil()):
        with pytest.raises(sc.ConfigError, match="teacher="):
            R.recover(student, data(), recipe, **QUIET)
    with pytest.raises(sc.ConfigError, match="example_inputs="):
        R.recover(student, data(), R.Mimic(), teacher=teacher, **QUIET)


def test_the_papers_schedule() -> None:
    recipe = R.Mimic.preset("paper")
    assert (recipe.epochs, recipe.optimizer, recipe.function, recipe.weight_decay) == (15, "adam", "kl", 0)
    rates = [recipe.lr * recipe.factor(e / 15, e) for e in (0, 4.9, 5, 9.9, 10, 14.9)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_a_checkpoint_of_other_nodes_is_not_resumed(tmp_path: Any) -> None:
    teacher, student = pair()
    store = T.CheckpointStore(tmp_path)
    recover(student, teacher, R.Mimic(epochs=1), checkpoints=store, nodes=["stem", "block2"])
    with pytest.raises(sc.ConfigError, match="was saved with other nodes"):
        recover(pair()[1], teacher, R.Mimic(epochs=1), checkpoints=store, resume=True, nodes=["down", "block2"])


@pytest.mark.parametrize(
    "recipe", [sc.Recover(epochs=1), sc.Mimic(epochs=1), [sc.Reconstruct(images=4), sc.Distil(epochs=1)]]
)
def test_a_network_without_trainable_parameters_is_not_trained(recipe: Any) -> None:
    model, done = net().requires_grad_(False), list[str]()
    with pytest.raises(sc.ConfigError, match=r"all of its parameters have requires_grad=False"):
        sc.prune(model, torch.zeros(1, 3, 8, 8), "l1", sc.Budget(macs=0.5), batches(), recipe, report=done.append)
    assert not done
