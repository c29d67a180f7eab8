"""Isolated damage against brute force: mask the weights, run everything again, and apply eq. 7 by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.graph.channels import parameter
from secateurs.methods.aofp import Damage, Halves
from secateurs.testing.networks import randomize

Act = Callable[[Tensor], Tensor] | None


@dataclass
class Case:
    """A network, and for each layer that reads channels what belongs to its outcome: (batch norm, the rest)."""

    model: nn.Module
    follows: dict[str, tuple[str | None, Act]]
    graph_options: dict[str, Any]
    x: Tensor


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 10, 3, padding=1, stride=1, bias=False), nn.BatchNorm2d(10)
        self.conv2, self.bn2 = nn.Conv2d(10, 8, 3, padding=1, bias=True), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)), inplace=True)
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        out += x
        return self.fc(F.relu(out).mean((2, 3)))


class Concatenated(nn.Module):
    """One branch is read at two places of the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 5, 1)
        self.norm = nn.BatchNorm2d(17)
        self.conv = nn.Conv2d(17, 9, 3, stride=2, padding=1, padding_mode="reflect")
        self.norm2, self.act = nn.BatchNorm2d(9), nn.SiLU(inplace=True)
        self.fc = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        x = F.relu(self.norm(torch.cat([a, b, a], 1)))
        return self.fc(self.act(self.norm2(self.conv(x))).mean((2, 3)))


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = w - w.mean((2, 3), keepdim=True)
        return self._conv_forward(x, w, self.bias)


class NormAct(nn.BatchNorm2d):
    """The norm and its non-linearity in one module, as timm has them."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = (None, None) if self.training else (self.running_mean, self.running_var)
        return F.leaky_relu(F.batch_norm(x, mean, var, self.weight, self.bias, self.training, 0.1, self.eps), 0.1)


class Tokens(nn.Module):
    """A batch norm over the positions that a linear layer is applied to, called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.fc = nn.Linear(12, 9), nn.Linear(9, 6), nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(36)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x.flatten(1, 2)))  # (N, 36, 9)
        return self.fc(F.relu(self.norm(input=self.mix(x))).mean(1))


