"""Every owner of a shape follows a cut: modules that share weights, masks, parametrizations, and numbers of blocks' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, remove_weight_norm, weight_norm
from torch.nn.utils import spectral_norm as old_spectral_norm

import secateurs as sc
from secateurs import artifact
from secateurs.errors import PlanError
from secateurs.graph.attributes import disagreements
from secateurs.plans import Plan, trace
from secateurs.surgery import apply, cut_, verify
from secateurs.testing.networks import randomize
from secateurs.zoo.vision import timm
from tests.networks import CASES, Net, conv, half, head, image


def cut(model: nn.Module, allow_inexact: bool = False) -> tuple[nn.Module, Plan]:
    """The network with half of all its channels: it agrees with the masked one, and with its own attributes; it trains."""
    x = image()
    graph = trace(model.eval(), x, allow_inexact=allow_inexact)
    plan = graph.plan(half(graph), allow_inexact=allow_inexact)
    assert plan.groups
    if plan.exact:
        assert verify(model, plan, x) <= 1e-5
    assert Plan.from_json(plan.to_json()) == plan
    small = apply(model, plan)
    assert disagreements(small) == []
    optimizer = torch.optim.SGD(small.parameters(), 0.01)
    small.train()(x).pow(2).mean().backward()
    optimizer.step()
    return small.eval(), plan


@pytest.mark.parametrize("name", CASES)
def test_no_attribute_disagrees_with_a_tensor(name: str) -> None:
    model, x = CASES[name].make(), CASES[name].inputs()
    assert disagreements(model) == []
    graph = trace(model, x)
    assert disagreements(apply(model, graph.plan(half(graph)))) == []


def test_a_disagreement_is_named() -> None:
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.Linear(8, 2))
    model[0].in_channels, model[1].num_features = 4, 9
    assert disagreements(model) == [
        "0.in_channels is 4, weight has shape (8, 3, 3, 3)",
        "1.num_features is 9, weight has shape (8,)",
    ]


# -- shared weights ----------------------------------------------------------------------------------------------------


def tied(groups: int) -> nn.Module:
    a, b = conv(16, 16, groups=groups), conv(16, 16, groups=groups)
    b.weight = a.weight
    return randomize(nn.Sequential(conv(3, 16), nn.ReLU(), a, nn.ReLU(), b, nn.ReLU(), conv(16, 6), head(6)))


@pytest.mark.parametrize("groups", [1, 2, 16])
def test_each_module_that_shares_a_weight(groups: int) -> None:
    model = tied(groups)
    small, plan = cut(model)
    assert small[2].weight is small[4].weight
    for layer in (small[2], small[4]):
        assert layer.in_channels == layer.out_channels == small[0].out_channels < 16
        assert layer.groups == {1: 1, 2: 2, 16: layer.in_channels}[groups]
    here = cut_(model, plan)
    assert here[2].weight is here[4].weight
    assert disagreements(here) == []
    graph = trace(tied(groups), image())
    assert {"2", "4"} <= {n for g in graph.groups for n in (*g.producers, *g.consumers)} or groups > 1


def test_an_embedding_that_shares_its_weight_with_the_last_layer() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.inner, self.write = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
            self.write.weight = self.read.weight

        def forward(self, x: Tensor) -> Any:
            return self.write(F.relu(self.inner(self.read(x))))

    model, x = Words().eval(), torch.arange(6).view(2, 3)
    graph = trace(model, x)
    small = apply(model, graph.plan(half(graph)))
    assert small.read.embedding_dim == small.write.in_features == 4
    assert small.read.weight is small.write.weight
    assert disagreements(small) == []


def test_a_decoder_that_is_the_encoder_transposed() -> None:
    model = Net(
        lambda s, x: s.h(F.linear(F.relu(s.e(s.a(x).mean((2, 3)))), s.e.weight.t())),
        a=conv(3, 8), e=nn.Linear(8, 12), h=nn.Linear(8, 4),
    )  # fmt: skip
    small, _ = cut(randomize(model))
    assert (small.e.in_features, small.e.out_features) == (4, 6)
    assert small.h.in_features == 4


def test_one_module_under_two_names() -> None:
    model = Net(lambda s, x: s.h(s.again(F.relu(s.b(F.relu(s.a(x)))))), a=conv(3, 8), b=conv(8, 8), h=head(8))
    model.again = model.b
    small, _ = cut(randomize(model))
    assert small.again is small.b
    assert small.b.in_channels == small.b.out_channels == 4


def test_weights_in_lists_of_a_module() -> None:
    """For example those that a regularization is over."""
    model = Net(lambda s, x: s.h(F.relu(s.b(F.relu(s.a(x))))), a=conv(3, 8), b=conv(8, 8), h=head(8))
    model.decayed = {"conv": [(model.b.weight, 0.1)]}
    small, plan = cut(randomize(model))
    assert small.decayed["conv"][0][0] is small.b.weight
    here = cut_(model, plan)
    assert here.decayed["conv"][0][0] is here.b.weight


class Shared(nn.Module):
    """A weight that is another's, times a scale of its own."""

    def __init__(self, other: nn.Conv2d, c: int) -> None:
        super().__init__()
        self.other = other
        self.scale = nn.Parameter(torch.rand(c, 1, 1, 1))

    def forward(self, w: Tensor) -> Tensor:
        return self.other.weight * self.scale + 0 * w


