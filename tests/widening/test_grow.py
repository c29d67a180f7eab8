"""Wider networks: they compute what the given one does, cost what the graph says, and leave the given one alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateurs import api, models
from secateurs.budget import Budget
from secateurs.errors import ConfigError, PlanError, VerificationError
from secateurs.graph import count
from secateurs.plans import trace
from secateurs.surgery import apply
from secateurs.widening.grow import grow, growth, resized, widened, wider
from tests.graph.test_random_networks import SIZE, networks
from tests.networks import CASES, Net, conv, head, image
from tests.surgery.test_slice import fingerprint, same

# An autoencoder's tied weight creates and reads its channels on one axis: copies cannot share it out.
GROWS = [n for n, c in CASES.items() if c.prunable and n != "tied_transpose"]


def answers(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        out = (
            model(*inputs)
            if isinstance(inputs, tuple)
            else model(**inputs)
            if isinstance(inputs, dict)
            else model(inputs)
        )
    flat = [out] if isinstance(out, Tensor) else list(out.values()) if isinstance(out, dict) else list(out)
    return [x for part in flat for x in (part if isinstance(part, list) else [part])]


def apart(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((x.double() - y.double()).abs().max() / y.double().abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("factor", [1.5, 2.7])
@pytest.mark.parametrize("name", GROWS)
def test_computes_the_same(name: str, factor: float) -> None:
    case = CASES[name]
    model, inputs = case.make(), case.inputs()
    before = fingerprint(model)
    wide, how, _ = widened(model, inputs, factor, scope="all", seed=3)
    assert same(fingerprint(model), before)
    assert how.before == case.prunable
    assert how.widths == {g: int(n * factor + 0.5) for g, n in case.prunable.items()}
    half = next(iter(model.state_dict().values())).dtype in (torch.float16, torch.bfloat16)
    assert apart(answers(wide, inputs), answers(model, inputs)) < (2e-2 if half else 1e-5)
    graph = trace(wide, inputs)
    assert {g: graph[g].size for g in how.widths} == how.widths
    assert graph.cost() == count(wide, inputs)
    assert {n: m.training for n, m in wide.named_modules()} == {n: m.training for n, m in model.named_modules()}
    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers()) if x.numel()}
    assert not any(x.untyped_storage().data_ptr() in own for x in (*wide.parameters(), *wide.buffers()) if x.numel())


@settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)  # fmt: skip
@given(model=networks(), factor=st.floats(1.3, 3.5), seed=st.integers(0, 9))
def test_random_network(model: nn.Module, factor: float, seed: int) -> None:
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    graph = trace(model, x)
    widths = {g.name: int(g.size * factor + 0.5) for g in graph.groups if g.prunable}
    if not widths:
        return
    wide, how, _ = widened(model, x, widths, seed=seed)
    assert how.widths == {g: w for g, w in widths.items() if w > graph[g].size}
    assert apart(answers(wide, x), answers(model, x)) <= 1e-5
    # and down again: a wide network is cut like any other
    again = trace(wide, x)
    small = apply(wide, again.plan({g: range(graph[g].size) for g in how.widths}))
    assert count(small, x) == count(model, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_reads_the_copies_adds_up_to_the_last_bit(dtype: torch.dtype) -> None:
    model = CASES["chain"].make().to(dtype)
    graph = trace(model, image().to(dtype))
    how = growth(graph, {"a": 29}, seed=1)
    wide, old = grow(model, how), model.get_parameter("b.weight")
    new, source = wide.get_parameter("b.weight").detach().double(), torch.tensor(how.index["b.weight"][1])
    summed = torch.zeros(old.shape, dtype=torch.float64).index_add_(1, source, new)
    assert torch.equal(summed, old.double())
    assert torch.equal(wide.get_parameter("a.weight"), model.get_parameter("a.weight")[source])
    times = torch.bincount(source)
    assert int(times.max() - times.min()) == 1  # as even as can be
    shares = (new / old.detach().double()[:, source])[0, :, 0, 0]
    assert float(shares.min()) > 0.3 / int(times.max())  # every copy has its part


def test_copies_part_ways_in_training() -> None:
    model = CASES["chain"].make()
    wide, how, _ = widened(model, image(), {"a": 16})
    wide.train()
    F.cross_entropy(wide(image(8)), torch.arange(8) % 5).backward()
    source = torch.tensor(how.index["a.weight"][0])
    filters, grads = wide.get_parameter("a.weight"), wide.get_parameter("a.weight").grad
    for k in range(8):
        first, second = torch.nonzero(source == k).flatten().tolist()
        assert torch.equal(filters[first], filters[second])
        assert float((grads[first] - grads[second]).norm() / grads[first].norm()) > 1e-2


def test_the_seed_says_what_is_copied() -> None:
    model = CASES["chain"].make()
    graph = trace(model, image())
    first, again, other = (growth(graph, {"a": 12, "b": 9}, seed=s).index for s in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("name", ["layer_norm", "group_norm", "cbam"])
def test_inexact_groups_stay_unless_allowed(name: str) -> None:
    model = CASES[name].make()
    inputs = CASES[name].inputs()
    with pytest.raises(PlanError, match="Group a cannot be widened: inexact"):
        widened(model, inputs, {"a": 99})
    wide, how, _ = widened(model, inputs, 1.5, scope="all", allow_inexact=True)
    assert how.widths["a"] > trace(model, inputs)["a"].size
    assert not how.exact
    assert apart(answers(wide, inputs), answers(model, inputs)) > 1e-5


def test_a_constant_that_fits_the_old_width_is_found_out() -> None:
    """As long as nothing grows the slice is all there is."""
    stops = Net(lambda s, x: s.h(s.b(s.a(x))[:, :8]), a=conv(3, 8), b=conv(8, 8), h=head(8)).eval()
    with pytest.raises(
        VerificationError, match=r"does not run.*The cause is the widening of group b: .*Widen only the other groups"
    ):
        widened(stops, image(), 1.5)
    wide, _, _ = widened(stops, image(), {"a": 12})
    assert apart(answers(wide, image()), answers(stops, image())) <= 1e-5
    differs = Net(lambda s, x: s.b(s.a(x)) * (s.a.out_channels == 8), a=conv(3, 8), b=conv(8, 4)).eval()
    with pytest.raises(VerificationError, match=r"differs from the given one by 1\.0e\+00 .* group a: "):
        widened(differs, image(), 1.5)


def test_a_network_that_is_random_is_told_so() -> None:
    calls = iter(range(1000))
    model = Net(lambda s, x: s.h(s.a(x)) * torch.from_numpy(np.full(1, next(calls))), a=conv(3, 8), h=head(8)).eval()
    with pytest.raises(VerificationError, match="The model is nondeterministic in eval mode"):
        widened(model, image(), {"a": 12})


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        (1.0, "a factor above 1"),
        (0.5, "a factor above 1"),
        (float("inf"), "a factor above 1"),
        (float("nan"), "a factor above 1"),
        (True, "a factor above 1"),
        (1.01, "No channel group of scope 'all'"),
        ({"a": 7}, "8 channels and cannot be widened to 7"),
        ({"a": 9.5}, "8 channels and cannot be widened to 9.5"),
        ({"c": 9}, "no channel group 'c'"),
        ({"h.2": 9}, "Group h.2 cannot be widened: reaches the model's output"),
    ],
)
def test_widths_that_cannot_be(widths: Any, message: str) -> None:
    graph = trace(CASES["chain"].make(), image())
    with pytest.raises(PlanError, match=message):
        wider(graph, widths, scope="all")


def test_what_is_refused_before_any_work() -> None:
    with pytest.raises(PlanError, match=r"would have [\d,]+ parameters, more than the limit of [\d,]+: choose smaller"):
        widened(CASES["chain"].make(), image(), 1e5)
    with pytest.raises(ConfigError, match="scope"):
        api.widen(CASES["chain"].make(), image(), 1.5, scope="everything")  # type: ignore[arg-type]


def test_scope() -> None:
    graph = trace(CASES["residual"].make(), image())
    assert wider(graph, 2) == {"b": 12}
    assert wider(graph, 2, scope="all") == {"a": 16, "b": 12}
    with pytest.raises(PlanError, match="creates its channels and reads them"):
        wider(trace(CASES["tied_transpose"].make(), image()), {"a": 16})


@pytest.mark.parametrize("name", ["chain", "depthwise_multiplier", "grouped", "group_norm_per_channel", "tied_weights"])
def test_the_record_gives_a_network_of_the_same_shapes(name: str) -> None:
    model, inputs = CASES[name].make(), CASES[name].inputs()
    wide, how, _ = widened(model, inputs, 1.5, scope="all")
    again = resized(CASES[name].make(), json.loads(json.dumps(how.record())))
    again.load_state_dict(wide.state_dict())
    assert torch.equal(answers(again, inputs)[0], answers(wide, inputs)[0])


def test_a_damaged_record() -> None:
    model = CASES["chain"].make()
    record = widened(model, image(), 1.5)[1].record()
    for damaged, message in (
        ({"shapes": {}}, "field 'attributes': field required"),
        ({**record, "shapes": {"z.weight": [3]}}, "z.weight was widened"),
        ({**record, "shapes": {"a.weight": [4, 3, 3, 3]}}, "a.weight was widened"),
        ({**record, "shapes": {"a.weight": [10**9, 10**9, 3, 3]}}, "not enough memory"),
        ({**record, "attributes": [["a", "forward", 3]]}, "damaged or for another network"),
        ({**record, "attributes": [["z", "out_channels", 3]]}, "damaged or for another network"),
        ({**record, "attributes": [["a", "out_channels", "x"]]}, r"field 'attributes\.0\.2.*got 'x'"),
        ({**record, "shapes": None}, "field 'shapes'.*got None"),
    ):
        with pytest.raises(PlanError, match=message):
            resized(model, damaged)


def test_an_artifact_of_a_widened_network_builds_itself(tmp_path: Any) -> None:
    x = torch.randn(2, 3, 32, 32)
    wide = api.widen(api.widen(models.build("zoo:small_cnn"), x, 1.25), x, {"conv1": 60})
    result = api.prune(wide, x, "l1", Budget(macs=0.4))
    assert result.source is not None
    assert [r["widths"].get("conv1") for r in result.source["widen"]] == [50, 60]
    again = models.load(result.save(tmp_path / "a"))
    with torch.no_grad():
        assert torch.equal(again(x), result.model.eval()(x))