class Swish(nn.Module):
    """Not a non-linearity that anyone knows: what comes before it counts."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def cases() -> dict[str, Callable[[], Case]]:
    def images(n: int = 6) -> Tensor:
        return torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(5))

    def made(model: nn.Module, follows: dict[str, tuple[str | None, Act]], **options: Any) -> Case:
        return Case(randomize(model, 1), follows, options, images())

    head: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]

    def plain() -> Case:
        model = nn.Sequential(
            nn.Conv2d(3, 9, 3, bias=False), nn.BatchNorm2d(9), nn.ReLU(True), nn.MaxPool2d(2),
            nn.Conv2d(9, 7, 3), nn.BatchNorm2d(7), nn.ReLU(inplace=True), *copy.deepcopy(head), nn.Linear(7, 4),
        )  # fmt: skip
        return made(model, {"4": ("5", F.relu), "9": (None, None)})

    def bare() -> Case:
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(8, 6, 3), nn.Hardtanh(-2, 2, True),
            nn.Conv2d(6, 5, 1), nn.GroupNorm(5, 5, affine=False), nn.ReLU6(), nn.Conv2d(5, 5, 1), Swish(),
            *copy.deepcopy(head), nn.Linear(5, 4),
        )  # fmt: skip
        return made(
            model,
            {
                "2": (None, lambda y: F.hardtanh(y, -2, 2)),
                "4": (None, lambda y: F.relu6(F.group_norm(y, 5))),
                "7": (None, None),
                "11": (None, None),
            },
        )

    def depthwise() -> Case:
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU6(True),
            nn.Conv2d(8, 10, 1, bias=False), nn.BatchNorm2d(10), nn.ReLU6(True), *copy.deepcopy(head), nn.Linear(10, 4),
        )  # fmt: skip
        return made(model, {"6": ("7", F.relu6), "11": (None, None)})

    def grouped() -> Case:
        model = nn.Sequential(
            nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.GELU(), nn.Conv2d(12, 8, 3, groups=2), nn.BatchNorm2d(8), nn.GELU(),
            nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1, groups=2), nn.BatchNorm2d(6), nn.Softplus(),
            *copy.deepcopy(head), nn.Linear(6, 4),
        )  # fmt: skip
        return made(model, {"3": ("4", F.gelu), "6": ("7", F.softplus), "11": (None, None)})

    def flattened() -> Case:
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, 11), nn.BatchNorm1d(11),
            nn.Tanh(), nn.Dropout(0.0), nn.Linear(11, 4),
        )  # fmt: skip
        return made(model, {"4": ("5", torch.tanh), "8": (None, None)})

    def unusual() -> Case:
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), NormAct(8), Standardized(8, 6, 3), NormAct(6), Standardized(6, 6, 3), nn.BatchNorm2d(6),
            nn.ELU(), *copy.deepcopy(head), nn.Linear(6, 4),
        )  # fmt: skip
        return made(
            model, {"2": ("3", lambda z: F.leaky_relu(z, 0.1)), "4": ("5", F.elu), "9": (None, None)}
        )  # fmt: skip

    relu = F.relu
    return {
        "plain": plain,
        "residual": lambda: made(Residual(), {"conv1": ("bn1", relu), "conv2": ("bn2", None), "fc": (None, None)}),
        "concatenated": lambda: made(Concatenated(), {"conv": ("norm2", F.silu), "fc": (None, None)}),
        "depthwise": depthwise,
        "grouped": grouped,
        "flattened": flattened,
        "bare": bare,
        "unusual": unusual,
        "tokens": lambda: made(Tokens(), {"mix": ("norm", relu), "fc": (None, None)}),
    }  # fmt: skip


CASES = cases()


def half(size: int, seed: int = 0) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).permutation(size)[: max(1, size // 2)])


def test_halves_are_halves() -> None:
    space = np.array([0, 2, 3, 5, 8, 9, 11])
    masks = Halves(space, 3, seed=1).draw(50)
    assert masks.shape == (50, 7)
    assert (masks.sum(1) == 3).all()
    assert len({tuple(row) for row in masks.tolist()}) > 20  # of 35
    assert torch.equal(masks, Halves(space, 3, seed=1).draw(50))
    again = Halves(space, 3, seed=1)
    assert not torch.equal(again.draw(50), again.draw(50))  # another pass, other halves
    parts = [Halves(space, 3, seed=1, rank=r, world=2).draw(25) for r in (0, 1)]
    assert torch.equal(torch.cat(parts), masks)  # processes draw what one would


@pytest.mark.parametrize("ratio", ["example", "batch"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", list(CASES))
def test_each_example_with_a_half_of_its_own(name: str, layout: str, ratio: Any) -> None:
    """The samples are those of passes in which all examples ablate one example's half."""
    torch.manual_seed(0)
    case = CASES[name]()
    if layout == "channels_last":
        case.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        case.x = case.x.to(memory_format=torch.channels_last)
    groups = [g for g in sc.trace(case.model, case.x[:2], **case.graph_options).groups if g.reason is None]
    case.model.train()
    spaces = {g.name: np.arange(0, g.size, 1 + i % 2) for i, g in enumerate(groups)}
    drawn = {name: Halves(space, max(1, len(space) // 2), seed=7) for name, space in spaces.items()}
    with Damage(case.model, groups, case.x[:2], ratio) as damage:
        damage.ablate(drawn)
        case.model(case.x)
        assert damage.take(damage.sums()) == {}
        damage.ablate({n: Halves(h.space, h.size, h.seed) for n, h in drawn.items()})
        case.model(case.x)
        sums = damage.sums()
        found = damage.samples(sums)
        assert damage.halves(sums) == dict.fromkeys(spaces, 3)  # of six examples, for any number of readers
        assert damage.samples() == damage.halves() == {}
        assert set(found) == set(spaces)
        counts = {g.name: sum(r.group == g.name for r in damage._readers) for g in groups}
    for g in groups:
        space, again = spaces[g.name], Halves(spaces[g.name], drawn[g.name].size, seed=7)
        above, below = np.zeros((counts[g.name], g.size)), np.zeros((counts[g.name], g.size))
        for reader in range(counts[g.name]):
            for row, mask in enumerate(again.draw(3).numpy()):  # of six examples
                a, b = rows(case, g, space[mask], reader)
                above[reader, space[mask]] += (a / b if ratio == "example" else a)[2 * row]
                below[reader, space[mask]] += 1 if ratio == "example" else b[2 * row]
        if ratio == "batch":
            above, below = above / np.maximum(below, 1e-30), below > 0
        assert found[g.name][0] == pytest.approx(above.sum(0), rel=1e-4), g.name
        assert found[g.name][1] == pytest.approx(below.sum(0)), g.name


@pytest.mark.parametrize("ratio", ["example", "batch"])
@pytest.mark.parametrize("name", list(CASES))
def test_halves_drawn_before_a_compiled_pass(name: str, ratio: Any) -> None:
    """One graph for whatever is ablated, and the same samples."""
    if name == "unusual" and torch.__version__ < "2.13":
        pytest.skip("a layer that is run again; PyTorch 2.6 splits the graph there")
    torch.manual_seed(0)
    case = CASES[name]()
    groups = [g for g in sc.trace(case.model, case.x[:2], **case.graph_options).groups if g.reason is None]
    case.model.train()
    torch._dynamo.reset()
    compiled = torch.compile(case.model, backend="eager", fullgraph=True)
    with Damage(case.model, groups, case.x[:2], ratio) as damage:
        for step in range(3):
            some = [g for i, g in enumerate(groups) if len(groups) == 1 or i % 3 != step]
            for network in (case.model, compiled):
                spaces = {g.name: np.arange(0, g.size, 1 + step) for g in some}
                damage.ablate({name: Halves(s, max(1, len(s) // 2), seed=7) for name, s in spaces.items()})
                if network is compiled:
                    damage.ablation.draw(len(case.x), case.x.device)
                with torch.compiler.set_stance("fail_on_recompile" if network is compiled and step else "default"):
                    network(case.x)
                found = damage.samples()
                damage.ablation.undraw()
                if network is case.model:
                    plain = found
            assert set(found) == set(plain) == set(spaces)
            for group, (sums, counts) in plain.items():
                assert found[group][0] == pytest.approx(sums, rel=1e-4), group
                assert found[group][1] == pytest.approx(counts), group
    torch._dynamo.reset()


def rows(case: Case, group: sc.ChannelGroup, ablated: np.ndarray, reader: int) -> tuple[np.ndarray, np.ndarray]:
    """‖M − M′‖² and ‖M‖² of each example, with the same channels ablated in all of them."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    damage = Damage(case.model, [group], case.x[:2])
    damage._add = lambda r, a, b, masks: seen.append((a.numpy(), b.numpy()))  # type: ignore[method-assign]
    with damage:
        damage.ablate({group.name: ablated})
        case.model(case.x)
    return seen[reader]


def outcome(
    model: nn.Module, x: Tensor, layer: str, norm: str | None, act: Act, statistics: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """(M, the layer's plain output) by a full forward; batch norm with these statistics, or those of the pass."""
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, a, y: seen.append(y.clone()))
    with torch.no_grad():
        model(x)
    handle.remove()
    (y,) = seen
    z = y
    if norm is not None:
        bn: Any = model.get_submodule(norm)
        axes = [0, *range(2, y.ndim)]
        if statistics is None and bn.training:
            statistics = y.mean(axes), y.var(axes, unbiased=False)
        mean, var = statistics or (bn.running_mean, bn.running_var)
        shape = [1, -1] + [1] * (y.ndim - 2)
        z = (y - mean.view(shape)) / (var.view(shape) + bn.eps).sqrt() * bn.weight.view(shape) + bn.bias.view(shape)
    return (z if act is None else act(z.clone())), y


@torch.no_grad()
def brute(
    case: Case, group: sc.ChannelGroup, ablated: np.ndarray, ratio: str, gone: dict[str, list[int]] | None = None
) -> float:
    """Eq. 7 in float64, by masking the weights that read the channels; the mean over the group's readers. gone: outputs of
    layers that do not count."""
    found: list[float] = []
    for slot in group.slots:
        if not slot.consumes:
            continue
        norm, act = case.follows[slot.module]
        base, masked = copy.deepcopy(case.model).double(), copy.deepcopy(case.model).double()
        m, y = outcome(base, case.x.double(), slot.module, norm, act, None)
        w = parameter(masked, slot.param)
        w.index_fill_(slot.axis, torch.from_numpy(slot.index[ablated].ravel()), 0)
        bn: Any = None if norm is None else case.model.get_submodule(norm)
        axes = [0, *range(2, y.ndim)]
        statistics = (y.mean(axes), y.var(axes, unbiased=False)) if bn is not None and bn.training else None
        other, _ = outcome(masked, case.x.double(), slot.module, norm, act, statistics)
        axis = -1 if isinstance(case.model.get_submodule(slot.module), nn.Linear) else 1
        left = torch.tensor([i for i in range(m.shape[axis]) if i not in (gone or {}).get(slot.module, ())])
        m, other = m.index_select(axis, left), other.index_select(axis, left)
        above, below = (m - other).flatten(1).square().sum(1), m.flatten(1).square().sum(1)
        t = (above / below).mean() if ratio == "example" else above.sum() / below.sum()
        found.append(float(t))
    return sum(found) / len(found)


@pytest.mark.parametrize("ratio", ["example", "batch"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", list(CASES))
def test_damage_is_what_brute_force_finds(name: str, layout: str, mode: str, ratio: Any) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    if layout == "channels_last":
        case.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        case.x = case.x.to(memory_format=torch.channels_last)
    graph = sc.trace(case.model, case.x[:2], **case.graph_options)
    groups = [g for g in graph.groups if g.reason is None]
    assert len(groups) >= 2 or name in ("flattened", "tokens"), [(g.name, g.reason) for g in graph.groups]
    case.model.train(mode == "train")
    ablated = {g.name: half(g.size, i) for i, g in enumerate(groups)}
    buffers = {k: v.clone() for k, v in case.model.named_buffers()}
    with Damage(case.model, groups, case.x[:2], ratio) as damage:
        assert damage.names == [g.name for g in groups]
        assert all(torch.equal(v, buffers[k]) for k, v in case.model.named_buffers())
        damage.ablate(ablated)
        twin = copy.deepcopy(case.model)
        out = case.model(case.x)
        found = damage.take()
        assert damage.take() == {}
    torch.testing.assert_close(out, twin(case.x), rtol=0, atol=0)
    for key, value in case.model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), f"{key}: statistics have moved by the scoring"
    assert set(found) == set(ablated)
    for g in groups:
        want = brute(case, g, ablated[g.name], ratio)
        assert want > 1e-4
        assert found[g.name] == pytest.approx(want, rel=1e-5), g.name


@pytest.mark.parametrize("ratio", ["example", "batch"])
@pytest.mark.parametrize("name", list(CASES))
def test_outputs_that_are_gone_do_not_count(name: str, ratio: Any) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    graph = sc.trace(case.model, case.x[:2], **case.graph_options)
    groups = [g for g in graph.groups if g.reason is None]
    case.model.train()
    ablated = {g.name: half(g.size, i) for i, g in enumerate(groups)}
    alive = {g.name: np.arange(g.size) % 3 != 1 for g in groups}
    gone: dict[str, list[int]] = {}
    for g in groups:
        for slot in g.slots:
            if slot.produces:
                module: Any = case.model.get_submodule(slot.module)
                steps = range(module.groups) if getattr(module, "transposed", False) else [0]
                for step in steps:
                    index = step * (module.out_channels // module.groups if step else 0) + slot.index
                    gone.setdefault(slot.module, []).extend(index[~alive[g.name]].ravel())
    counted = 0
    with Damage(case.model, groups, case.x[:2], ratio) as damage:
        damage.keep(alive)
        damage.ablate(ablated)
        case.model(case.x)
        found = damage.take()
        damage.keep({g.name: np.ones(g.size, dtype=bool) for g in groups})
        case.model(case.x)
        whole = damage.take()
        damage.keep(None)
        assert damage.ablation.kept == {}
    for g in groups:
        assert found[g.name] == pytest.approx(brute(case, g, ablated[g.name], ratio, gone), rel=1e-5), g.name
        assert whole[g.name] == pytest.approx(brute(case, g, ablated[g.name], ratio), rel=1e-5), g.name
        counted += found[g.name] != pytest.approx(whole[g.name], rel=1e-4)
    assert counted or name == "tokens"  # whose linear layer makes no channels that can be cut


@pytest.mark.parametrize("kind", ["no gradient", "patched"])
def test_batch_norms_factor_is_found_where_the_backward_pass_does_not_tell(kind: str) -> None:
    """Without gradients there is no backward pass; with statistics over processes it is another one."""
    torch.manual_seed(0)
    case = CASES["plain"]()
    case.model.train()
    norm: Any = case.model.get_submodule("5")
    norm.weight.data[2] = 0.0  # a channel that says nothing of the statistics
    group = sc.trace(case.model, case.x[:2]).groups[0]
    ablated = half(group.size)
    want = brute(case, group, ablated, "example")
    with Damage(case.model, [group], case.x[:2]) as damage, torch.set_grad_enabled(kind == "patched"):
        if kind == "patched":  # as the engine does it for each step
            norm.forward = lambda y: F.batch_norm(y * 1.0, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
        damage.ablate({group.name: ablated})
        case.model(case.x)
        assert damage.take()[group.name] == pytest.approx(want, rel=1e-5)


def test_bfloat16() -> None:
    torch.manual_seed(0)
    for name in ("residual", "depthwise", "grouped"):
        case = CASES[name]()
        case.model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = [g for g in sc.trace(case.model, case.x[:2]).groups if g.reason is None]
        ablated = {g.name: half(g.size, i) for i, g in enumerate(groups)}
        with Damage(case.model, groups, case.x[:2]) as damage:
            found = []
            for enabled in (False, True):
                damage.ablate(ablated)
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    case.model(case.x.to(memory_format=torch.channels_last))
                found.append(damage.take())
        for g in ablated:
            assert found[1][g] == pytest.approx(found[0][g], rel=0.03)
            assert found[1][g] != found[0][g]


def test_a_weight_that_two_layers_share_is_scored_at_both() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    model[4].weight = model[2].weight
    groups = [g for g in sc.trace(model, torch.zeros(1, 3, 8, 8)).groups if g.reason is None]
    for group in groups:
        with Damage(model, [group], torch.zeros(1, 3, 8, 8)) as damage:
            damage.ablate({group.name: np.arange(3)})
            model(torch.randn(2, 3, 8, 8))
            seen = {key.split("\n")[1] for key in damage._sums}
            assert seen == {"2", "4", "7"}
            (t,) = damage.take().values()
            assert 0 < t < 2


def test_an_image_whose_outcome_is_zero_does_not_count() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 3, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        model[1].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]).view(3, 2, 1, 1))
    x = torch.ones(3, 1, 2, 2)
    group = sc.trace(model, x).groups[0]
    with Damage(model, [group], x) as damage:
        damage.ablate({group.name: [1]})
        model(x)  # the two channels cancel: M = 0, and M' = 1
        assert damage.take() == {}
        damage.ablate({group.name: [0, 1]})
        model(x)  # M = M' = 0: no damage
        assert damage.take() == {group.name: 0.0}