def test_a_weight_that_is_shared_in_a_parametrization() -> None:
    model = Net(lambda s, x: s.h(s.c(F.relu(s.b(F.relu(s.a(x)))))), a=conv(3, 8), b=conv(8, 8), c=conv(8, 8), h=head(8))
    parametrize.register_parametrization(model.c, "weight", Shared(model.b, 8), unsafe=True)
    small, _ = cut(randomize(model))
    assert small.b.in_channels == small.c.in_channels == small.c.out_channels == 4
    assert small.c.parametrizations.weight[0].other is small.b


# -- weights that are computed from several tensors --------------------------------------------------------------------


def chain(wrap: Callable[[nn.Module], nn.Module], kind: str) -> nn.Module:
    middle: nn.Module = {
        "plain": conv(8, 8),
        "depthwise": conv(8, 8, groups=8),
        "grouped": conv(8, 8, groups=2),
        "transposed": nn.ConvTranspose2d(8, 6, 2, 2),
    }[kind]
    out = 6 if kind == "transposed" else 8
    model = nn.Sequential(conv(3, 8), nn.ReLU(), middle, nn.ReLU(), conv(out, 4, 1), head(4))
    randomize(model)
    for i in (0, 2, 4):
        wrap(model[i])
    wrap(model[5][2])
    return model


