"""Calibration: the running statistics of norms re-estimated on training images, without labels.

A batch norm that reads cut channels, or follows a layer that does, still normalizes by the statistics of the uncut network.
The network runs over the images once, in eval mode, each norm with the statistics of the batch at hand: so every norm sees
inputs as they are when all norms before it are calibrated. The statistics of all batches are
pooled exactly (Chan et al., 1979), in float64; there is no moving average. See docs/training.md for what was measured.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from secateurs.devices import full_precision
from secateurs.errors import DataError
from secateurs.graph.channels import named_tensors
from secateurs.graph.copies import copied
from secateurs.graph.inputs import tensors
from secateurs.graph.modes import evaluating
from secateurs.plans import Plan
from secateurs.recovery.carried import Places, consumers, cuts_off, on_average, provably, put_, twin
from secateurs.recovery.distil import divergence, unlike_logits
from secateurs.report import count, listing
from secateurs.seeds import preserve_rng_state
from secateurs.surgery import apply
from secateurs.training.batches import Batch
from secateurs.training.losses import heads
from secateurs.training.metrics import runs
from secateurs.training.objective import Objective
from secateurs.training.processes import gathered
from secateurs.training.run import restart_averages_

IMAGES = 1024  # examples that statistics are estimated on


@dataclass
class Pooled:
    """Count, mean and sum of squared deviations per channel, in float64."""

    n: float
    mean: Tensor  # (C,)
    squares: Tensor  # (C,)

    def add(self, other: Pooled) -> None:
        """Merge with the statistics of other samples: exactly those of all samples together."""
        total = self.n + other.n
        if total:
            apart = other.mean - self.mean
            self.mean = self.mean + apart * (other.n / total)
            self.squares = self.squares + other.squares + apart.square() * (self.n * other.n / total)
        self.n = total

    @property
    def variance(self) -> Tensor:
        """(C,), not finite of a single sample."""
        return self.squares / (self.n - 1)


@dataclass
class Averaged:
    """The mean over images of each image's own mean and variance per channel, in float64: what an instance norm keeps."""

    n: int  # images
    mean: Tensor  # (C,)
    variance: Tensor  # (C,)

    def add(self, other: Averaged) -> None:
        """Merge with the statistics of other images."""
        total = self.n + other.n
        self.mean = self.mean + (other.mean - self.mean) * (other.n / total)
        self.variance = self.variance + (other.variance - self.variance) * (other.n / total)
        self.n = total


Norm = _BatchNorm | _InstanceNorm
Statistics = Pooled | Averaged


@dataclass(frozen=True)
class Calibration:
    """What was calibrated after a cut."""

    images: int  # that it was estimated on
    norms: int  # re-estimated
    layers: tuple[str, ...]  # whose lost constants were compensated
    left: tuple[str, ...]  # that have neither a bias nor a batch norm to hold theirs

    def __bool__(self) -> bool:
        return bool(self.norms or self.layers or self.left)

    def record(self) -> dict[str, Any]:
        """The entry of the history."""
        return {"event": "calibrated", **asdict(self), "layers": list(self.layers), "left": list(self.left)}

    def __str__(self) -> str:
        parts = [f"statistics of {count(self.norms, 'norm')}"] * bool(self.norms)
        if self.layers:
            parts.append(f"constants that cut channels carried put into {count(len(self.layers), 'layer')}")
        if self.left:
            parts.append(f"no bias or norm to hold those of {count(len(self.left), 'layer')} ({listing(self.left)})")
        on = f" on {count(self.images, 'image')}" if self.images else ""
        return f"calibrated{on}: {', '.join(parts)}"


