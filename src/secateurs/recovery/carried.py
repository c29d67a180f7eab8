"""The mean of cut channels, absorbed into the biases of the layers that read them.

A cut channel is missing from the sums that its consumers compute. Where it was not zero on average, their outputs shift: after
slimming, for example, a channel with γ = 0 still puts out relu(β). The consumer's lost mean output is a constant per filter,
which its bias can hold, or the batch norm after it. The mean is over images and output positions, borders included: exact
for a channel that is constant, where there is no zero padding; with padding, the best constant.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from secateurs.devices import full_precision
from secateurs.graph.channels import named_tensors
from secateurs.graph.copies import copied
from secateurs.graph.inputs import call, map_tensors, tensors, to_model_device
from secateurs.graph.modes import evaluating
from secateurs.masking import mask, masking
from secateurs.plans import Plan
from secateurs.seeds import preserve_rng_state
from secateurs.surgery.compare import disagreement
from secateurs.surgery.verify import TOLERANCE
from secateurs.training.batches import Batch
from secateurs.training.metrics import runs
from secateurs.training.objective import Objective
from secateurs.training.processes import gathered

Found = dict[str, tuple[float, Tensor]]  # layer → outputs per filter, their sum: (filters of the uncut layer,), float64
Means = dict[str, Tensor]  # layer → what its outputs lost on average: (filters of the uncut layer,), float64


@dataclass
class Lost:
    """The mean loss of each consumer of cut channels or stripes, over everything that it is shown."""

    model: nn.Module  # the uncut network
    masked: nn.Module  # see `twin`
    names: Sequence[str]  # of the consumers
    select: Callable[[str, Tensor], Tensor] = lambda name, x: x  # what of a layer's input counts, the rest being zero
    found: Found = field(default_factory=dict)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Context in which runs of the model are recorded."""
        whole = copied(self.model, {id(p): p for p in self.model.parameters()})
        with ExitStack() as stack:
            for name in self.names:
                hook = partial(self._see, name, whole.get_submodule(name), self.masked)
                module = self.model.get_submodule(name)
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield

    def _see(self, name: str, whole: nn.Module, masked: nn.Module, module: Any, args: Any, kwargs: Any) -> None:
        linear = isinstance(module, nn.Linear)
        x = self.select(name, args[0] if args else kwargs["input"])  # (N, C, *), or (*, C) for a linear layer
        if not linear and x.ndim != len(module.kernel_size) + 2:
            return  # a single image without its axis
        mean = x.reshape(-1, x.shape[-1]).mean(0, keepdim=True) if linear else x.mean(0, keepdim=True)
        # The layer is affine: the loss of the mean is the mean loss. Copies are called, with the hooks that compute weights.
        with masking(masked):
            lost = whole(mean) - masked.get_submodule(name)(mean)
        each = lost.cpu().double().movedim(-1 if linear else 1, 0).flatten(1).mean(1)  # over positions
        n = x.numel() // x.shape[-1] if linear else x.shape[0] * lost[0, 0].numel()
        count, total = self.found.get(name, (0.0, torch.zeros_like(each)))
        self.found[name] = (count + n, total + n * each)

    def means(self, every: Sequence[Found] = ()) -> Means:
        """Reduce over everything that was found, here or in several processes, in the same order."""
        every = every or [self.found]
        counts = {name: sum(one[name][0] for one in every if name in one) for name in every[0]}
        sums = {name: torch.stack([one[name][1] for one in every if name in one]).sum(0) for name in counts}
        return {name: sums[name] / n for name, n in counts.items() if n}


def consumers(model: nn.Module, plan: Plan) -> list[str]:
    """The convolutions and linear layers, by name, that read cut channels or lose stripes. Weights that code reads directly
    are not among them."""
    owners = {param.partition(".parametrizations.")[0] for param, _ in plan.consumes} | set(plan.stripes)
    names = {owner.rpartition(".")[0] if owner.endswith((".weight", ".weight_v")) else owner for owner in owners}
    modules = dict(model.named_modules())
    return [name for name, m in modules.items() if name in names and name and isinstance(m, _ConvNd | nn.Linear)]


@torch.no_grad()
def twin(model: nn.Module, plan: Plan, small: nn.Module | None = None) -> nn.Module:
    """The masked network of a plan, with the weights of the sliced network, where a method has changed these."""
    masked = mask(model, plan)
    new = {} if small is None else named_tensors(small)
    for name, full in named_tensors(masked).items() if small is not None else ():
        axes = plan.kept.get(name, {})
        at = [np.array(axes[a]) if a in axes else np.arange(n) for a, n in enumerate(full.shape)]
        full[np.ix_(*at)] = new[name]
    return masked