KINDS = ["plain", "depthwise", "grouped", "transposed"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("structured", [False, True])
def test_masks_of_torch_prune(kind: str, structured: bool) -> None:
    def mask(layer: nn.Module) -> nn.Module:
        if structured:
            prune.ln_structured(layer, "weight", 0.3, 2, 0)
        prune.l1_unstructured(layer, "weight", 0.2)  # and so on the same layer again
        return prune.l1_unstructured(layer, "bias", 0.2)

    model = chain(mask, kind)
    small, plan = cut(model)
    assert small[2].weight_mask.shape == small[2].weight.shape == small[2].weight_orig.shape
    assert small[2].in_channels < 8
    assert disagreements(cut_(model, plan)) == []
    before = small(image())
    for layer in (small[0], small[2], small[4], small[5][2]):
        for name in ("weight", "bias"):
            prune.remove(layer, name)
    assert torch.equal(small(image()), before)
    prune.l1_unstructured(small[2], "weight", 0.5)
    small(image())


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", KINDS[:3])
def test_weight_norm_of_both_styles(kind: str) -> None:
    small, _ = cut(chain(weight_norm, kind), allow_inexact=True)
    before = small(image())
    remove_weight_norm(small[2])
    assert disagreements(small) == []
    assert torch.allclose(small(image()), before, atol=1e-6)
    small, _ = cut(chain(parametrizations.weight_norm, kind), allow_inexact=True)
    before = small(image())
    parametrize.remove_parametrizations(small[2], "weight")
    assert disagreements(small) == []
    assert torch.allclose(small(image()), before, atol=1e-6)


@pytest.mark.parametrize("style", [old_spectral_norm, parametrizations.spectral_norm])
def test_spectral_norm_of_both_styles(style: Any) -> None:
    small, _ = cut(chain(style, "plain"), allow_inexact=True)
    assert small[2].in_channels == small[2].out_channels == 4


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w + w.flip(3)


class Product(nn.Module):
    """A linear layer's weight as the product of two thin ones."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right

    def right_inverse(self, w: Tensor) -> tuple[Tensor, Tensor]:
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        return u[:, :3] * s[:3], v[:3]


def test_parametrizations_of_several() -> None:
    def both(layer: nn.Module) -> nn.Module:
        if isinstance(layer, nn.Conv2d):
            parametrizations.weight_norm(layer)
            return parametrize.register_parametrization(layer, "weight", Symmetric())
        return layer

    small, _ = cut(chain(both, "depthwise"), allow_inexact=True)
    assert small[2].groups == small[2].in_channels == 4


def test_a_weight_of_another_shape_than_its_parameters() -> None:
    model = Net(
        lambda s, x: s.h(F.relu(s.e(F.relu(s.a(x)).mean((2, 3))))), a=conv(3, 8), e=nn.Linear(8, 12), h=nn.Linear(12, 4)
    )
    parametrize.register_parametrization(model.e, "weight", Product())
    small, _ = cut(model)
    assert (small.e.in_features, small.e.out_features) == (4, 6)


@pytest.mark.parametrize(
    ("layer", "attributes"),
    [
        (nn.PReLU(8), {"num_parameters": 4}),
        (nn.InstanceNorm2d(8), {"num_features": 4}),
        (nn.GroupNorm(8, 8, affine=False), {"num_groups": 4, "num_channels": 4}),
        (nn.BatchNorm2d(8, affine=False, track_running_stats=False), {"num_features": 4}),
    ],
)
def test_other_layers(layer: nn.Module, attributes: dict[str, int]) -> None:
    model = Net(lambda s, x: s.h(s.n(s.a(x))), a=conv(3, 8), n=layer, h=head(8))
    small, _ = cut(model)
    assert {a: getattr(small.n, a) for a in attributes} == attributes


def test_bilinear() -> None:
    model = Net(
        lambda s, x: s.h(s.n(s.a(x).mean((2, 3)), s.b(x).mean((2, 3)))),
        a=conv(3, 8), b=conv(3, 10), n=nn.Bilinear(8, 10, 6), h=nn.Linear(6, 2),
    )  # fmt: skip
    graph = trace(model.eval(), image())
    small = apply(model, graph.plan(half(graph)))
    assert disagreements(small) == []


# -- what modules note of their own ------------------------------------------------------------------------------------


class Fusable(nn.Module):
    """Two branches that `fuse` makes one convolution of, by what the block has noted."""

    def __init__(self, i: int, o: int, groups: int = 1) -> None:
        super().__init__()
        self.in_chs, self.out_chs, self.groups, self.kernel_size = i, o, groups, 3
        self.wide, self.point = conv(i, o, groups=groups), conv(i, o, 1, groups=groups)

    def forward(self, x: Tensor) -> Any:
        return self.wide(x) + self.point(x)

    def fuse(self) -> nn.Conv2d:
        fused = conv(self.in_chs, self.out_chs, groups=self.groups)
        with torch.no_grad():
            fused.weight.copy_(self.wide.weight + F.pad(self.point.weight, (1, 1, 1, 1)))
            fused.bias.copy_(self.wide.bias + self.point.bias)
        return fused


@pytest.mark.parametrize("groups", [1, 2, 16])
def test_blocks_that_are_fused_later(groups: int) -> None:
    model = nn.Sequential(conv(3, 16), nn.ReLU(), Fusable(16, 16, groups), nn.ReLU(), Fusable(16, 8), head(8))
    small, plan = cut(randomize(model))
    assert small[2].in_chs == small[0].out_channels < 16
    fused, x = nn.Sequential(*small), image()
    fused[2], fused[4] = small[2].fuse(), small[4].fuse()
    assert torch.allclose(fused(x), small(x), atol=1e-5)
    assert trace(model, x).stale(plan.groups) == ()
    here = cut_(model, plan)
    assert here[2].in_chs == small[2].in_chs


class Halves(nn.Module):
    """As in YOLO: what `c` counts is half of what the first layer makes. One forward splits by it, the other in two."""

    def __init__(self, i: int, c: int, by_number: bool) -> None:
        super().__init__()
        self.c, self.by_number = c, by_number
        self.first, self.last = conv(i, 2 * c, 1), conv(3 * c, i, 1)
        self.inner = nn.ModuleList([nn.Sequential(conv(c, c), nn.ReLU(), conv(c, c))])

    def forward(self, x: Tensor) -> Any:
        return self.forward_split(x) if self.by_number else self._joined(self.first(x).chunk(2, 1))

    def forward_split(self, x: Tensor) -> Any:
        return self._joined(self.first(x).split((self.c, self.c), 1))

    def _joined(self, parts: Any) -> Any:
        return self.last(torch.cat([*parts, self.inner[0](parts[1])], 1))


@pytest.mark.parametrize("by_number", [False, True])
def test_a_split_by_a_number_that_the_module_holds(by_number: bool) -> None:
    model = nn.Sequential(conv(3, 12), nn.ReLU(), Halves(12, 8, by_number), nn.ReLU(), conv(12, 6), head(6))
    small, _ = cut(randomize(model))
    assert small[2].first.out_channels == 8
    x = image()
    before = small(x)
    small[2].forward = small[2].forward_split
    assert torch.equal(small(x), before)


class Views(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.channels, self.scale = c, nn.Parameter(torch.rand(1, c, 1))

    def forward(self, x: Tensor) -> Any:
        return (x.reshape(len(x), self.channels, -1) * self.scale)[:, : self.channels].view_as(x)


def test_a_view_by_a_number_that_the_module_holds() -> None:
    model = nn.Sequential(conv(3, 16), Views(16), nn.ReLU(), conv(16, 8), head(8))
    small, plan = cut(randomize(model))
    assert small[1].channels == 8
    assert plan.attributes["1", "channels"] == 8


class Mixed(nn.Module):
    """As in MixNet: a convolution for each part of the channels, whose sizes are in a list."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.splits = sizes
        self.parts = nn.ModuleList(conv(n, n, k, groups=n) for n, k in zip(sizes, (3, 5), strict=True))

    def forward(self, x: Tensor) -> Any:
        parts = zip(self.parts, torch.split(x, self.splits, 1), strict=True)
        return torch.cat([part(piece) for part, piece in parts], 1)


def test_a_split_by_a_list_that_the_module_holds() -> None:
    model = nn.Sequential(conv(3, 16), nn.ReLU(), Mixed([10, 6]), nn.ReLU(), conv(16, 6), head(6))
    graph = trace(randomize(model).eval(), image())
    plan = graph.plan({g.name: range(g.size // 2) for g in graph.groups if g.prunable})
    small = apply(model, plan)
    assert small[2].splits == [small[2].parts[0].groups, small[2].parts[1].groups]
    assert sum(small[2].splits) == small[0].out_channels < 16
    assert verify(model, plan, image()) <= 1e-5
    assert Plan.from_json(plan.to_json()).attributes["2", "splits"] == tuple(small[2].splits)
    assert model[2].splits == [10, 6]


class Ambiguous(nn.Module):
    """Two widths that are the same number, of which `channels` may be either."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.dim = 16, 2
        self.a, self.b = conv(16, 16), conv(16, 16)

    def forward(self, x: Tensor) -> Any:
        return self.b(F.relu(self.a(x)))

    def fuse(self) -> nn.Conv2d:
        return conv(self.channels, self.channels)


def test_numbers_that_may_count_several_widths_are_named() -> None:
    model = nn.Sequential(conv(3, 16), Ambiguous(), nn.ReLU(), Ambiguous(), head(16)).eval()
    graph = trace(model, image())
    plan = graph.plan({"0": range(8), "1.a": range(4)})
    assert apply(model, plan)[1].channels == 16
    (sentence,) = graph.stale(plan.groups)
    assert sentence.startswith("1 (Ambiguous) keeps channels=16, which may count channels that are now 4, 8, 16: ")
    assert graph.stale({}) == ()


class Scaled(nn.Module):
    """A number that the forward computes with stays: the masked network computes with it, too."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.dim = c

    def forward(self, x: Tensor) -> Any:
        return x * self.dim**-0.5


def test_a_number_that_is_computed_with_stays() -> None:
    small, _ = cut(randomize(nn.Sequential(conv(3, 16), Scaled(16), nn.ReLU(), conv(16, 8), head(8))))
    assert small[1].dim == 16


def test_a_plan_sets_nothing_but_numbers_of_channels() -> None:
    model = nn.Sequential(conv(3, 16), Fusable(16, 8), head(8)).eval()
    graph = trace(model, image())
    plan = graph.plan({"0": range(8)})
    for attribute, value in (("kernel_size", 3), ("training", 3), ("__dict__", 3), ("forward", 3)):
        hostile = Plan(plan.groups, plan.kept, plan.shapes, {("1", attribute): value}, plan.consumes)
        with pytest.raises(PlanError, match=f"sets 1.{attribute} to 3, which a cut cannot change"):
            Plan.from_json(hostile.to_json())
    model[1].in_chs = "16"
    with pytest.raises(PlanError, match="rewrites in_chs of 1, which this model does not have"):
        plan.check(model)


@pytest.mark.parametrize("name", ["mobileone_s0", "repvgg_a0", "fastvit_t8"])
def test_timm_fuses_cut_networks(name: str) -> None:
    create = timm().create_model
    model, x = randomize(create(name, num_classes=5)).eval(), image(1, 64)
    from timm.utils.model import reparameterize_model

    graph = trace(model, x)
    small = apply(model, graph.plan(half(graph)))
    with torch.no_grad():
        fused, due = reparameterize_model(small)(x), small(x)
    assert (fused - due).abs().max() <= 1e-4 * due.abs().max()


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_group_is_found_by_any_layer_that_produces_it() -> None:
    graph = trace(CASES["residual"].make(), image())
    group = next(g for g in graph.groups if len(g.producers) > 1)
    other = group.producers[-1]
    assert other != group.name
    assert graph[other] is group
    assert graph.index(other) == graph.index(group.name)
    assert graph.cost({other: 3}) == graph.cost({group.name: 3})
    assert graph.plan({other: range(3)}) == graph.plan({group.name: range(3)})
    with pytest.raises(PlanError, match=f"has group {group.name} twice: as {group.name} and as {other}"):
        graph.plan({group.name: range(3), other: range(3)})


def test_a_module_is_found_by_each_of_its_names() -> None:
    model = Net(lambda s, x: s.h(s.again(F.relu(s.a(x)))), a=conv(3, 8), b=conv(8, 6), h=head(6))
    model.again = model.b
    graph = trace(model.eval(), image())
    assert graph["again"] is graph["b"]


def test_a_layer_of_several_groups_names_them() -> None:
    model = Net(lambda s, x: F.conv_transpose2d(F.relu(s.a(x)), s.a.weight, padding=1), a=conv(3, 8), b=conv(3, 8))
    model.b.weight = model.a.weight
    graph = trace(model.eval(), image())
    assert graph["a"].name == "a"
    with pytest.raises(PlanError, match="b produces 2 groups of channels: choose one of a, a#2"):
        graph["b"]
    with pytest.raises(PlanError, match=r"no channel group 'e'\. Known: a, a#2, b"):
        graph["e"]


def test_the_result_says_which_numbers_were_not_followed(tmp_path: Path) -> None:
    model = nn.Sequential(conv(3, 16), Ambiguous(), nn.ReLU(), conv(16, 16), head(16))
    result = sc.prune(model, image(), "l1", sc.Budget(macs=0.5), scope="all")
    (sentence,) = result.warnings
    assert sentence.startswith("1 (Ambiguous) keeps channels=16")
    result.save(tmp_path / "run")
    assert artifact.read(tmp_path / "run")[1].warnings == [sentence]
    whole = sc.prune(model, image(), "l1", sc.Budget(macs=1.0))
    assert whole.warnings == ()
    assert "warnings" not in whole.card()


@pytest.mark.parametrize("groups", [1, 16])
def test_what_is_tied_is_saved_and_loaded_as_such(groups: int, tmp_path: Path) -> None:
    result = sc.prune(tied(groups), image(), "l1", sc.Budget(macs=0.5), scope="all")
    result.save(tmp_path / "run")
    again = sc.load(tmp_path / "run", model=tied(groups))
    assert again[2].weight is again[4].weight
    assert disagreements(again) == []
    assert torch.equal(again(image()), result.model.eval()(image()))


def test_reasons_name_the_layer_where_the_code_only_lines_layers_up() -> None:
    graph = trace(nn.Sequential(conv(3, 8), nn.FractionalMaxPool2d(2, 4), conv(8, 6), head(6)).eval(), image())
    reason = graph["0"].reason
    assert reason is not None
    assert reason.place == "in layer 1"


class Decoder(nn.Module):
    """A vector becomes a map, whose shape the module keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.conv, self.head = nn.Linear(5, 128), nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.Conv2d(6, 3, 3)
        self.map_shape = (8, 4, 4)

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.conv(self.fc(z).relu().view(-1, *self.map_shape)).relu())


def unflattened(*shape: int) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 128), nn.Unflatten(1, shape), nn.ConvTranspose2d(8, 6, 4, 2, 1), conv(6, 3))


def unflattened_sequence() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 64), nn.Unflatten(1, torch.Size((8, 8))), nn.Conv1d(8, 6, 3), nn.ReLU(), nn.Conv1d(6, 3, 1)
    )


@pytest.mark.parametrize(
    ("make", "name", "kept"),
    [
        (lambda: unflattened(8, 4, 4), "0", lambda m: m[1].unflattened_size == (3, 4, 4)),
        (lambda: unflattened(8, -1, 4), "0", lambda m: m[1].unflattened_size == (3, -1, 4)),
        (lambda: unflattened(-1, 4, 4), "0", lambda m: m[1].unflattened_size == (-1, 4, 4)),
        (unflattened_sequence, "0", lambda m: m[1].unflattened_size == (3, 8)),
        (Decoder, "fc", lambda m: m.map_shape == (3, 4, 4)),
    ],
    ids=["Unflatten", "with a computed side", "with computed channels", "Unflatten to a sequence", "own"],
)
def test_the_shape_of_a_map_that_a_vector_becomes_follows(
    make: Callable[[], nn.Module], name: str, kept: Callable[[Any], bool]
) -> None:
    model, z = make().eval(), torch.randn(2, 5)
    graph = trace(model, z)
    assert (graph[name].size, graph[name].prunable) == (8, True)
    plan = graph.plan({name: [0, 3, 7]})
    assert verify(model, plan, z) <= 1e-5
    assert Plan.from_json(plan.to_json()) == plan
    assert kept(apply(model, plan))


def test_a_constant_shape_of_a_map_is_the_reason() -> None:
    def forward(s: Any, z: Tensor) -> Tensor:
        return s.conv(s.fc(z).view(-1, 8, 4, 4))

    reason = trace(Net(forward, fc=nn.Linear(5, 128), conv=conv(8, 3)).eval(), torch.randn(2, 5))["fc"].reason
    assert "constants in the code (test_owners.py" in str(reason)
