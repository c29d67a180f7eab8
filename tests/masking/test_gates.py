"""Gates: a zero gate is a cut, gradients reach the factors, and nothing is left behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

import secateurs as sc
from secateurs.graph.inputs import call, tensors
from secateurs.masking.gates import Gates
from tests.networks import CASES, Net, conv, half, head
from tests.processes import launch

GATED = [name for name, case in CASES.items() if case.prunable]
# Code that reads a weight for itself: nothing is called that a sample's gates could be set before.
BY_BATCH_ONLY = {"einsum", "raw_parameters", "im2col", "tied_transpose"}
STRUCTURES = ("chain", "residual", "concatenation", "depthwise_separable", "depthwise_multiplier", "grouped", "flatten",
              "tied_weights", "shared_module", "shared_module_two_inputs", "transposed", "transposed_grouped")  # fmt: skip


def run(model: nn.Module, x: Any) -> Tensor:
    """All outputs, side by side: (N, …)."""
    with torch.no_grad():
        return torch.cat([y.double().flatten(1) for y in tensors(call(model, x))], 1)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return float((a - b).abs().max()) <= tolerance * max(1e-3, float(b.abs().max()))


def zero_one(graph: Any, keep: dict[str, list[int]]) -> dict[str, Tensor]:
    factors = {name: torch.zeros(graph[name].size) for name in keep}
    for name, kept in keep.items():
        factors[name][kept] = 1
    return factors


def rows(inputs: Any) -> int:
    return len(tensors(inputs)[0])


def prepared(name: str, seed: int = 0) -> tuple[nn.Module, Any, Any, dict[str, list[int]]]:
    case = CASES[name]
    model, x = case.make(), case.inputs()
    graph = sc.trace(model, x)
    return model, x, graph, half(graph, seed)


def free(graph: Any) -> list[Any]:
    return [g for g in graph.groups if g.prunable]


class Trace:
    """All that a gated model must be again afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self.state = {k: (id(v), v.clone()) for k, v in [*model.named_parameters(), *model.named_buffers()]}
        self.keys = list(model.state_dict())
        self.types = [(n, type(m), sorted(vars(m))) for n, m in model.named_modules()]
        hooks = [(n, k, v) for n, m in model.named_modules() for k, v in vars(m).items() if "_hooks" in k]
        self.hooks = [(n, k, list(v) if isinstance(v, dict) else v) for n, k, v in hooks]

    def assert_gone(self, model: nn.Module) -> None:
        now = Trace(model)
        assert (now.keys, now.types, now.hooks) == (self.keys, self.types, self.hooks)
        assert {k: i for k, (i, _) in now.state.items()} == {k: i for k, (i, _) in self.state.items()}
        assert all(torch.equal(v, self.state[k][1]) for k, (_, v) in now.state.items())


# -- a zero gate is a cut ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GATED)
def test_zero_gate_is_a_cut(name: str) -> None:
    model, x, graph, keep = prepared(name)
    want = run(sc.apply(model, graph.plan(keep)), x)
    whole = run(model, x)
    low = {p.dtype for p in model.parameters()} & {torch.float16, torch.bfloat16}
    before = Trace(model)
    with Gates(model, free(graph)) as gates:
        assert torch.equal(run(model, x), whole)
        gates.set(zero_one(graph, keep))
        assert close(run(model, x), want, 2e-2 if low else 1e-5)
        gates.set(None)
        assert torch.equal(run(model, x), whole)
    before.assert_gone(model)
    assert not close(want, whole, 2e-2 if low else 1e-5)  # else this would show nothing


