"""Losses without some channels: replayed from a prefix they are what the whole network gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.masking.gates import Gates
from secateurs.methods.assess import Assessor, spread
from secateurs.methods.method import Task
from secateurs.methods.oracle.ablation import Ablation
from secateurs.testing.networks import NETWORKS, data, images, network, randomize
from secateurs.training import Batch


class Untidy(nn.Module):
    """Changes outputs in place, before and after they are read, and calls a module twice; `early` reads a weight ahead
    of its layer."""

    def __init__(self, early: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.same = nn.Identity()
        self.c, self.d = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)
        self.early = early

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y += self.b(x)
        y = self.relu(y)
        shift = self.same(F.conv2d(x.new_ones(1, 6, 3, 3), self.d.weight.abs()).sum()) if self.early else 0
        y += self.d(self.relu(self.c(y)))
        return self.fc((y + shift).mean((2, 3)))


def assessor(model: nn.Module, rows: int = 5, examples: int = 16, side: int = 16) -> tuple[Task, Assessor]:
    batches = [(F.interpolate(x, (side, side)), y) for x, y in data().train]
    task = Task(model, sc.trace(model, batches[0][0][:1]), None, "all", sc.Data(train=batches))
    return task, Assessor(task, examples, rows=rows)


def brute(task: Task, group: sc.ChannelGroup, held: Assessor, mask: Tensor) -> tuple[float, int]:
    """The same from a plain forward of the gated network over all examples."""
    model = task.model.eval()
    with torch.no_grad(), Gates(model, [group]) as gates:
        gates.set({group.name: mask})
        x, y = torch.cat([b.inputs for b in held.batches]), torch.cat([b.targets for b in held.batches])
        out = model(x)
        return float(F.cross_entropy(out, y, reduction="sum")), int((out.argmax(1) == y).sum())


MODELS = {**{name: lambda name=name: network(name) for name in NETWORKS}, "untidy": lambda: randomize(Untidy(), 0)}
MODELS["resnet20"] = lambda: randomize(sc.build("zoo:resnet20", num_classes=4), 0)
MODELS["vgg16"] = lambda: randomize(sc.build("zoo:vgg16", num_classes=4), 0)


@pytest.mark.parametrize("hold", [0, 1 << 30])
@pytest.mark.parametrize("name", [m for m in MODELS if m != "vgg16"])
def test_replayed_is_whole(name: str, hold: int) -> None:
    task, held = assessor(MODELS[name]())
    assert [len(b.targets) for b in held.batches] == [5, 5, 5, 1]
    for group in task.groups:
        masks = torch.randint(0, 2, (3, group.size), generator=torch.Generator().manual_seed(1)).float()
        with Ablation(held, group, hold) as ablation:
            found = ablation(masks)
            assert bool(ablation._held) == (hold > 0)
            again = ablation(masks.flip(0)).flip(0)
            on = sum(ablation.on(i, masks[1]).double() for i in range(4))
        torch.testing.assert_close(found, again, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[1], on, rtol=1e-6, atol=1e-5)
        for mask, (loss, hits) in zip(masks, found.tolist(), strict=True):
            expected, right = brute(task, group, held, mask)
            assert loss == pytest.approx(expected, rel=2e-5)
            assert hits == right
    assert not any("forward" in vars(m) for m in held.model.modules())


@pytest.mark.parametrize(
    ("name", "layer", "replayed", "kept"),
    [
        ("resnet20", "layer3.0.conv1", {"layer1", "layer2", "layer3.0.conv1", "layer3.0.bn1"}, 2),
        ("vgg16", "features.37", {"features.0", "features.36", "features.37", "features.38"}, 1),
        ("untidy", "c", {"a", "b", "c"}, 3),
    ],
)
def test_what_comes_before_runs_once(name: str, layer: str, replayed: set[str], kept: int) -> None:
    """And no more of it is kept than is read."""
    task, held = assessor(MODELS[name](), rows=16, side=32)
    group = next(g for g in task.groups if layer in g.producers)
    convs: list[nn.Module] = []
    with Ablation(held, group, 1 << 30) as ablation, pytest.MonkeyPatch.context() as patch:
        assert replayed <= set(ablation.prefix.names)
        assert len(ablation.prefix.names) - len(ablation.prefix._unread) == kept
        patch.setattr(nn.Conv2d, "_conv_forward", _counted(nn.Conv2d._conv_forward, convs))
        found = ablation(torch.eye(4, group.size).neg() + 1)
        assert sum(x.numel() > 0 for x in ablation._held[0].values()) == kept
    assert len(found.unique()) > 2
    assert convs.count(held.model.get_submodule(group.consumers[0])) == 4
    assert convs.count(held.model.get_submodule(layer)) == 1


def _counted(forward: Any, calls: list[nn.Module]) -> Any:
    def counted(module: nn.Module, *args: Any) -> Any:
        calls.append(module)
        return forward(module, *args)

    return counted


def test_weights_read_ahead_of_their_layer() -> None:
    """What is computed beforehand depends on the masks after all: that is found out, and nothing is replayed."""
    task, held = assessor(randomize(Untidy(early=True), 0))
    group = next(g for g in task.graph.groups if "c" in g.producers)
    mask = torch.tensor([1.0, 0, 1, 0, 0, 1])
    with Ablation(held, group) as ablation:
        assert not ablation.prefix.names
        loss, hits = ablation(mask[None])[0].tolist()
    assert (loss, hits) == pytest.approx(brute(task, group, held, mask), rel=2e-5)


def test_other_batches_than_ones_own() -> None:
    """They don't get what is held of the others."""
    task, held = assessor(network())
    group, masks = task.groups[0], torch.ones(2, task.groups[0].size)
    masks[1, :3] = 0
    batches = held.sliced([Batch(images(6, 50), torch.arange(6) % 4)])
    other = assessor(network())[1]
    other.batches = batches
    with Ablation(held, group, 1 << 30) as ablation, Ablation(other, group) as expected:
        ablation(masks)
        assert ablation._held
        torch.testing.assert_close(ablation(masks, batches), expected(masks), rtol=1e-6, atol=1e-6)


