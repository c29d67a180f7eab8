"""The original runs once and leaves its outputs at sampled positions; then the cut network runs, all images in step, and each
layer is solved just before it computes."""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs.errors import ConfigError
from secateurs.graph.channels import named_tensors
from secateurs.graph.inputs import call, tensors
from secateurs.recovery.calibrate import Pooled
from secateurs.recovery.reconstruct.layers import sampled
from secateurs.recovery.reconstruct.lockstep import Coroutine
from secateurs.recovery.reconstruct.solver import Problem, Solution
from secateurs.recovery.reconstruct.structure import Step, Structure, storage
from secateurs.recovery.reconstruct.watch import Chunk, Key, Layer, Watch
from secateurs.seeds import mix

SMALL = 1e-3  # a batch norm's factor, relative to its largest, that is too small to divide by
LARGE = 1 << 16  # bytes of an activation from which it is freed early
_VARIES = (
    "Reconstruct needs a network that runs the same layers for all images, and which layers this one runs depends on the "
    "images. Use sc.Mimic or sc.Recover."
)


@dataclass(frozen=True)
class Sampler:
    """Positions of a layer's output, the same in both networks and in every run."""

    positions: int  # of each image
    seed: int

    def at(self, weight: str, chunk: int, images: int, size: Sequence[int], device: torch.device) -> Tensor:
        """(images, P), positions in the flattened `size`."""
        total = math.prod(size)
        if total <= self.positions:
            return torch.arange(total, device=device).expand(images, -1)
        generator = torch.Generator().manual_seed(mix(self.seed, weight, chunk))
        return torch.rand(images, total, generator=generator).topk(self.positions).indices.to(device)


@dataclass
class Targets:
    """The target outputs of a layer of the cut network at the sampled positions."""

    step: Step
    kept: Tensor | None  # the channels of its output that are left; None for all
    scale: Tensor | None = None  # (O,), what the batch norm after it multiplies by; None if there is none …
    shift: Tensor | None = None  # … and then adds
    affine: bool = False  # the norm has a weight and a bias
    sizes: dict[int, tuple[int, ...]] = field(default_factory=dict)  # of its output, by chunk
    values: dict[int, Tensor] = field(default_factory=dict)  # by chunk: (images · P, O)

    def size(self, chunk: int) -> tuple[int, ...]:
        if chunk not in self.sizes:
            raise ConfigError(_VARIES)
        return self.sizes[chunk]

    def left(self, y: Tensor) -> Tensor:
        return y if self.kept is None else y[:, self.kept]

    def before_norm(self, other: Tensor) -> Tensor:
        """A summand of the norm's output, as one of its input: (n, O)."""
        if self.scale is None:
            return other
        known = self.scale.abs() > SMALL * self.scale.abs().max()
        return torch.where(known, other / self.scale, 0)


class Original(Watch):
    """Runs the original and keeps the targets."""

    def __init__(self, model: nn.Module, targets: Sequence[Targets], sampler: Sampler) -> None:
        super().__init__(model, {name: name for name in named_tensors(model)})
        self._model, self._sampler = model, sampler
        self._layers = {t.step.key: t for t in targets}
        self._others = by_other(targets)
        self._chunk = 0

    def run(self, index: int, chunk: Chunk) -> None:
        self._chunk, self._summand = index, dict[Key, Tensor]()
        self.start(chunk.images)
        with torch.no_grad(), self:
            call(self._model, chunk.inputs)

    def op(self, key: Key, func: Any, args: Any, kwargs: Any) -> Any:
        targets = self._layers.get(key)
        layer = None if targets is None else self.layer(func, args)
        out = func(*args, **kwargs)
        if targets is not None and layer is not None:
            y = targets.step.laid(out, self.images)
            targets.sizes[self._chunk] = tuple(y.shape[2:])
            wanted = self._sampled(targets, y)
            if (other := self._summand.pop(key, None)) is not None:
                wanted += targets.before_norm(other)
            targets.values[self._chunk] = wanted
        for t in self._others.get(key, ()):
            self._summand[t.step.key] = self._sampled(t, t.step.laid(out, self.images))
        return out

    def _sampled(self, t: Targets, y: Tensor) -> Tensor:
        at = self._sampler.at(t.step.weight, self._chunk, len(y), y.shape[2:], y.device)
        return t.left(sampled(y, at))