@pytest.mark.parametrize("name", GATED)
def test_zero_gates_of_samples_are_cuts(name: str) -> None:
    """Each sample is cut in its own way (but where samples are mixed)."""
    model, x, graph, keep = prepared(name)
    n = rows(x)
    other = half(graph, seed=5)
    want = [run(sc.apply(model, graph.plan(choice)), x) for choice in (keep, other)]
    low = {p.dtype for p in model.parameters()} & {torch.float16, torch.bfloat16}
    before = Trace(model)
    with Gates(model, free(graph)) as gates:
        a, b = zero_one(graph, keep), zero_one(graph, keep if name == "temporal_shift" else other)
        gates.set({g: torch.stack([a[g] if i % 2 == 0 else b[g] for i in range(n)]) for g in a})
        if name in BY_BATCH_ONLY:
            with pytest.raises(sc.ConfigError, match="takes no per-sample gates: gate per batch"):
                run(model, x)
        else:
            found = run(model, x)
            for i in range(n):
                which = 0 if name == "temporal_shift" else i % 2
                assert close(found[i], want[which][i], 2e-2 if low else 1e-5)
    before.assert_gone(model)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_soft_gates_scale_what_consumers_see(name: str, per_sample: bool) -> None:
    """Against a copy whose weights were scaled by hand, sample by sample."""
    model, x, graph, _ = prepared(name)
    g = torch.Generator().manual_seed(3)
    n = rows(x)
    factors = {q.name: torch.rand(n, q.size, generator=g) for q in free(graph)}
    want = []
    for i in range(n):
        scaled = copy.deepcopy(model)
        done = set()
        for group in free(graph):
            for slot in group.slots:
                if slot.consumes and (slot.param, slot.axis, group.name) not in done:
                    done.add((slot.param, slot.axis, group.name))
                    w = dict(scaled.named_parameters())[slot.param]
                    for channel, at in enumerate(slot.index):
                        with torch.no_grad():
                            w.index_copy_(
                                slot.axis, torch.tensor(at),
                                w.index_select(slot.axis, torch.tensor(at)) * factors[group.name][i, channel],
                            )  # fmt: skip
        want.append(run(scaled, x)[i])
    with Gates(model, free(graph)) as gates:
        if per_sample:
            gates.set(factors)
            assert close(run(model, x), torch.stack(want))
        else:
            for i in range(n):
                gates.set({k: v[i] for k, v in factors.items()})
                assert close(run(model, x)[i], want[i])


def test_both_kinds_in_one_and_groups_left_out() -> None:
    model, x, graph, _ = prepared("chain")
    a, b = graph["a"], graph["b"]
    fa, fb = torch.rand(2, a.size), torch.rand(b.size)
    with Gates(model, [a, b]) as gates:
        gates.set({"a": fa, "b": fb})
        mixed = run(model, x)
        gates.set({"a": fa, "b": fb.expand(2, -1)})
        assert torch.equal(run(model, x), mixed)
        gates.flat(torch.cat([fa, fb.expand(2, -1)], 1))
        assert torch.equal(run(model, x), mixed)
        gates.set({"a": fa})
        left_out = run(model, x)
    with Gates(model, [a]) as gates:
        gates.set({"a": fa})
        assert torch.equal(run(model, x), left_out)


def test_half_a_concatenation() -> None:
    """Of the channels that one weight reads some have a gate and the others none."""
    model, x, graph, keep = prepared("concatenation")
    only = {"b": keep["b"]}
    want = run(sc.apply(model, graph.plan(only)), x)
    for per_sample in (False, True):
        with Gates(model, [graph["b"]]) as gates:
            f = zero_one(graph, only)["b"]
            gates.set({"b": f.expand(rows(x), -1) if per_sample else f})
            assert close(run(model, x), want)


def test_keyword_inputs() -> None:
    model = Net(lambda s, x: s.h(s.b(input=s.a(x))), a=conv(3, 8), b=conv(8, 6), h=head(6)).eval()
    x = torch.randn(2, 3, 12, 12)
    graph = sc.trace(model, x)
    keep = half(graph)
    want = run(sc.apply(model, graph.plan(keep)), x)
    with Gates(model, free(graph)) as gates:
        gates.set({k: v.expand(2, -1) for k, v in zero_one(graph, keep).items()})
        assert close(run(model, x), want)


def test_parametrized_and_buffered_consumers() -> None:
    """A consumer whose weight is computed from a parameter, and one whose weight is a buffer."""

    class Masked(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w * 0.5

    model = Net(lambda s, x: F.linear(s.b(s.a(x)).mean((2, 3)), s.fixed), a=conv(3, 8), b=conv(8, 6)).eval()
    model.register_buffer("fixed", torch.randn(5, 6))
    nn.utils.parametrize.register_parametrization(model.b, "weight", Masked())
    x = torch.randn(2, 3, 12, 12)
    graph = sc.trace(model, x)
    keep = half(graph)
    assert len(keep) == 2
    want = run(sc.apply(model, graph.plan(keep)), x)
    with Gates(model, free(graph)) as gates:
        gates.set(zero_one(graph, keep))
        assert close(run(model, x), want)


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", ["residual", "concatenation", "depthwise_separable", "grouped", "flatten", "tied_weights",
                                  "shared_module"])  # fmt: skip
