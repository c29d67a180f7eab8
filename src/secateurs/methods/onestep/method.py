"""One-step pruning: learn importance vectors, keep crucial layers whole, cut the rest at once."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from secateurs.devices import device_of
from secateurs.errors import ConfigError, Setting, TrainingError
from secateurs.graph import ChannelGroup
from secateurs.masking.gates import Gates
from secateurs.methods.costs import power_of
from secateurs.methods.criteria import norms
from secateurs.methods.method import Task
from secateurs.methods.onestep.layers import Layer, find_layers, scored
from secateurs.methods.pruner import Pruner, Taught, taught
from secateurs.methods.registry import register
from secateurs.methods.select import select_within_budget
from secateurs.methods.selection import Selection
from secateurs.report import listing
from secateurs.training import Recipe
from secateurs.training.eager import EagerHook
from secateurs.training.recipe import PRECISION

log = logging.getLogger("secateurs")

PAPER: Mapping[str, Any] = {  # sec. 4.1, on CIFAR-10
    "lam": 1.0, "lr": 1e-5, "epochs": 15, "ranking": "global", "prior": 0.0, "cost": 0.0, "distil": 0.0
}  # fmt: skip
MEASURED = 3  # steps in which the size of the gradient is measured …
LOWERED = 0.02  # … with every |β| lower than one by this much: at one, the distance from the original has no gradient
FIRST = 0.01  # λ of the first step, when nothing is measured


@register("onestep")
class OneStep(Taught):
    """Importance vectors, one factor |β| for each channel, learned on a frozen network (Wang et al., 2019).

    The loss is the distance from the original's class probabilities (or with `distil=0`, as in the paper, the task loss) plus
    λ‖β‖₁; weights and batch-norm statistics are frozen. The layers with the largest mean
    |β| are crucial: they are kept whole, and are the nodes that recovery mimics (`Mimic`). Of all other channels,
    those with the smallest |β| are cut in one step; the norms of their weights and what they cost count as well, unless
    `prior` and `cost` are 0, as in the paper.

    β acts on the channel at its consumers, after batch norm and non-linearity; the paper's acts on the layer's
    output. For |β| ≥ 0 after batch norm and a ReLU the two are equal: ReLU(|β|·x) = |β|·ReLU(x).
    """

    knob = "rate"
    share = 0.05
    most = 1
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": PAPER,
        "cifar": PAPER,
        "imagenet": {**PAPER, "lam": 0.1, "lr": 1e-4, "epochs": 10},  # sec. 4.5, with batches of 128
    }

    distil: float = taught(1.0)
    lam: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="λ of eq. 3; by default `strength` times the mean |∂loss/∂β|, with every |β| a little below one",
    )
    strength: float = Field(
        default=3.0, gt=0, le=1000, description="λ as a multiple of the gradient's size, if lam is not set"
    )
    lr: float | None = Field(
        default=None, gt=0, le=1,
        description="Adam's learning rate: about how much a β changes per step; by default one over the number of steps, so "
        "that a β can fall from 1 to 0",
    )  # fmt: skip
    l1: Literal["sum", "mean"] = Field(
        default="sum",
        description="‖β‖₁ over all channels (eq. 3), or their mean, which is independent of the network's size",
    )
    crucial: int | tuple[str, ...] | None = Field(
        default=None,
        description="N of eq. 8 (1: the last layer only), or the convolutions by name, or None: a quarter of all layers, "
        "but 2 to 4",
    )
    ranking: Literal["global", "layer"] = Field(
        default="layer",
        description="compare channels by their rank within their group, or all |β| together (the paper's)",
    )
    prior: float = Field(
        default=1.0, ge=0, le=10,
        description="channels are ranked by |β| times this power of their weights' norm, relative to their group's mean",
    )  # fmt: skip
    rate: float | None = Field(
        default=None, ge=1, le=1e4, allow_inf_nan=False,
        description="instead of a budget: every layer that is not crucial keeps the fraction 1/rate (8 in sec. 4.1)",
    )  # fmt: skip
    cost: float | None = Field(
        default=None,
        ge=0,
        le=2,
        description="scores are divided by this power of what a channel costs under the budget: costly layers lose more; "
        "None: the power that measures best on training images, 0 without data",
    )
    fold: bool = Field(
        default=False, description="multiply |β| into the weights instead of discarding it after the cut"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description=PRECISION)

    @model_validator(mode="after")
    def _enough(self) -> OneStep:
        if isinstance(self.crucial, int) and self.crucial < 1:
            raise ValueError("crucial must be at least 1: the last layer is always kept whole")
        return self

    def check(self, task: Task) -> None:
        super().check(task)
        if (self.rate is None) == (task.budget is None):
            raise ConfigError(
                "onestep needs exactly one of a budget and ",
                Setting("rate", of=OneStep),
                " (each layer keeps 1/rate of its filters).",
            )
        find_layers(task.model, task.graph, scored(task.graph), task.example_inputs)

    def unused(self, task: Task) -> Mapping[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        if self.rate is not None:
            same = (Setting("rate", self.rate, OneStep), " keeps the same share of every layer")
            found |= {"ranking": same, **({"cost": same} if self.cost else {})}
        if self.lam is not None:
            found["strength"] = (Setting("lam", self.lam, OneStep), " is λ itself")
        return found

    @property
    def measures(self) -> bool:
        return self.cost is None

    def recipe(self, task: Task) -> Recipe:
        # The network's own parameters are frozen: lr is that of none.
        return Recipe(
            epochs=self.length, lr=self.lr or 1e-3, schedule="constant", weight_decay=0, precision=self.precision
        )

    def attach(self, task: Task) -> OneStepPruner:
        return OneStepPruner(task, self)


class Importance(nn.Module):
    """All importance vectors concatenated, initialized to 1: β = 1 + `offset`.

    Adam at the paper's 1e-5 changes a β by a few hundredths at most, and ranks depend on much smaller differences: added to
    1, float32 would round them away.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(channels))

    def forward(self, like: Tensor) -> Tensor:  # DistributedDataParallel requires an input
        return (1 + self.offset).abs()