def test_examples_are_the_first_of_the_training_data() -> None:
    task, held = assessor(network(), rows=3, examples=11)
    assert held.examples == 11
    assert [len(b.targets) for b in held.batches] == [3, 3, 3, 2]
    first, second = task.data.train
    expected = torch.cat([first[0], second[0]])[:11]
    assert torch.equal(torch.cat([b.inputs for b in held.batches]).contiguous(), expected)
    assert torch.equal(torch.cat([b.targets for b in held.batches]), torch.cat([first[1], second[1]])[:11])


def test_validation_data_is_sampled_all_over() -> None:
    val = [(torch.arange(i, i + 4.0)[:, None], torch.arange(i, i + 4)) for i in (0, 4, 8)] + [
        (torch.tensor([[12.0]]), torch.tensor([12]))
    ]
    for examples, expected in ((5, [0, 2, 5, 7, 10]), (13, [*range(13)]), (50, [*range(13)]), (None, [*range(13)])):
        batches = list(spread(val, examples))
        assert torch.cat([b.targets for b in batches]).tolist() == expected
        assert torch.cat([b.inputs for b in batches])[:, 0].tolist() == expected


def test_inputs_of_several_parts_are_cut_alike() -> None:
    def batch(n: int, start: int) -> tuple[Any, Tensor]:
        x = torch.arange(start, start + n)
        return {"a": x[:, None].float(), "b": (x, -x)}, x

    _, held = assessor(network(), rows=4)
    found = held.sliced([Batch(*batch(3, 0)), Batch(*batch(4, 3))])
    assert [b.targets.tolist() for b in found] == [[0, 1, 2, 3], [4, 5, 6]]
    assert found[1].inputs["b"][1].tolist() == [-4, -5, -6]
    ragged = iter([Batch(torch.zeros(1, 3, 4, 4), torch.zeros(1)), Batch(torch.zeros(1, 3, 5, 5), torch.zeros(1))])
    assert [b.inputs.shape[-1] for b in held.sliced(ragged)] == [4, 5]  # images of another size are another batch
    ragged = iter([Batch(torch.zeros(1, 3, 4, 4), torch.zeros(1)), Batch(torch.zeros(1, 1, 4, 4), torch.zeros(1))])
    with pytest.raises(sc.DataError, match="different shapes"):
        held.sliced(ragged)