def after_cut_(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    example_inputs: Any,
    batches: Callable[[], Iterable[Batch]] | None,
    *,
    initialized: bool = False,
    pooled: bool = False,
    objective: Objective | None = None,
) -> Calibration:
    """Calibrate a network after its cut, in place.

    What cut channels carried on average goes into the biases of their consumers, and batch-norm statistics are re-estimated;
    without batches, only what channels carry that does not depend on the input. With batches, the biases are kept only if
    they bring the class probabilities (or other outputs) closer to those of the uncut network.

    model: the uncut network. batches: a fresh pass over the images. pooled: see `calibrate_`.
    objective: how the network meets a batch; with a loss or a step of the user's own, outputs are not taken for logits.
    initialized: the method may have changed the weights after the cut. Where it did, what consumers lose is what they lose with
        the new weights, and without batches they are left alone.
    """
    objective = objective or Objective()
    if batches is None and not cuts_off(model):  # no channel is constant
        return Calibration(0, 0, (), ())
    changed = initialized and not _as_cut(model, plan, small)
    unknown = batches is None or plan.stripes or named_tensors(small).keys() != named_tensors(model).keys()
    names = [] if changed and unknown else consumers(model, plan)
    places = Places.of(small, names, example_inputs)
    # Norms compensate for what the layers before them lose.
    due = [name for name in places.biased if name not in places.followed]
    masked = twin(model, plan, small if changed else None) if names and (batches is None or due) else model
    if batches is None:
        means = provably(model, masked, names, example_inputs)
    else:
        means = on_average(model, masked, due, batches(), objective, pooled=pooled) if due else {}
    bare = copied(small) if means and batches is not None else small  # to compare with, once there is something in it
    layers = put_(model, masked, small, plan, means, places, example_inputs)
    if batches is None:
        return Calibration(0, 0, tuple(layers), tuple(name for name in means if name not in layers))
    examples, norms = calibrate_(small, batches(), objective, pooled=pooled)
    if layers:  # the layers before have changed as well, so that a mean may do more harm than good
        if norms:
            calibrate_(bare, batches(), objective, pooled=pooled)
        with_them, without = missed(model, (small, bare), batches(), objective, pooled=pooled).sum(1)
        if not with_them <= without:
            _take(small, bare)
            layers = []
    # Later norms compensate for what cannot be absorbed here.
    lost = [name for name in names if name in places.last and name not in places.biased]
    return Calibration(examples, norms, tuple(layers), tuple(lost))


@torch.no_grad()
def missed(
    model: nn.Module, cuts: Sequence[nn.Module], batches: Iterable[Batch], objective: Objective, *, pooled: bool = True
) -> Tensor:
    """How far the outputs of each cut network are from the uncut network's for each image, (cuts, N) float64: the divergence of
    the class probabilities, or if the outputs are not logits, the squared distance. The uncut network runs once for all of
    them."""
    found = list[Tensor]()
    model = copied(model)  # a forward may change its state
    with ExitStack() as stack:
        for context in (preserve_rng_state(), full_precision(), *map(evaluating, (model, *cuts))):
            stack.enter_context(context)
        for batch, (wanted, *given) in runs(batches, objective, model, *cuts):
            found.append(torch.stack([_missed(wanted, each, objective, batch.rows) for each in given]))  # (cuts, rows)
    here = torch.cat(found, 1)
    return torch.cat(gathered(here), 1) if pooled else here


def _missed(wanted: Any, given: Any, objective: Objective, rows: int) -> Tensor:
    """The same for one batch's outputs, (rows,) on the CPU."""
    if objective.by_classes and unlike_logits(wanted, None) is None:
        each = divergence(heads(wanted)[0], heads(given)[0])  # (N, *)
        return each.reshape(len(each), -1).mean(1).double().cpu()
    pairs = zip(tensors(wanted), tensors(given), strict=True)
    return sum((_apart(y, z, rows) for y, z in pairs if y.is_floating_point()), torch.zeros(rows, dtype=torch.float64))


def _apart(wanted: Tensor, given: Tensor, rows: int) -> Tensor:
    """The squared distance, (rows,). It is spread evenly over the images if the outputs do not have a row for each; what one
    has more of (detectors find more or fewer boxes) is compared with zeros."""
    y, z = wanted.float(), given.float()  # float16 overflows
    if y.shape == z.shape and y.ndim and len(y) == rows:
        return (y - z).square().reshape(rows, -1).sum(1).double().cpu()
    most = max(len(y), len(z)) if y.ndim else 0
    y, z = (torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])]) if x.ndim else x for x in (y, z))
    return torch.full((rows,), float((y - z).square().sum()) / rows, dtype=torch.float64)


def _as_cut(model: nn.Module, plan: Plan, small: nn.Module) -> bool:
    """Whether the weights are those that the cut left."""
    fresh, found = named_tensors(apply(model, plan)), named_tensors(small)
    return fresh.keys() == found.keys() and all(torch.equal(value, fresh[name]) for name, value in found.items())


