"""Whatever a forward does to the model, to what it holds, to its inputs and to the random state: all is as before, object for
object, after a trace, a count, a verification or a prune, and when it raises half-way."""

from __future__ import annotations

import functools
import itertools
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import secateurs as sc
from secateurs.graph.copies import copied
from secateurs.graph.runs import Runs
from tests.networks import fraction, image


class Store:
    """An object with slots and one without, that a module holds."""

    __slots__ = ("cache", "calls")

    def __init__(self) -> None:
        self.calls, self.cache = 0, {"grid": torch.zeros(1)}


class Plain:
    total = 0

    def __init__(self) -> None:
        self.seen: list[Any] = []


SHARED: dict[str, Any] = {}
COUNT = 0


@functools.lru_cache
def grid(h: int, w: int) -> Tensor:
    return torch.ones(h, w)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)
        self.touch: list[Callable[[Base, Tensor], None]] = []
        self.grids, self.named, self.kept = [torch.zeros(1)], {"x": [torch.zeros(2)]}, {1, 2}
        self.queue, self.order = deque([1, 2], maxlen=2), OrderedDict(a=torch.zeros(1))
        self.store, self.plain, self.table = Store(), Plain(), np.zeros(3)
        self.loose, self.pair = torch.zeros(4), (torch.zeros(2), [torch.zeros(1)])
        self.generator, self.numbers = torch.Generator().manual_seed(3), np.random.default_rng(5)
        self.ticks, self.hidden = itertools.count(), [nn.BatchNorm1d(2)]
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("passing", torch.zeros(3), persistent=False)

    calls = 0
    log: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        for touch in self.touch:
            touch(self, y)
        return self.out(self.b(y).relu())


def _calls(m: Any, y: Tensor) -> None:
    global COUNT
    COUNT += 1
    type(m).calls += 1
    type(m).log.append(y)
    SHARED["last"] = y
    Plain.total += 1


def _hooks(m: Any, y: Tensor) -> None:
    m.a.register_forward_hook(lambda *_: None)
    m.register_buffer("late", torch.zeros(1))
    m.extra = nn.Conv2d(3, 3, 1)
    del m.order["a"]


TOUCHES: dict[str, Callable[[Any, Tensor], Any]] = {
    "list": lambda m, y: m.grids.__setitem__(0, y.detach()),
    "nested": lambda m, y: m.named["x"].append(y),
    "set": lambda m, y: m.kept.add(float(y.shape[0]) + 7),
    "deque": lambda m, y: m.queue.append(y),
    "slots": lambda m, y: (setattr(m.store, "calls", m.store.calls + 1), m.store.cache.update(grid=y)),
    "object": lambda m, y: (m.plain.seen.append(y), setattr(m.plain, "more", y)),
    "array": lambda m, y: m.table.__iadd__(1),
    "attribute": lambda m, y: m.loose.add_(1),
    "in a tuple": lambda m, y: (m.pair[0].add_(1), m.pair[1].append(y)),
    "generators": lambda m, y: (torch.rand(1, generator=m.generator), m.numbers.random(), next(m.ticks)),
    "a module in a list": lambda m, y: m.hidden[0](torch.ones(3, 2)),
    "buffers": lambda m, y: (
        m.steps.add_(1),
        m.passing.copy_(torch.ones(3, device=y.device)),
        m.b.running_mean.zero_(),
    ),
    "weights": lambda m, y: m.out.weight.data.mul_(0.5),
    "data": lambda m, y: setattr(m.out.weight, "data", m.out.weight.data * 2),
    "class and globals": _calls,
    "modules": _hooks,
    "cached function": lambda m, y: grid(int(y.shape[2]), int(y.shape[3])),
    "modes": lambda m, y: m.b.train(),
    "random": lambda m, y: (torch.rand(2), np.random.rand(), random.random()),
    "values": lambda m, y: float(y.abs().amax()),  # there are none on meta tensors
}