def test_gradients_reach_learned_gates(name: str, per_sample: bool) -> None:
    model, x, graph, _ = prepared(name)
    model.double()
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(rows(x), 16, generator=g, dtype=torch.float64)
    n = sum(q.size for q in free(graph))
    flat = (
        torch.rand(*((rows(x), n) if per_sample else (n,)), generator=g, dtype=torch.float64) + 0.5
    ).requires_grad_()
    with Gates(model, free(graph)) as gates:

        def out(flat: Tensor) -> Tensor:
            gates.flat(flat)
            y = tensors(call(model, x.double()))[0]
            return (y.flatten(1) * weight[:, : y[0].numel()]).sum()

        assert torch.autograd.gradcheck(out, (flat,), fast_mode=True)
        out(flat).backward()
        assert (flat.grad.abs() > 1e-12).float().mean() > 0.5  # ReLUs may shut some
        assert all(p.grad is not None for p in model.parameters())


def test_gradcheck_in_full() -> None:
    model, x, graph, _ = prepared("chain")
    model.double()
    with Gates(model, free(graph)) as gates:
        for shape in ((14,), (2, 14)):
            flat = torch.rand(*shape, dtype=torch.float64, requires_grad=True)

            def out(flat: Tensor) -> Tensor:
                gates.flat(flat)
                return model(x.double())

            assert torch.autograd.gradcheck(out, (flat,))


def test_weights_learn_under_gates() -> None:
    """The weights' gradients are the chain rule's: those of the scaled weights, scaled."""
    model, x, graph, _ = prepared("chain")
    f = torch.rand(graph["a"].size) + 0.5
    with Gates(model, [graph["a"]]) as gates:
        gates.set({"a": f})
        model(x).square().sum().backward()
    scaled = copy.deepcopy(model)
    scaled.zero_grad()
    with torch.no_grad():
        scaled.b.weight.mul_(f.view(1, -1, 1, 1))
    scaled(x).square().sum().backward()
    torch.testing.assert_close(model.b.weight.grad, scaled.b.weight.grad * f.view(1, -1, 1, 1))
    torch.testing.assert_close(model.a.weight.grad, scaled.a.weight.grad)


# -- nothing is left behind --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_sample", [False, True])
def test_no_trace_after_an_exception(per_sample: bool) -> None:
    """Whether it is raised by the network, by an input that does not fit, or in the user's code."""
    model, x, graph, _ = prepared("residual")
    before, whole = Trace(model), run(model, x)
    factors = {g.name: torch.rand(*((2,) if per_sample else ()), g.size) for g in free(graph)}

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    handle = model.c.register_forward_hook(broken)
    with Gates(model, free(graph)) as gates:
        gates.set(factors)
        with pytest.raises(ZeroDivisionError):
            model(x)
        assert all(isinstance(p, nn.Parameter) for m in model.modules() for p in m._parameters.values())
        handle.remove()
        with pytest.raises(RuntimeError):
            model(x[:, :2])
        gated = run(model, x)  # and it goes on as before
        assert not close(gated, whole)
    before.assert_gone(model)
    assert torch.equal(run(model, x), whole)
    try:
        with Gates(model, free(graph)) as gates:
            gates.set(factors)
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    before.assert_gone(model)
    assert torch.equal(run(model, x), whole)