@torch.no_grad()
def on_average(
    model: nn.Module, masked: nn.Module, names: Sequence[str], batches: Iterable[Batch], objective: Objective, *,
    pooled: bool,
) -> Means:  # fmt: skip
    """What these consumers lose on average over the images, where that is finite. pooled: over those of all processes, see
    `calibrate_`."""
    model = copied(model)  # a forward may change its state
    lost = Lost(model, masked, names)
    with preserve_rng_state(), full_precision(), evaluating(model), lost.watching():
        for _ in runs(batches, objective, model):
            pass
    means = lost.means(gathered(lost.found) if pooled else [lost.found])
    return {name: mean for name, mean in means.items() if bool(mean.isfinite().all())}


@torch.no_grad()
def provably(model: nn.Module, masked: nn.Module, names: Sequence[str], example_inputs: Any) -> Means:
    """What these consumers lose of channels that do not depend on the input: for example because their norm's γ is 0.

    Nothing is estimated: the network runs on inputs of NaN, which reach everything that depends on them. A channel that they
    don't reach, and that has the same values on the example inputs and on noise, is constant. Empty for a network that does
    not run on such inputs, or that takes no floating-point input.
    """
    model = copied(model)  # a forward may change its state
    given = to_model_device(model, example_inputs)
    if not any(x.is_floating_point() for x in tensors(given)):
        return {}
    generator = torch.Generator().manual_seed(0)
    noise = map_tensors(
        lambda x: torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() else x, given
    )
    nan = map_tensors(lambda x: torch.full_like(x, float("nan")) if x.is_floating_point() else x, given)
    with preserve_rng_state(), full_precision(), evaluating(model):
        try:
            with _cut_off(model):
                blank = _inputs(model, names, nan)
            others = [_inputs(model, names, x) for x in (given, noise)]
        except Exception:  # of the user's code: then nothing is proven
            return {}
        constant = {name: _agree(x, [o.get(name) for o in others]) for name, x in blank.items()}
        lost = Lost(
            model,
            masked,
            names,
            select=lambda name, x: torch.where(constant[name], x, 0) if name in constant else 0 * x,
        )
        with lost.watching():
            call(model, given)
    return {name: mean for name, mean in lost.means().items() if bool((mean != 0).any())}


def _agree(x: Tensor, others: Iterable[Tensor | None]) -> Tensor:
    """Where all runs agree, in every sample: (1, …)."""
    same = torch.ones_like(x[:1], dtype=torch.bool)
    for other in others:
        equal = other is not None and other.shape == x.shape
        same &= torch.isclose(x, other, rtol=1e-5, atol=1e-6).all(0, keepdim=True) if equal else False  # type: ignore[arg-type]
    return same