def network(*touches: str, fails: bool = False, train: bool = False) -> Base:
    torch.manual_seed(0)
    model = Base().train(train)
    model.touch = [TOUCHES[name] for name in touches]
    if fails:

        def fail(m: Any, y: Tensor) -> None:
            raise ValueError("half-way")

        model.touch.append(fail)
    return model


def picture(value: Any, seen: dict[int, Any] | None = None) -> Any:
    """A value as comparable data: which objects it consists of, and what is in them."""
    seen = {} if seen is None else seen
    if id(value) in seen or (callable(value) and not isinstance(value, nn.Module)):
        return id(value)
    seen[id(value)] = value
    if isinstance(value, Tensor):
        extra = [(k, picture(v, seen)) for k, v in value.__dict__.items()]
        return id(value), value.data_ptr(), tuple(value.shape), value.detach().numpy().tobytes(), extra
    if isinstance(value, np.ndarray):
        return id(value), value.tobytes()
    if isinstance(value, torch.Generator):
        return id(value), value.get_state().numpy().tobytes()
    if isinstance(value, np.random.Generator):
        return id(value), repr(value.bit_generator.state)
    if isinstance(value, dict):
        return id(value), [(k, picture(v, seen)) for k, v in value.items()]
    if isinstance(value, list | tuple | deque | set):
        return id(value), [picture(v, seen) for v in value]
    if isinstance(value, nn.Module | Plain):
        return id(value), picture(vars(value), seen)
    if isinstance(value, Store):
        return id(value), value.calls, picture(value.cache, seen)
    return repr(value) if isinstance(value, int | float | str | itertools.count) else id(value)


def everything(model: nn.Module, inputs: Any) -> Any:
    return (
        picture(model), picture(inputs), picture(SHARED), COUNT, Base.calls, picture(Base.log), Plain.total,
        torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), random.getstate(), torch.is_grad_enabled(),
        hasattr(nn.Module, "training"),
    )  # fmt: skip


def cut(model: nn.Module, x: Any) -> None:
    graph = sc.trace(model, x)
    sc.verify(model, graph.plan(fraction(graph, 0.5)), x)


ACTIONS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "trace": sc.trace,
    "count": sc.count,
    "verify": cut,
    "prune": lambda m, x: sc.prune(m, x, "l1", sc.Budget(macs=0.6)),
}


def unchanged(model: nn.Module, inputs: Any, act: Callable[[nn.Module, Any], Any], fails: bool = False) -> None:
    before = everything(model, inputs)
    if fails:
        with pytest.raises((sc.SecateursError, ValueError)):
            act(model, inputs)
    else:
        act(model, inputs)
    assert everything(model, inputs) == before


@pytest.mark.parametrize("touch", TOUCHES)
def test_a_trace_leaves_everything_as_it_was(touch: str) -> None:
    unchanged(network(touch), image(), sc.trace)
    unchanged(network(touch, "values"), image(), sc.trace)  # on real tensors, after a run on meta tensors


@pytest.mark.parametrize("touch", TOUCHES)
def test_a_count_leaves_everything_as_it_was(touch: str) -> None:
    unchanged(network(touch), image(), sc.count)
    unchanged(network(touch, fails=True), image(), sc.count, fails=True)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    touches=st.lists(st.sampled_from([t for t in TOUCHES if t != "modules"]), max_size=6, unique=True),
    action=st.sampled_from(list(ACTIONS)),
    fails=st.booleans(),
    train=st.booleans(),
)
def test_whatever_it_does(touches: list[str], action: str, fails: bool, train: bool) -> None:
    unchanged(network(*touches, fails=fails, train=train), image(), ACTIONS[action], fails)


def test_what_hooks_collect() -> None:
    features: list[Tensor] = []
    model = network()
    model.a.register_forward_hook(lambda m, args, out: features.append(out))
    for act in ACTIONS.values():
        act(model, image())
    assert not features