class Point(NamedTuple):
    """A barrier: all chunks arrive before any of them continues."""

    name: str
    finish: Callable[[], None]  # what is then done


class Cut(Watch):
    """Runs the cut network on one chunk of the images."""

    def __init__(self, walk: Walk, chunk: int, images: int, coroutine: Coroutine) -> None:
        super().__init__(walk.model, walk.names)
        self._walk, self._chunk, self._coroutine = walk, chunk, coroutine
        self._summand: dict[Key, Tensor] = {}
        self._freed: list[tuple[weakref.ref[Tensor], int]] = []
        self.start(images)

    def op(self, key: Key, func: Any, args: Any, kwargs: Any) -> Any:
        walk, pause = self._walk, self._coroutine.pause
        if any(x.numel() and (data := storage(x)) is not None and not data.nbytes() for x in tensors((args, kwargs))):
            raise ConfigError(_VARIES)  # an op reads what nothing read in the first run
        if (norm := self.norm(args)) is not None and norm in walk.stale:
            pause(walk.count(norm, args[0]))
        step = walk.steps.get(key)
        layer = None if step is None else self.layer(func, args)
        targets = None if layer is None else walk.targets.get(key)
        if layer is not None and targets is not None:
            pause(walk.collect(targets, layer, self._chunk, self._summand.pop(key, None)))
        out = func(*args, **kwargs)
        if targets is not None and tuple(targets.step.laid(out, self.images).shape[2:]) != targets.size(self._chunk):
            raise ConfigError(_VARIES)  # as many rows as boxes were found, for example
        if layer is not None and _larger(out, layer) and (norm := walk.after(walk.steps[key])) is not None:
            # The norm's statistics are counted here: while the other chunks arrive, the layer's input is held, not its
            # output, which is larger.
            point = walk.count(norm, out)
            del out
            pause(point)
            out = func(*args, **kwargs)
        for t in walk.others.get(key, ()):
            y = t.step.laid(out, self.images)
            at = walk.sampler.at(t.step.weight, self._chunk, self.images, t.size(self._chunk), y.device)
            self._summand[t.step.key] = sampled(y, at)
        if key in walk.spent:
            self._free(walk.spent[key], tensors((args, kwargs)), tensors(out))
        return out

    def _free(self, spent: Sequence[int], given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        """Free activations that nothing will read: the callers' variables would hold them until the end of a stage."""
        shared = {data._cdata for x in made if (data := storage(x)) is not None}
        for i in spent:
            data = storage(given[i]) if i < len(given) else None
            if data is not None and data._cdata not in shared and data.nbytes() >= LARGE:
                self._freed.append((weakref.ref(given[i]), data.nbytes()))
                data.resize_(0)

    def end(self) -> None:
        """Give memory back to what is still there after the run, for example in a hook of the user's: its values are lost."""
        for made, size in self._freed:
            if (x := made()) is not None:
                x.untyped_storage().resize_(size)
                x.zero_()


class Walk:
    """Runs the cut network, all chunks in step. Its weights and its norms' statistics change in place, in the order in which
    they are used: each layer reads what the layers before it, already solved, give it.

    targets: of the layers to solve.
    """

    def __init__(
        self, model: nn.Module, names: Mapping[str, str], structure: Structure, targets: Sequence[Targets],
        sampler: Sampler, ridge: float,
    ) -> None:  # fmt: skip
        self.model, self.names, self.sampler, self._ridge = model, names, sampler, ridge
        self.steps, self._norms = {step.key: step for step in structure.steps}, structure.norms
        self.spent = structure.spent
        self.targets = {t.step.key: t for t in targets}
        self.others = by_other(targets)
        self.solutions: dict[str, Solution] = {}  # by weight
        self.solved: Callable[[int, str], None] = lambda done, name: None  # called after each
        self._wanted: dict[_BatchNorm, tuple[Tensor, Tensor]] = {}  # after solved layers: (factor, constant), (O,) each
        self.stale: set[_BatchNorm] = set()  # norms whose statistics are of the inputs that they had in the original
        self._problem: Problem | None = None  # of the layer that the chunks are arriving at …
        self._pooled: Pooled | None = None  # … or the statistics of the norm
        self._images = 0

    def run(self, chunks: Sequence[Chunk]) -> dict[str, Solution]:
        """The solutions by weight. chunks: those that the targets are of."""
        self._images = sum(chunk.images for chunk in chunks)
        runs = [Coroutine(partial(self._run, i, chunk)) for i, chunk in enumerate(chunks)]
        try:
            while True:
                points = [run.resume() for run in runs]
                if all(point is None for point in points):
                    return self.solutions
                if len({point and point.name for point in points}) > 1:
                    raise ConfigError(_VARIES)
                points[0].finish()
        finally:
            for run in runs:
                run.close()

    def _run(self, index: int, chunk: Chunk, coroutine: Coroutine) -> None:
        run = Cut(self, index, chunk.images, coroutine)
        try:
            with torch.no_grad(), run:
                call(self.model, chunk.inputs)
        finally:
            run.end()

    # -- layers --------------------------------------------------------------------------------------------------------

    def collect(self, t: Targets, layer: Layer, chunk: int, other: Tensor | None) -> Point:
        """A chunk has reached a layer that is to be solved."""
        if self._problem is None:
            samples = self._images * min(self.sampler.positions, max(map(math.prod, t.sizes.values())))
            floats = t.affine and self._norm(t.step) is not None
            self._problem = Problem(layer.geometry, layer.weight, layer.bias, layer.kept, samples, floats)
        images = len(layer.x)
        wanted = t.values.pop(chunk, None)
        if wanted is None:
            raise ConfigError(_VARIES)
        size = t.size(chunk)
        if other is not None:
            wanted = wanted - t.before_norm(other)
        at = self.sampler.at(t.step.weight, chunk, images, size, layer.x.device)
        self._problem.add(layer.geometry.read(layer.x, at, size), wanted, images)
        return Point(t.step.weight, partial(self._solve, t, layer.weight, layer.bias))

    def _solve(self, t: Targets, weight: Tensor, bias: Tensor | None) -> None:
        name = t.step.weight
        assert self._problem is not None
        problem, self._problem = self._problem, None
        found = self.solutions[name] = problem.solve(self._ridge)
        if found.weight is not None:
            weight.copy_(found.weight)
            norm = self._norm(t.step)
            if norm is not None and t.affine:
                assert t.scale is not None
                assert t.shift is not None
                added = 0 if bias is not None or found.constant is None else t.scale * found.constant
                self._wanted[norm] = t.scale, t.shift + added
            if bias is not None and found.constant is not None:
                bias.copy_(found.constant)
        self.solved(len(self.solutions), name)
        if len(self.solutions) == 1:
            self.stale = set(self._norms.values())

    # -- norms ---------------------------------------------------------------------------------------------------------

    def after(self, step: Step) -> _BatchNorm | None:
        """The batch norm that a layer's output goes to, if its statistics are not those of this output."""
        norm = self._norm(step)
        return norm if norm in self.stale else None

    def _norm(self, step: Step) -> _BatchNorm | None:
        return None if step.norm is None else self._norms.get(step.norm)

    def count(self, norm: _BatchNorm, x: Tensor) -> Point:
        """A chunk has reached a norm: x (N, C, *)."""
        # Accumulated in float64 on a CPU, without a copy of x in float64.
        variance, mean = torch.var_mean(x, [axis for axis in range(x.ndim) if axis != 1], correction=0)
        n = x.numel() // x.shape[1]
        own = Pooled(n, mean.cpu().double(), variance.cpu().double() * n)
        if self._pooled is None:
            self._pooled = own
        else:
            self._pooled.add(own)
        return Point(f"statistics {id(norm)}", partial(self._settle, norm))

    def _settle(self, norm: _BatchNorm) -> None:
        assert self._pooled is not None
        found, self._pooled = self._pooled, None
        self.stale.discard(norm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if found.n < 2 or not bool(found.mean.isfinite().all() and found.squares.isfinite().all()):
            return
        norm.running_mean.copy_(found.mean)
        norm.running_var.copy_(found.squares / (found.n - 1))
        if (wanted := self._wanted.get(norm)) is not None:
            factor, constant = wanted
            norm.weight.copy_(factor * (norm.running_var + norm.eps).sqrt())
            norm.bias.copy_(constant + factor * norm.running_mean)


def _larger(out: Tensor, layer: Layer) -> bool:
    return not layer.geometry.linear and out.numel() > layer.x.numel()


def by_other(targets: Sequence[Targets]) -> dict[Key, list[Targets]]:
    """The layers whose summand an op makes, by that op."""
    found: dict[Key, list[Targets]] = defaultdict(list)
    for t in targets:
        if t.step.other is not None:
            found[t.step.other].append(t)
    return found
