"""PFF: the settings, and the pruner that drives stripes to zero while the network trains."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from secateurs.errors import ConfigError, Setting
from secateurs.graph.channels import parameter
from secateurs.masking import mask
from secateurs.methods.method import Task
from secateurs.methods.pff.control import Controller
from secateurs.methods.pff.sizes import restore_, sizes
from secateurs.methods.pff.skeleton import Measure, Norms, Skeleton
from secateurs.methods.pruner import Pruner, TrainingMethod
from secateurs.methods.registry import register
from secateurs.methods.selection import Selection
from secateurs.methods.stripes.select import Stripes, channel_scores, check_kernels, kernels
from secateurs.surgery.verify import TOLERANCE, disagreement, outputs
from secateurs.training import Recipe

ALPHA = 1e-5  # the paper's, for 160 epochs
CHECKS = 50  # minimum number of updates of α in a run


@register("pff")
class PFF(TrainingMethod):
    """Pruning filters in filters (Meng et al., NeurIPS 2020): a filter consists of stripes, one for each position of its
    kernel, and each stripe is multiplied by a learnable value; these values form the filter skeleton (eq. 1). α‖skeleton‖₁
    decreases the values while the network trains. At the end they are folded into the weights; stripes whose value is
    below δ are cut, and with them the channels of filters that have no stripe left.

    Cutting stripes affects no other layer, so stripes can be cut from every convolution with a kernel larger than 1×1 and one
    group, on a shortcut or not; `scope` applies to channels only.
    """

    cuts = "stripes"

    alpha: float | None = Field(
        default=None, ge=0, le=10, description="α of eq. 1; None: 1e-5, or controlled if there is a budget"
    )
    delta: float = Field(default=0.05, gt=0, lt=1, description="δ: stripes with a smaller value are cut")
    epochs: float = Field(6, gt=0, allow_inf_nan=False, description="epochs of training with the skeleton")
    lr: float = Field(default=0.05, gt=0, le=10, description="learning rate of the network")
    schedule: Literal["onecycle", "cosine", "constant"] = Field("cosine", description="of both learning rates")
    weight_decay: float = Field(default=1e-4, ge=0, description="of the network's weights")
    skeleton_lr: float = Field(
        default=0.1, gt=0, le=10, description="learning rate of the skeleton (SGD, momentum 0.9)"
    )
    skeleton_decay: float = Field(
        default=0.0, ge=0, description="weight decay of the skeleton; 1e-4 in the released code"
    )
    live: bool = Field(
        default=False,
        description="apply the threshold after each step, as in the released code, not only after training",
    )
    arrive: float = Field(
        default=0.3, gt=0, le=1, description="fraction of the training after which the set of units to cut is fixed"
    )
    floor: float = Field(default=0.02, ge=0, lt=1, description="minimum fraction of its stripes that every layer keeps")
    skeleton: Literal["stripe", "position"] = Field(
        default="stripe",
        description="one value per filter and position, or (shape-wise) per position of a layer",
    )
    penalty: Literal["skeleton", "group-lasso"] = Field(
        default="skeleton", description="penalize a skeleton, or, without one, the norms of the stripes' weights"
    )
    train: Literal["both", "skeleton"] = Field(
        default="both", description="train both, or only the skeleton with the convolutions' weights frozen (fig. 4)"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="as in a Recipe")

    def check(self, task: Task) -> None:
        super().check(task)
        check_kernels(task, self.name)
        if self.penalty == "group-lasso" and self.train == "skeleton":
            raise ConfigError(
                Setting("train", "skeleton", PFF),
                " requires ",
                Setting("penalty", "skeleton", PFF),
                ".",
            )

    def feasible(self, task: Task) -> None:
        task.widths.check(self.stripes(task).lowest())

    def recipe(self) -> Recipe:
        return Recipe(
            epochs=self.epochs, lr=self.lr, schedule=self.schedule, weight_decay=self.weight_decay,
            precision=self.precision,
        )  # fmt: skip

    def attach(self, task: Task) -> PFFPruner:
        return PFFPruner(task, self)

    def stripes(self, task: Task) -> Stripes:
        return Stripes(task, kernels(task), self.skeleton == "position", self.floor)


class PFFPruner(Pruner):
    """The pruner."""

    MOMENTUM = 0.9

    def __init__(self, task: Task, config: PFF) -> None:
        super().__init__(task)
        self.config, self.model = config, task.model
        self.stripes = config.stripes(task)
        found, shared = self.stripes.kernels, config.skeleton == "position"
        self.sizes = sizes(self.model, found)  # of the filters, to be restored at the end
        self.measure: Measure
        if config.penalty == "skeleton":
            self.measure = skeleton = Skeleton(self.model, found, shared)
            optimizer = torch.optim.SGD(
                [skeleton.values], config.skeleton_lr, self.MOMENTUM, weight_decay=config.skeleton_decay
            )
            # The network has no parameters: so the values join its optimizer, and are averaged over processes separately.
            self.networks = {"skeleton": (nn.Module(), optimizer)}
        else:
            self.measure = Norms(self.model, found, shared)
        self.alive = torch.ones(self.stripes.units, dtype=torch.bool)
        self.alpha = ALPHA if config.alpha is None else config.alpha
        self.doomed = torch.zeros_like(self.alive)  # once fixed, the units to cut …
        self.ceiling: float | None = None  # … and the largest of their values then
        self.controller: Controller | None = None
        self.frozen: list[nn.Parameter] = []
        if config.train == "skeleton":
            self.frozen = [w for name in found if (w := parameter(self.model, name)).requires_grad]  # type: ignore[misc]
            for w in self.frozen:
                w.requires_grad_(False)

    def begin(self, total: int, epoch_steps: int) -> None:
        super().begin(total, epoch_steps)
        device = parameter(self.model, next(iter(self.stripes.kernels))).device
        if isinstance(self.measure, Skeleton):
            self.measure.values.data = self.measure.values.data.to(device)
        self.alive, self.doomed = self.alive.to(device), self.doomed.to(device)
        if self.config.alpha is None and self.task.budget is not None:
            self.controller = Controller(self._guess(), self.config.delta, self.config.arrive)
            self.alpha = self.controller.update(1.0, 0.0)

    def _guess(self) -> float:
        """The α that would take a value from one to δ in time if the loss had no effect on it."""
        config, recipe = self.config, self.config.recipe()
        done = np.linspace(0, config.arrive, 50)
        lr = config.skeleton_lr if isinstance(self.measure, Skeleton) else config.lr
        path = lr * float(np.mean([recipe.factor(d, 0) for d in done])) * config.arrive * max(1, self.total)
        return (1 - config.delta) * (1 - self.MOMENTUM) / path

    def penalty(self) -> Tensor | float:
        """α times the sum of all values (eq. 2)."""
        if self.alpha == 0:
            return 0.0
        strength = self.measure.strength()
        return self.alpha * (self.measure.pull.to(strength.device) * strength).sum()

    # -- after each step ----------------------------------------------------------------------------------------------

    def advance(self) -> None:
        if self.controller is not None and self.ceiling is not None:
            earlier, now = (
                self.controller.ceiling(self.ceiling, i / max(1, self.total)) for i in (self.steps - 1, self.steps)
            )
            if now > 0:
                self.measure.limit_(self.doomed, now)
                # A norm would compensate until the filter is almost zero, and then collapse: so its scale fades as well.
                self._attenuate(~self.doomed, now / earlier)
            else:
                self.alive = self.alive & ~self.doomed
        self._silence()
        if self.steps % max(1, min(10, self.total // CHECKS)) == 0:
            self._steer()

    def _steer(self) -> None:
        if self.controller is None and not self.config.live:
            return
        strength = self.measure.strength().detach()
        needed = (
            self.config.delta if self.task.budget is None else self.stripes.needed(self._scores(), self._channel_scores)
        )
        if self.controller is not None:
            progress = self.steps / max(1, self.total)
            self.alpha = self.controller.update(needed, progress)
            if self.controller.settled(progress) and self.ceiling is None:
                self.ceiling, self.doomed = needed, ~self._staying(strength > needed)
        if self.config.live:  # no more than the budget requires
            below = strength < self.config.delta
            self._kill(below if self.task.budget is None else below & (strength <= needed))

    def _kill(self, below: Tensor) -> None:
        self.alive = self._staying(self.alive & ~below)
        self._silence()

    def _staying(self, alive: Tensor) -> Tensor:
        """These units and those that layers always keep. alive: (units,) bool."""
        left = self.stripes.left(alive.cpu().numpy()[self.stripes.unit], self._scores())
        units = np.zeros(self.stripes.units, dtype=bool)
        units[self.stripes.unit[left.alive]] = True
        return torch.from_numpy(units).to(alive.device)

    def _silence(self) -> None:
        """Keep dead units at zero despite momentum; zero the constants of channels without stripes."""
        if bool(self.alive.all()):
            return
        self.measure.silence_(~self.alive)
        self._attenuate(self.alive, 0.0)

    @torch.no_grad()
    def _attenuate(self, alive: Tensor, factor: float) -> None:
        """Scale the norms' scale and shift, and the biases, of channels that none of these units produces. alive: (units,)
        bool."""
        filters = np.zeros(self.stripes.filters, dtype=bool)
        filters[self.stripes.filter[alive.cpu().numpy()[self.stripes.unit]]] = True
        for group, makers, whole in zip(self.task.groups, self.stripes.makers, self.stripes.whole, strict=True):
            dead = ~filters[makers].any(1)
            if whole and dead.any():
                for slot in group.slots:
                    w = parameter(self.model, slot.param)
                    if not slot.produces and not slot.consumes and isinstance(w, nn.Parameter):
                        at = torch.from_numpy(slot.index[dead].ravel()).to(w.device)
                        w.index_copy_(slot.axis, at, w.index_select(slot.axis, at) * factor)

    def _scores(self) -> np.ndarray:
        return self.measure.strength().detach().double().cpu().numpy()

    # -- the end ------------------------------------------------------------------------------------------------------

    def _finish(self) -> Selection:
        try:
            scores = self._scores()
        finally:
            self.measure.finish_()
            for w in self.frozen:
                w.requires_grad_(True)
        if self.task.budget is None:
            delta = self.config.delta
            left = self.stripes.left((scores >= delta)[self.stripes.unit], scores)
        else:
            left, delta = self.stripes.select_within_budget(scores, self._channel_scores)
        if left.alive.all() and self.task.budget is None:
            self.log(
                f"pff removed no stripes: every value is at least delta={self.config.delta:g}. Raise alpha={self.alpha:g}, "
                "train longer, or set a budget."
            )
        selection = self.stripes.selection(left)
        kept = {name: torch.from_numpy(stays) for name, stays in selection.stripes.items()}
        inputs = self.task.example_inputs
        restore_(self.model, self.sizes, kept, inputs)
        base, cost = self.stripes.widths.base, self.stripes.cost(left)
        change = self._change(selection, inputs)
        if change > TOLERANCE:
            self.log(
                f"pff: channels without stripes still had constant outputs; removing them changes the output by {change:.1e} "
                f"of its range"
            )
        self.task.note(
            event="stripes", kept=int(left.alive.sum()), of=len(left.alive), delta=delta, alpha=self.alpha,
            filters=len(np.unique(self.stripes.filter[left.alive])), of_filters=self.stripes.filters,
            channels=int(left.widths.sum()), of_channels=int(self.stripes.widths.sizes.sum()),
            below=int((scores[self.stripes.unit] < self.config.delta).sum()),
            macs=round(cost.macs / base.macs, 4), change=change,
        )  # fmt: skip
        return selection

    def _channel_scores(self) -> list[np.ndarray]:
        return channel_scores(self.task)

    def _change(self, selection: Selection, inputs: Any) -> float:
        """The effect of the constants that the removed channels still output: the largest change of the network's output
        from their removal, relative to the output's range, on the example inputs."""
        graph = self.task.graph
        before = graph.plan({}, stripes=selection.stripes)
        empty = [g.name for g, whole in zip(self.task.groups, self.stripes.whole, strict=True) if whole]
        after = graph.plan({g: selection.channels[g] for g in empty}, stripes=selection.stripes, allow_inexact=True)
        a, b = (outputs(mask(self.model, plan), inputs, torch.float32) for plan in (after, before))
        return disagreement(a, b, "pruned")

    # -- checkpoints -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        values = self.measure.values.detach().clone() if isinstance(self.measure, Skeleton) else None
        first = (self.measure.first, self.measure.pull) if isinstance(self.measure, Norms) else None
        control = None if self.controller is None else self.controller.base
        return {
            **super().state(), "values": values, "first": first, "alive": self.alive.clone(),
            "doomed": self.doomed.clone(), "ceiling": self.ceiling, "alpha": self.alpha, "control": control,
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        if isinstance(self.measure, Skeleton):
            self.measure.values.data.copy_(state["values"])
        elif isinstance(self.measure, Norms):
            self.measure.first, self.measure.pull = state["first"]
        self.alive, self.doomed = (state[k].to(self.alive.device) for k in ("alive", "doomed"))
        self.alpha, self.ceiling = state["alpha"], state["ceiling"]
        if not isinstance(self.ceiling, float | None):
            raise ValueError(f"'ceiling' must be a number, not {self.ceiling!r}")
        if self.controller is not None:
            self.controller.base = state["control"]