class Edits(nn.Module):
    """Writes to its inputs, and takes things out of them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, batch: Any, noise: Tensor | None = None) -> Tensor:
        x = batch.pop("image")
        assert float(x.sum()) < 1e9
        batch["options"]["seen"] = True
        x.mul_(2)
        return self.net(x)


class Batch:
    def __init__(self) -> None:
        self.image = image()


class Takes(Base):
    def forward(self, batch: Any) -> Tensor:
        batch.image = batch.image.mul_(2)
        return super().forward(batch.image)


def test_the_inputs() -> None:
    unchanged(Edits(), ({"image": image(), "options": {}},), sc.trace)
    unchanged(Edits(), ({"image": image(), "options": {}},), sc.count)
    for act in (sc.trace, sc.count):
        unchanged(Takes(), batch := Batch(), act)
        assert torch.equal(batch.image, image())


class Recurs(nn.Module):
    """A recurrent layer holds its weights in a list, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rnn, self.out = nn.Conv2d(3, 4, 3), nn.GRU(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.conv(x).mean(3).transpose(1, 2))[0])


def test_weights_in_lists_are_replaced_there_too() -> None:
    model = Recurs().eval()
    unchanged(model, image(), sc.trace)
    assert all(a is b for a, b in zip(model.rnn._flat_weights, model.rnn.parameters(), strict=True))


def test_a_stale_cache_is_as_good_as_none() -> None:
    """What a run stores is gone before the next, which has other channels."""

    class Cached(Base):
        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            if "bias" not in SHARED:
                SHARED["bias"] = self.b.weight[:, None, None]
            return self.out(torch.cat([y * SHARED["bias"], y[:, :0]], 1))

    model = Cached().eval()
    graph = sc.trace(model, image())
    assert graph["a"].prunable
    assert [g.reason for g in sc.trace(model, image()).groups] == [g.reason for g in graph.groups]


class Biased(nn.Module):
    """Adds twice a bias, which subclasses cache."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3)
        self.bias, self.twice = nn.Parameter(torch.rand(8, 1, 1)), torch.zeros(0)
        self.cache: dict[Any, Tensor] = {}

    def added(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)) + self.added(x))


def traced_after_a_run(model: nn.Module) -> sc.ChannelGraph:
    with torch.no_grad():
        model.eval()(image())
    return sc.trace(model, image())


@pytest.mark.parametrize("key", [lambda x: x.device, lambda x: (str(x.device), x.dtype), lambda x: len(x)])
def test_what_the_code_has_cached_is_found_whatever_it_is_cached_by(key: Any) -> None:
    class Cached(Biased):
        def added(self, x: Tensor) -> Tensor:
            if key(x) not in self.cache:
                self.cache[key(x)] = self.bias * 2
            return self.cache[key(x)]

    model = Cached()
    graph = traced_after_a_run(model)
    assert graph["a"].prunable
    assert not graph["b"].prunable
    plan = graph.plan({"a": [0, 1]})
    assert sc.verify(model, plan, image()) < 1e-5


def test_a_cached_tensor_that_is_replaced_on_another_device() -> None:
    class Cached(Biased):
        def added(self, x: Tensor) -> Tensor:
            if len(self.twice) == 0 or self.twice.device != x.device:
                self.twice = self.bias * 2
            return self.twice

    graph = traced_after_a_run(Cached())
    assert graph["a"].prunable
    assert not graph["b"].prunable


def test_tensors_that_the_code_only_reads_do_not_need_real_runs() -> None:
    class Weighted(Base):
        weights = torch.ones(10)

        def forward(self, x: Tensor) -> Tensor:
            assert len(self.weights) == 10
            return super().forward(x)

    runs = Runs(Weighted().eval(), image())
    runs.follow()
    assert runs.state.has_constants
    assert runs.meta


@functools.lru_cache
def split(shape: tuple[int, ...]) -> tuple[int, ...]:
    n, c, h, w = shape
    return n, 2, c // 2, h // 4, 4, w // 4, 4


@functools.lru_cache
def merged(shape: tuple[int, ...]) -> tuple[int, ...]:
    n, y, x, heads, h, w, c = shape
    return n * y * x, heads, h * w, c


class WindowAttention(nn.Module):
    """Attention in windows of 4 × 4 pixels, whose sizes are cached, as einops does it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.qkv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 24, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:  # (1, 3, 8, 8) → (1, 2, 8, 8)
        q, k, v = map(self.windows, self.qkv(self.a(x)).chunk(3, 1))
        z = (q @ k.transpose(-1, -2)).softmax(-1) @ v  # (windows, heads, pixels, channels)
        z = z.reshape(1, 2, 2, 2, 4, 4, -1).permute(0, 3, 6, 1, 4, 2, 5)
        return self.out(z.reshape(1, -1, 8, 8))

    def windows(self, x: Tensor) -> Tensor:
        x = x.reshape(split(tuple(x.shape))).permute(0, 3, 5, 1, 4, 6, 2)
        return x.reshape(merged(tuple(x.shape)))