@torch.no_grad()
def _take(model: nn.Module, other: nn.Module) -> None:
    """Give the model the values of its copy."""
    values = named_tensors(other)
    for name, value in named_tensors(model).items():
        value.copy_(values[name])


def calibrated_norms(model: nn.Module) -> dict[str, Norm]:
    """The batch norms and instance norms with running statistics, by name. FrozenBatchNorm and norms without running
    statistics are not among them."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Norm) and module.running_mean is not None and module.running_var is not None
    }


def calibrate_(
    model: nn.Module, batches: Iterable[Batch], objective: Objective | None = None, *, pooled: bool = True
) -> tuple[int, int]:
    """Re-estimate the running statistics of the model's norms, in place. Returns the numbers of examples and of norms.

    batches: see `training.batches.without_labels`; their targets are not read.
    pooled: in a process group, pool the statistics of all processes: each must call this, with batches of its own.

    Norms that do not run, or whose statistics are not finite, keep theirs. Nothing else of the model changes.
    """
    norms = calibrated_norms(model)
    found: dict[str, Statistics] = {}
    examples = seen = 0
    with preserve_rng_state(), torch.no_grad(), full_precision(), evaluating(model), _batchwise(norms, found):
        for batch, _ in runs(batches, objective or Objective(), model):
            examples, seen = examples + batch.rows, seen + 1
    if not examples:
        raise DataError("There is no image to calibrate on: the data has no batch.")
    changed = 0
    for name, total in _together(gathered(found) if pooled else [found]).items():
        mean, variance = total.mean, total.variance
        if bool(mean.isfinite().all() and variance.isfinite().all()):
            _set(norms[name], mean, variance)
            restart_averages_(norms[name], seen)
            changed += 1
    return examples, changed


@contextmanager
def _batchwise(norms: Mapping[str, Norm], found: dict[str, Statistics]) -> Iterator[None]:
    """Context in which the norms, in eval mode, normalize by each batch's own statistics, which are added to `found`. On exit
    they are as before."""
    with ExitStack() as stack:
        for name, norm in norms.items():
            assert norm.running_mean is not None
            assert norm.running_var is not None
            stack.callback(_set, norm, norm.running_mean.clone(), norm.running_var.clone())
            stack.callback(norm.register_forward_pre_hook(partial(_see, name, found), with_kwargs=True).remove)
        yield


def _see(name: str, found: dict[str, Statistics], norm: Any, args: Any, kwargs: Any) -> None:
    x = args[0] if args else kwargs["input"]  # (N, C, *), or without N for an instance norm
    own = _averaged(norm, x) if isinstance(norm, _InstanceNorm) else _pooled(x)
    if own is None:
        return
    if bool(own.variance.isfinite().all()):
        _set(norm, own.mean, own.variance)
    _add(found, name, own)


def _pooled(x: Tensor) -> Pooled | None:
    """Statistics over all axes but the channels: x (N, C, *)."""
    n = x.numel() // x.shape[1] if x.ndim > 1 and x.shape[1] else 0
    if not n:
        return None
    variance, mean = torch.var_mean(x, [axis for axis in range(x.ndim) if axis != 1], correction=0)
    return Pooled(n, mean.cpu().double(), variance.cpu().double() * n)


def _averaged(norm: Any, x: Tensor) -> Averaged | None:
    """Statistics of each image, averaged over them: x (N, C, *) or (C, *)."""
    x = (x[None] if x.ndim == norm._get_no_batch_dim() else x).flatten(2)  # (N, C, positions)
    if x.shape[2] < 2 or not len(x):
        return None
    variance, mean = torch.var_mean(x, 2)  # (N, C)
    return Averaged(len(x), mean.mean(0).cpu().double(), variance.mean(0).cpu().double())


def _set(norm: Norm, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def _add(found: dict[str, Any], name: str, statistics: Statistics) -> None:
    if name in found:
        found[name].add(statistics)
    else:
        found[name] = copy.copy(statistics)


def _together(every: Sequence[dict[str, Statistics]]) -> dict[str, Statistics]:
    """The statistics of all processes."""
    total: dict[str, Statistics] = {}
    for found in every:
        for name, statistics in found.items():
            _add(total, name, statistics)
    return total