class OneStepPruner(Pruner):
    """The pruner. Only the importance vectors train; the network runs in eval mode and does not change."""

    captures = True

    def __init__(self, task: Task, config: OneStep) -> None:
        super().__init__(task)
        self.config, self.model = config, task.model
        self.groups = scored(task.graph)
        self.layers = find_layers(self.model, task.graph, self.groups, task.example_inputs)
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        for p in self.trainable:
            p.requires_grad_(False)
        self.gates = Gates(self.model, self.groups).attach()
        device = device_of(self.model)
        self.importance = Importance(self.gates.channels).to(device)
        self._some = torch.zeros(1, device=device)
        self.networks = {
            "beta": (self.importance, torch.optim.Adam(self.importance.parameters(), lr=config.lr or 1e-3))
        }
        self.slopes: list[float] = []  # mean |∂loss/∂β| of the first steps
        self._slope: Tensor | None = None  # (channels,) ∂loss/∂|β| of the last backward, times the scale of the loss
        self._scale = 0.0  # that scale: not 1 in float16
        self._modes: list[tuple[nn.Module, bool]] = []
        # Before the gates' own hook, so that they are set when it runs.
        self._hook = EagerHook(self.model, self._enter, self._leave, self._forget)

    def _enter(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        # Eval mode inside, so that no state of the network changes: statistics, the power iterations of a spectral norm. A
        # step of the user's own may need what the network returns in train mode, for example its losses: then only the layers.
        whole = self.task.objective.step is None
        self._modes = [(m, m.training) for m in model.modules() if whole or not m._modules]
        for module, _ in self._modes:
            module.training = False
        part = self.wrapped.get("beta")
        beta = (self.importance if part is None else part.net)(self._some.to(self.importance.offset))
        if self.measuring and beta.requires_grad:
            # Where β is after some steps depends on the learning rate, and so on the length of the run.
            beta = beta + (1 - LOWERED - beta).detach()
            beta.register_hook(self._measure)
        self.gates.flat(beta)

    def _measure(self, grad: Tensor) -> None:
        self._slope = grad.detach().clone()

    def _leave(self) -> None:
        for module, mode in self._modes:
            module.training = mode
        self._modes = []

    def _forget(self) -> None:
        self._slope = None

    def begin(self, total: int, epoch_steps: int) -> None:
        super().begin(total, epoch_steps)
        if self.config.lr is None:
            for group in self.networks["beta"][1].param_groups:
                group["lr"] = group["initial_lr"] = 1 / total

    @property
    def lam(self) -> float:
        """λ: the setting, or as a multiple of the gradient's size so far."""
        if self.config.lam is not None:
            return self.config.lam
        if not self.slopes:
            return FIRST
        size = self.config.strength * sum(self.slopes) / len(self.slopes)
        return size * (1 if self.config.l1 == "sum" else self.gates.channels)

    @property
    def measuring(self) -> bool:
        return self.config.lam is None and len(self.slopes) < MEASURED

    def penalty(self) -> Tensor | float:
        """λ‖β‖₁ (eq. 3)."""
        beta, lam = self.importance(self._some), self.lam
        if self.measuring and beta.requires_grad:
            of_one = lam / (1 if self.config.l1 == "sum" else beta.numel())  # what λ contributes to each β's gradient

            def scale(grad: Tensor) -> None:
                self._scale = float(grad.mean()) / of_one

            beta.register_hook(scale)
        return lam * (beta.sum() if self.config.l1 == "sum" else beta.mean())

    def advance(self) -> None:
        if self.measuring and self._slope is not None and self._scale > 0:
            # Averaged before they are divided: processes with more rows weigh more.
            slope, scale = self.mean(self._slope), self.mean(torch.tensor(self._scale))
            size = float((slope / scale.to(slope)).abs().mean())
            # float16 may have overflowed: that step was skipped. A loss that no β changes tells nothing about λ.
            if math.isfinite(size) and size > 0:
                self.slopes.append(size)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "slopes": list(self.slopes)}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        if not all(isinstance(slope, float) for slope in state["slopes"]):
            raise ValueError("'slopes' must be floats")
        self.slopes = list(state["slopes"])

    def beta(self) -> dict[str, np.ndarray]:
        """|β| of each group's channels."""
        flat = (1 + self.importance.offset.detach().double()).abs().cpu()
        if not flat.isfinite().all():
            raise TrainingError("The importance vectors are not finite: lower lr, and check the data for bad values.")
        return {g.name: b.numpy() for g, b in zip(self.groups, flat.split(self.gates.sizes), strict=True)}

    # -- the end ------------------------------------------------------------------------------------------------------

    def _finish(self) -> Selection:
        try:
            beta = self.beta()
        finally:
            self._hook.remove()
            self.gates.detach()
            for p in self.trainable:
                p.requires_grad_(True)
        return self._selection(beta)

    def _selection(self, beta: Mapping[str, np.ndarray]) -> Selection:
        """What the importance vectors keep. Folds them into the weights."""
        crucial = self.layers.crucial(beta, self.config.crucial)
        whole, released = self._affordable(crucial)
        kept = [layer for layer in crucial if layer not in released]
        nodes = tuple(layer.node for layer in sorted(kept, key=self._order))
        self.task.note(
            event="crucial", layers={layer.name: round(layer.score(beta), 8) for layer in crucial},
            nodes=list(nodes), released=[layer.name for layer in released],
            scores={layer.name: round(layer.score(beta), 8) for layer in self.layers.all},
        )  # fmt: skip
        if released:
            names = listing([layer.name for layer in released])
            self.log(
                f"onestep: {names}, crucial by {'its' if len(released) == 1 else 'their'} scores, cannot stay whole within the "
                "budget and the limits of the task"
            )
        free = [g for g in self.task.groups if g.name not in whole]
        if any(not g.internal for g in self.task.groups) and all(g.internal for g in free):
            log.warning(
                "onestep: scope 'all' has no effect: all channels on a shortcut belong to crucial layers, which stay whole, as "
                "the last layer always does"
            )
        widths = self.task.widths_of(free)
        scores = [beta.get(g.name, np.ones(g.size)) * self._prior(g) for g in free]
        ranks = {g.name: self._ranked(s) for g, s in zip(free, scores, strict=True)}

        def within(cost: float) -> Selection:
            return Selection(select_within_budget(widths, ranks, cost) if free else {}, nodes=nodes)

        if self.config.rate is not None:
            counts = widths.aligned(np.ceil(widths.sizes / self.config.rate).astype(np.int64))
            best = zip(ranks.items(), counts, strict=True)
            found = Selection({n: np.sort(np.argsort(-r, kind="stable")[:k]) for (n, r), k in best}, nodes=nodes)
        else:
            found = within(power_of(self.config.cost, self.task, within, pooled=True))
        if self.config.fold:
            self.gates.fold_({name: torch.from_numpy(b).float() for name, b in beta.items()})
        return found

    def _order(self, layer: Layer) -> int:
        return len(self.layers.all) if layer == self.layers.final else self.layers.all.index(layer)

    def _affordable(self, crucial: list[Layer]) -> tuple[set[str], list[Layer]]:
        """Groups to keep whole, and the crucial layers that cannot be kept, the least important first, if the budget could not
        be met with every other group at its floor, or if the user says how many channels of them stay. The classifier's
        hidden layers are kept whole if possible."""
        task = self.task
        cut = {g.name for g in task.groups if task.bound(g).most < g.size}
        whole: set[str] = set()
        released = []
        for layer in crucial:
            if cut.isdisjoint(layer.groups) and self._fits(whole | set(layer.groups)):
                whole |= set(layer.groups)
            else:
                released.append(layer)
        hidden = set(self.layers.classifier) - cut
        if self._fits(whole | hidden):
            whole |= hidden
        return whole & {g.name for g in task.groups}, released[::-1]

    def _fits(self, whole: set[str]) -> bool:
        free = [g for g in self.task.groups if g.name not in whole]
        widths = self.task.widths_of(free)
        return widths.fits(widths.above(widths.floor))

    def _prior(self, group: ChannelGroup) -> np.ndarray:
        """What |β| is multiplied by for ranking: (size,)."""
        size = norms(group, self.model, 2).detach().double().cpu().numpy()
        return np.asarray((size / max(size.mean(), 1e-12)) ** self.config.prior)

    def _ranked(self, beta: np.ndarray) -> np.ndarray:
        if self.config.ranking == "global":
            return beta
        return (np.argsort(np.argsort(beta, kind="stable"), kind="stable") + 1) / len(beta)