def test_attach_and_detach_as_often_as_one_likes() -> None:
    model, x, graph, keep = prepared("chain")
    before = Trace(model)
    gates = Gates(model, free(graph))
    assert gates.attach() is gates.attach()
    gates.set(zero_one(graph, keep))
    gated = run(model, x)
    gates.detach()
    gates.detach()
    before.assert_gone(model)
    gates.attach()
    assert torch.equal(run(model, x), run(CASES["chain"].make(), x))  # what was set is forgotten
    gates.set(zero_one(graph, keep))
    assert torch.equal(run(model, x), gated)
    gates.detach()


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_copy_goes_by_the_same_gates(per_sample: bool) -> None:
    model, x, graph, keep = prepared("residual")
    expand: Callable[[Tensor], Tensor] = (lambda f: f.expand(2, -1)) if per_sample else (lambda f: f)
    whole = run(model, x)
    with Gates(model, free(graph)) as gates:
        learned = {g.name: torch.rand(g.size, requires_grad=True) * 1.0 for g in free(graph)}  # not a leaf
        gates.set({k: expand(v) for k, v in learned.items()})
        twin = copy.deepcopy(model)
        assert torch.equal(run(twin, x), run(model, x))
        gates.set({k: expand(v) for k, v in zero_one(graph, keep).items()})
        assert torch.equal(run(twin, x), run(model, x))
        with torch.no_grad():
            twin.a.weight.zero_()
        assert not torch.equal(run(twin, x), run(model, x))
        twin = copy.deepcopy(model)
    assert torch.equal(run(twin, x), whole)


def test_optimizers_and_state_dicts_do_not_notice() -> None:
    model, x, graph, _ = prepared("chain")
    names = [n for n, _ in model.named_parameters()]
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with Gates(model, free(graph)) as gates:
        gates.set({g.name: torch.full((g.size,), 0.5) for g in free(graph)})
        model(x).square().sum().backward()
        old = model.b.weight.detach().clone()
        opt.step()
        assert not torch.equal(model.b.weight, old)
        assert [n for n, _ in model.named_parameters()] == names
        other = CASES["chain"].make()
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.b.weight, model.b.weight)