def _inputs(model: nn.Module, names: Iterable[str], inputs: Any) -> dict[str, Tensor]:
    """The inputs of these layers in a run, of those that run once."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    with ExitStack() as stack:
        for name, seen in found.items():
            hook = lambda module, args, seen=seen: seen.append(args[0].clone())  # noqa: E731
            stack.callback(model.get_submodule(name).register_forward_pre_hook(hook).remove)
        call(model, inputs)
    return {name: seen[0] for name, seen in found.items() if len(seen) == 1}


def cuts_off(model: nn.Module) -> bool:
    """Whether anything in the network keeps its inputs from going on: a zero γ, or a filter of zeros."""
    for module in model.modules():
        if isinstance(module, _NormBase) and module.affine and not bool(module.weight.all()):
            return True
        if isinstance(module, _ConvNd | nn.Linear):
            axis = 1 if isinstance(module, _ConvTransposeNd) else 0
            if not bool(module.weight.movedim(axis, 0).flatten(1).any(1).all()):
                return True
    return False


@contextmanager
def _cut_off(model: nn.Module) -> Iterator[None]:
    """Context in which a zero γ, or a filter of zeros, keeps NaN from propagating: 0 · NaN is NaN."""

    def before(norm: Any, args: Any) -> Any:  # x: (N, C, *)
        off = (norm.weight == 0).view(-1, *[1] * (args[0].ndim - 2))
        return (torch.where(off, 0, args[0]), *args[1:])

    def after(layer: Any, args: Any, out: Tensor) -> Tensor:
        linear = isinstance(layer, nn.Linear)
        axis = 1 if isinstance(layer, _ConvTransposeNd) else 0
        if axis and layer.groups > 1:
            return out
        off, bias = (layer.weight.movedim(axis, 0).flatten(1) == 0).all(1), layer.bias
        shape = [-1] if linear else [-1, *[1] * (out.ndim - 2)]
        return torch.where(off.view(shape), 0 if bias is None else bias.view(shape), out)

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, _NormBase) and module.affine:
                stack.callback(module.register_forward_pre_hook(before).remove)
            elif isinstance(module, _ConvNd | nn.Linear):
                stack.callback(module.register_forward_hook(after).remove)
        yield


@dataclass(frozen=True)
class Places:
    """Where each consumer of the sliced network could hold constants."""

    biased: dict[str, nn.Module]  # itself, or the convolution within what replaced it
    followed: dict[str, _BatchNorm]  # the batch norm that reads its output
    last: frozenset[str]  # those that run after all batch norms

    @classmethod
    @torch.no_grad()
    def of(cls, small: nn.Module, names: Sequence[str], example_inputs: Any) -> Places:
        made: dict[int, tuple[str, Tensor]] = {}  # kept, so that ids are not reused
        followed: dict[str, _BatchNorm] = {}
        last: set[str] = set()

        def leave(layer: Any, args: Any, out: Tensor, name: str) -> None:
            made[id(out)] = name, out
            last.add(name)

        def enter(norm: Any, args: Any) -> None:
            if norm.running_mean is not None:
                last.clear()
                if args and id(args[0]) in made:
                    followed[made[id(args[0])][0]] = norm

        with ExitStack() as stack, evaluating(small):
            for name in names:
                hook = partial(leave, name=name)
                stack.callback(small.get_submodule(name).register_forward_hook(hook).remove)
            for module in small.modules():
                if isinstance(module, _BatchNorm):
                    stack.callback(module.register_forward_pre_hook(enter).remove)
            if names:
                call(small, to_model_device(small, copy.copy(example_inputs)))
        biased = {name: layer for name in names if (layer := _biased(small.get_submodule(name))) is not None}
        return cls(biased, followed, frozenset(last))


@torch.no_grad()
def put_(
    model: nn.Module, masked: nn.Module, small: nn.Module, plan: Plan, means: Means, places: Places, example_inputs: Any
) -> list[str]:
    """Put what the consumers lost into the sliced network, in place: into a layer's bias, or else into the running mean of the
    batch norm after it. Returns the layers whose loss was compensated. model: the uncut network. masked: see `twin`.

    The result is checked: the network computes what the masked one does with these constants added to its layers' outputs.
    If it does not, for example because a layer's output goes to a norm and elsewhere too, norms are left alone.
    """
    due = {name: _kept(plan, name, mean, model.get_submodule(name)) for name, mean in means.items()}
    biases: dict[str, nn.Module] = {name: places.biased[name] for name in due if name in places.biased}
    norms = {name: norm for name, norm in places.followed.items() if name in due and name not in biases}
    norms = {name: norm for name, norm in norms.items() if _constants(norm).shape == due[name].shape}
    for homes in ({**biases, **norms}, biases) if norms else (biases,):
        before = {name: _constants(home).clone() for name, home in homes.items()}
        for name, home in homes.items():
            constants = _constants(home)
            constants += (due[name] * (-1 if isinstance(home, _BatchNorm) else 1)).to(constants)
        if not homes or not plan.exact:
            return list(homes)
        if _as_due(masked, small, {name: means[name] for name in homes}, example_inputs):
            return list(homes)
        for name, old in before.items():
            _constants(homes[name]).copy_(old)
    return []


def _kept(plan: Plan, name: str, mean: Tensor, layer: nn.Module) -> Tensor:
    """Those of the filters that the sliced layer has left."""
    axis = 1 if isinstance(layer, _ConvTransposeNd) else 0
    for param, out in ((f"{name}.bias", 0), (f"{name}.weight", axis)):
        if out in plan.kept.get(param, {}):
            return mean[list(plan.kept[param][out])]
    return mean


def _constants(place: nn.Module) -> Tensor:
    """The tensor of a layer or norm that holds a constant per channel."""
    found = place.running_mean if isinstance(place, _BatchNorm) else place.bias
    assert isinstance(found, Tensor)
    return found.detach()


def _biased(module: nn.Module) -> nn.Module | None:
    layer = module[1] if isinstance(module, nn.Sequential) else module  # stripes: a padding and a convolution
    return layer if layer._parameters.get("bias") is not None and not is_parametrized(layer, "bias") else None


def _as_due(masked: nn.Module, small: nn.Module, means: Means, example_inputs: Any) -> bool:
    """Whether the sliced network computes what the masked one does with constants added to its layers' outputs."""

    def add(layer: nn.Module, args: Any, out: Tensor, mean: Tensor) -> Tensor:
        shape = [-1] if isinstance(layer, nn.Linear) else [-1, *[1] * (out.ndim - 2)]
        return out + mean.to(out).view(shape)

    with ExitStack() as stack:
        for name, mean in means.items():
            hook = masked.get_submodule(name).register_forward_hook(partial(add, mean=mean))
            stack.callback(hook.remove)
        for context in (full_precision(), evaluating(small), evaluating(masked)):
            stack.enter_context(context)
        outs = [tensors(call(m, to_model_device(m, copy.copy(example_inputs)))) for m in (small, masked)]
    return disagreement(outs[0], outs[1], "masked") <= 10 * TOLERANCE