def test_what_functions_have_cached_before_does_not_change_a_trace() -> None:
    """A cached function returns plain numbers to a model that has run: which channels they count is not known then."""
    model, x = WindowAttention().eval(), image(1, 8)
    split.cache_clear()
    merged.cache_clear()
    found = []
    for _ in range(3):
        found.append([(g.name, g.size, g.prunable, str(g.reason)) for g in sc.trace(model, x).groups])
        model(x)
    assert found[0] == found[1] == found[2]
    assert merged.cache_info().currsize == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script_module_is_refused_by_name() -> None:
    body = torch.jit.script(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)))
    model = nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 3), body=body, out=nn.Conv2d(4, 2, 1))).eval()
    before = {n: (id(p), p.device) for n, p in model.named_parameters()}
    for act in (sc.trace, ACTIONS["prune"]):
        with pytest.raises(sc.SecateursError, match="body is a TorchScript module"):
            act(model, image())
    hidden = network()
    hidden.parts = [body]
    with pytest.raises(sc.SecateursError, match="TorchScript module"):
        sc.trace(hidden, image())
    assert {n: (id(p), p.device) for n, p in model.named_parameters()} == before
    model(image())


class Spectral(nn.Module):
    """Its training run iterates on vectors that are kept in buffers, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = spectral_norm(nn.Conv2d(3, 6, 3)), nn.Conv2d(6, 2, 1)
        self.aux, self.norm, self.c = nn.Conv2d(6, 2, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3)

    def forward(self, x: Tensor) -> Any:
        y = self.c(self.norm(self.a(x)).relu())
        if self.training:
            y = nn.functional.dropout(y, 0.5)
            return self.b(y), self.aux(y)
        return self.b(y)


@pytest.mark.parametrize("train", [False, True])
def test_the_training_run_leaves_everything_as_it_was(train: bool) -> None:
    torch.manual_seed(0)
    model = Spectral().train(train)
    for act in ACTIONS.values():
        unchanged(model, image(), act)


def test_tensors_that_were_computed_in_a_forward_can_be_copied() -> None:
    class Caches(Base):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            self.named["last"] = {"y": (y, [y])}
            return y

    model = Caches().eval()
    model(image())  # leaves tensors with a history
    result = sc.prune(model, image(), "l1", sc.Budget(macs=0.6))
    assert result.error <= 1e-5


def test_copies_of_objects_that_hold_what_a_forward_computed() -> None:
    """Whole copies: an object in two places is one in the copy, with all that it has."""
    model = nn.Conv2d(3, 4, 1)
    box = SimpleNamespace(cache=[model.weight * 2], name="box")
    model.box, model.boxes = box, [box]
    twin: Any = copied(model)
    assert twin.box is not box
    assert twin.boxes[0] is twin.box
    assert twin.box.name == "box"
    assert torch.equal(twin.box.cache[0], box.cache[0])
    assert twin.box.cache[0].is_leaf