# -- precision, compilation, processes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("per_sample", [False, True])
def test_autocast(per_sample: bool) -> None:
    model, x, graph, keep = prepared("residual")
    f = {k: v.expand(2, -1) if per_sample else v for k, v in zero_one(graph, keep).items()}
    flat = {k: v.clone().requires_grad_() for k, v in f.items()}
    want = run(sc.apply(model, graph.plan(keep)), x)
    with Gates(model, free(graph)) as gates, torch.autocast("cpu", torch.bfloat16):
        gates.set(flat)
        y = model(x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
    assert close(y.detach().double(), want, 3e-2)
    assert all(v.grad is not None and v.grad.isfinite().all() for v in flat.values())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile asks it of all tensors it finds
@pytest.mark.parametrize("per_sample", [False, True])
def test_compiled(per_sample: bool) -> None:
    """The compiled network computes with new factors without being compiled anew, and so do the gradients."""
    model, x, graph, _ = prepared("residual")
    n = sum(g.size for g in free(graph))
    shape = (2, n) if per_sample else (n,)
    torch._dynamo.reset()
    with Gates(model, free(graph)) as gates:
        fast = torch.compile(model, backend="aot_eager")
        for seed in range(3):
            flat = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
            found = []
            for net in (model, fast):
                learned = flat.clone().requires_grad_()
                gates.flat(learned)
                y = net(x)
                y.square().sum().backward()
                found.append((y.detach(), learned.grad, model.b.weight.grad.clone()))
                model.zero_grad()
                assert isinstance(model.b.weight, nn.Parameter)
            for a, b in zip(*found, strict=True):
                torch.testing.assert_close(a, b)
    torch._dynamo.reset()


class Bounded(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.tanh(), self.bias)


def test_computed_weights_are_not_compiled() -> None:
    """Scaling what they are computed from would gate something else."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Bounded(8, 4, 3))
    x = torch.randn(1, 3, 8, 8)
    torch._dynamo.reset()
    with Gates(model, free(sc.trace(model, x))) as gates:
        gates.flat(torch.rand(8))
        with pytest.raises(sc.ConfigError, match=r"name of 2\.weight, and may compute .* under torch\.compile"):
            torch.compile(model, backend="eager")(x)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_code_that_asks_for_the_dtype_of_a_weight_computes_nothing_from_it() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            n = (lambda: self.b.weight.shape[0])()
            return self.b(self.a(x.to(self.a.weight.dtype)).relu())[:, :n]

    model, x = Asks(), torch.randn(1, 3, 8, 8)
    torch._dynamo.reset()
    weight = model.b.weight
    with Gates(model, free(sc.trace(model, x))) as gates:
        gates.flat(torch.rand(gates.channels))
        y = torch.compile(model, backend="eager")(x)
        assert model.b.weight is weight  # restored
        torch.testing.assert_close(y, model(x))
    torch._dynamo.reset()


def child(found: str) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    for per_sample in (False, True):
        net = Learned(per_sample)
        x = images()
        n = len(x) // world
        net.within = slice(rank * n, (rank + 1) * n)
        ddp = DistributedDataParallel(net)
        out = ddp(x[net.within])
        (out.square().sum() / len(x) * world).backward()
        assert isinstance(net.model.b.weight, nn.Parameter)
        if rank == 0:
            torch.save({"gate": net.gate.grad, "weight": net.model.b.weight.grad}, f"{found}-{per_sample}")
    dist.barrier()


def images() -> Tensor:
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Learned(nn.Module):
    """A network and its gates, learned together."""

    def __init__(self, per_sample: bool) -> None:
        super().__init__()
        self.model, _, graph, _ = prepared("residual")
        groups = free(graph)
        generator = torch.Generator().manual_seed(1)
        n = sum(g.size for g in groups)
        shape = (4, n) if per_sample else (n,)
        self.gate = nn.Parameter(torch.rand(*shape, generator=generator))
        self.gates = Gates(self.model, groups).attach()
        self.within = slice(None)

    def forward(self, x: Tensor) -> Tensor:
        self.gates.flat(self.gate[self.within] if self.gate.ndim == 2 else self.gate)
        return self.model(x)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_distributed_data_parallel(tmp_path: Path, world: int) -> None:
    """On so many processes a learned gate gets the gradient that it gets on one."""
    launch(f"{__name__}:child", str(tmp_path / "found"), world=world)
    for per_sample in (False, True):
        net = Learned(per_sample)
        (net(images()).square().sum() / 4).backward()
        found = torch.load(tmp_path / f"found-{per_sample}", weights_only=True)
        torch.testing.assert_close(found["gate"], net.gate.grad)
        torch.testing.assert_close(found["weight"], net.model.b.weight.grad)


# -- folding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GATED)
def test_folded_is_gated(name: str) -> None:
    model, x, graph, keep = prepared(name)
    g = torch.Generator().manual_seed(2)
    factors = {q.name: torch.rand(q.size, generator=g) + 0.1 for q in free(graph)}
    for group, f in zero_one(graph, keep).items():
        factors[group] *= f
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters()):
        pytest.skip("rounding of half precision differs")
    with Gates(model, free(graph)) as gates:
        gates.set(factors)
        gated = run(model, x)
        gates.fold_(factors)
        assert close(run(model, x), gated)
    assert close(run(sc.apply(model, graph.plan(keep)), x), gated)
    assert sc.verify(model, graph.plan(keep), x) <= 1e-5


# -- errors ------------------------------------------------------------------------------------------------------------


def test_factors_that_do_not_fit() -> None:
    model, x, graph, _ = prepared("chain")
    with Gates(model, [graph["a"]]) as gates:
        with pytest.raises(sc.ConfigError, match="b is not among the gated groups"):
            gates.set({"b": torch.ones(6)})
        with pytest.raises(sc.ConfigError, match=r"Gates of a must have shape \(8,\) or \(N, 8\), not \(7,\)"):
            gates.set({"a": torch.ones(7)})
        with pytest.raises(sc.ConfigError, match=r"not \(1, 2, 8\)"):
            gates.set({"a": torch.ones(1, 2, 8)})
        with pytest.raises(sc.ConfigError, match=r"all groups must have shape \(8,\) or \(N, 8\), not \(9,\)"):
            gates.flat(torch.ones(9))
        with pytest.raises(sc.ConfigError, match="Only per-batch gates can be folded"):
            gates.fold_({"a": torch.ones(2, 8)})
        gates.set({"a": torch.ones(3, 8)})
        with pytest.raises(sc.ConfigError, match="Gates of 3 samples do not match inputs of shape"):
            model(x)
        assert not gates._swaps
    with Gates(model, free(graph)) as gates, pytest.raises(sc.ConfigError, match=r"disagree.*\[2, 3\]"):
        gates.set({"a": torch.ones(2, 8), "b": torch.ones(3, 6)})
