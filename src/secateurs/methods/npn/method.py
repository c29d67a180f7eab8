"""NPN: the settings, and the pruner that alternates between training the pruner network and both networks."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs import zoo
from secateurs.budget import Budget
from secateurs.devices import device_of
from secateurs.errors import ConfigError, SecateursError, Setting
from secateurs.graph import ChannelGraph, trace
from secateurs.masking.gates import Gates
from secateurs.methods.method import Scope, Task
from secateurs.methods.npn.control import Controller
from secateurs.methods.npn.network import PrunerNetwork, classifier
from secateurs.methods.pruner import Pruner, TrainingMethod, keep
from secateurs.methods.registry import register
from secateurs.methods.select import select_within_budget
from secateurs.methods.selection import Channels, Selection
from secateurs.training import Recipe
from secateurs.training.batches import share, to_device, walk
from secateurs.training.checks import Check
from secateurs.training.metrics import call
from secateurs.training.seeds import preserve_rng_state, seed_all
from secateurs.training.syncnorm import all_sum


@register("npn")
class NPN(TrainingMethod):
    """A pruner network gates the main network's channels (Verma et al., WACV 2020).

    The pruner gets the same images and outputs a gate in [0, 1] for every channel by a scaled sigmoid; λ‖gates‖₁ closes
    them. Epochs alternate between the pruner alone (the main network frozen) and both. Channels whose final mean gate is below
    the threshold are cut; the gates of the others are folded into the weights.
    """

    default_scope: ClassVar[Scope] = "all"

    lam: float | None = Field(default=None, gt=0, le=10, description="λ of eq. 3; with a budget, its initial value")
    epochs: float = Field(
        6, gt=0, allow_inf_nan=False, description="N of algorithm 1: pruning epochs, half of them for the pruner only"
    )
    lr: float = Field(default=0.01, gt=0, le=10, description="β of eq. 5: learning rate of the main network")
    pruner_lr: float = Field(
        default=1e-3, gt=0, le=10, description="α of eq. 4: learning rate of the pruner network (Adam)"
    )
    head_lr: float = Field(default=10.0, gt=0, le=1000, description="learning-rate factor of the new heads")
    gates: Literal["sample", "batch"] = Field(
        default="sample", description="one gate vector for each image, or for each batch"
    )
    scale: float = Field(
        30.0, ge=1, le=1000, description="final scale of the sigmoid (30; 50 for ResNet-50 in the paper)"
    )
    sharpen: float = Field(
        default=0.5, gt=0, lt=1, description="fraction of training after which the scale is raised from 1"
    )
    schedule: Literal["step", "ramp"] = Field(
        "step", description="raise it at once, or geometrically from there to the end"
    )
    threshold: float = Field(default=0.5, gt=0, lt=1, description="a channel is cut if its mean gate is below")
    open: float = Field(
        default=2.5, ge=-10, le=10, description="initial bias of the heads: all gates start at sigmoid(open)"
    )
    pruner: str | None = Field(
        default=None, description="spec of another network to use as the pruner, for example zoo:resnet20"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="as in a Recipe")
    calibration: int = Field(default=2048, ge=1, description="images over which the final gates are averaged")

    def check(self, task: Task) -> None:
        super().check(task)
        if self.lam is None and task.budget is None:
            raise ConfigError(
                "npn needs a budget, for example ", Setting("macs", 0.5, Budget), ", or ", Setting("lam", of=NPN),
                " (how much to prune).",
            )  # fmt: skip
        if self.pruner is not None:
            self.base(task)

    def base(self, task: Task) -> tuple[nn.Module, ChannelGraph]:
        """The base network of the pruner, and its graph: a copy of the main network, or the one from `pruner`."""
        if self.pruner is None:
            return task.model, task.graph
        try:
            with preserve_rng_state():  # its initial weights are random
                seed_all(task.seed, "pruner")
                model = zoo.build(self.pruner)
            model.to(device_of(task.model))
            graph: ChannelGraph = trace(model, task.example_inputs)
            classifier(model, graph, task.example_inputs)
        except SecateursError as error:
            raise ConfigError(Setting("pruner", self.pruner, NPN), " cannot be used here: ", error) from error
        return model, graph

    def recipe(self) -> Recipe:
        return Recipe(epochs=self.epochs, lr=self.lr, schedule="cosine", weight_decay=5e-4, precision=self.precision)

    def attach(self, task: Task) -> NPNPruner:
        return NPNPruner(task, self)


class NPNPruner(Pruner):
    """The pruner. Gates are set in the main network's own forward, from the pruner network's output on the same inputs."""

    def __init__(self, task: Task, config: NPN) -> None:
        super().__init__(task)
        self.config, self.model = config, task.model
        self.groups = task.groups
        self.sizes = [g.size for g in self.groups]
        base, graph = config.base(task)
        self.network = PrunerNetwork(base, graph, task.example_inputs, sum(self.sizes), config.open, task.generator())
        heads = list(self.network.heads[0].parameters())
        trunk = [p for p in self.network.parameters() if all(p is not h for h in heads)]
        self.optimizer = torch.optim.Adam(
            [{"params": trunk, "lr": config.pruner_lr}, {"params": heads, "lr": config.pruner_lr * config.head_lr}],
            betas=(0.9, 0.99),  # λ changes by orders of magnitude: old gradients are uninformative
        )
        self.networks = {"pruner": (self.network, self.optimizer)}
        self._latest: Tensor | None = None  # (1 + channels,): images of the last batch, sums of their logits
        self.norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm)]
        self._frozen: set[_BatchNorm] = set()  # batch norms that are frozen temporarily
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.widths = task.widths
        goal = 1.0
        if task.budget is not None:
            limits = task.budget.limits(self.widths.base)
            goal = min(limits.macs / self.widths.base.macs, limits.params / self.widths.base.params)
        self.lam = config.lam or 1e-3
        self.controller = Controller(self.lam, goal, 0.9 * config.sharpen) if task.budget is not None else None
        self.logits = torch.full((sum(self.sizes),), config.open)  # mean over images and recent batches
        self._full = torch.sigmoid(2.5 * self.logits[:1])  # what counts as open
        self._gate: Tensor | None = None
        self.gates = Gates(self.model, self.groups).attach()
        # Before the gates' own hook, so that they are set when it runs.
        self._handle = self.model.register_forward_pre_hook(self._set_gates, with_kwargs=True, prepend=True)
        self._phase()

    # -- the forward pass ---------------------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        return self.steps / self.total if self.total else 0.0

    @property
    def sharpness(self) -> float:
        """Scale a of the sigmoid 1 / (1 + exp(-a·x)), which drives gates to 0 and 1 at the end (sec. 4.1)."""
        over = (self.progress - self.config.sharpen) / (1 - self.config.sharpen)
        if over < 0:
            return 1.0
        return self.config.scale if self.config.schedule == "step" else self.config.scale ** min(1.0, over)

    @property
    def alone(self) -> bool:
        """Whether only the pruner trains: in even epochs; in odd epochs both do (algorithm 1)."""
        return (self.steps // self.epoch_steps) % 2 == 0

    def __deepcopy__(self, memo: Any) -> NPNPruner:
        return self  # a copy of the model (for example its EMA) uses the same pruner

    def _set_gates(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if not self.gates.attached:
            return
        self.network.train(model.training)
        if model.training:
            self._freeze_norms(self.alone)
        part = self.wrapped.get("pruner")
        logits = (self.network if part is None else part.net)(*args, **kwargs).float()  # (N, channels)
        self.gates.flat(None)
        if model.training:
            self._latest = torch.cat([logits.new_tensor([len(logits)]), logits.detach().sum(0)])
        if self.config.gates == "batch":
            logits = self._batch_mean(logits) if model.training else logits.mean(0)
        gate = torch.sigmoid(self.sharpness * logits)
        self.gates.flat(gate)
        if model.training:
            self._gate = gate

    def _freeze_norms(self, frozen: bool) -> None:
        """Freeze statistics, too; a loop may call `model.train()` only once, so they are also unfrozen here."""
        if frozen:
            self._frozen.update(n for n in self.norms if n.training)
        for norm in self._frozen:
            norm.training = not frozen
        if not frozen:
            self._frozen.clear()

    def _batch_mean(self, logits: Tensor) -> Tensor:
        """Mean over the rows of all processes."""
        if self.processes == 1:
            return logits.mean(0)
        total = all_sum(torch.cat([logits.sum(0), logits.new_tensor([len(logits)])]))
        return total[:-1] / total[-1].detach()

    def penalty(self) -> Tensor | float:
        """λ‖gates‖₁, the mean over the images of the batch (eq. 3)."""
        if self._gate is None:
            return 0.0
        gate, self._gate = self._gate, None
        rows = gate if gate.ndim == 2 else gate[None]
        return self.lam * rows.sum(1).mean()

    # -- after each step ----------------------------------------------------------------------------------------------

    def advance(self) -> None:
        if self._latest is not None:
            total = self.mean(self._latest)
            self.logits.lerp_((total[1:] / total[0]).to(self.logits), 0.1)
            self._latest = None
        if self.controller is not None:
            self.lam = self.controller.update(self._open_cost(), self.progress)
        self._phase()

    def _phase(self) -> None:
        for p in self.trainable:
            p.requires_grad_(not self.alone)

    def _open_cost(self) -> float:
        """The fraction of the budgeted cost that is still open. A gate near the threshold counts in part: so the cost changes
        before a gate has crossed it, and λ can react in time."""
        share = (torch.sigmoid(2.5 * self.logits) / self._full).clamp(max=1)
        widths = np.array([float(s.sum()) for s in share.split(self.sizes)])
        cost = self.widths.cost(np.maximum(widths, self.widths.least))
        budget = self.task.budget
        assert budget is not None
        shares = [cost.macs / self.widths.base.macs] if budget.macs is not None else []
        shares += [cost.params / self.widths.base.params] if budget.params is not None else []
        return max(shares)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _finish(self) -> Selection:
        self._freeze_norms(False)
        try:
            means, logits, undecided, disagree = self._calibrate()
        finally:
            self._handle.remove()
            self.gates.detach()
            for p in self.trainable:
                p.requires_grad_(True)
        scores = {g.name: s.numpy() for g, s in zip(self.groups, means.split(self.sizes), strict=True)}
        if self.task.budget is None:
            selection = keep(scores, self.config.threshold)
        else:  # many gates round to exactly 1: the logits rank those
            ranks = (means + 1e-6 * logits.clamp(-100, 100)).split(self.sizes)
            selection = select_within_budget(
                self.widths, {g.name: r.numpy() for g, r in zip(self.groups, ranks, strict=True)}
            )
        left = np.array([max(1, int((s >= self.config.threshold).sum())) for s in scores.values()])
        self.task.note(
            event="gates", undecided=round(undecided, 4), disagree=round(disagree, 4), lam=self.lam,
            closed=int((means < self.config.threshold).sum()), of=len(means),
            macs=round(self.widths.cost(left).macs / self.widths.base.macs, 4),  # before trimming to the budget
        )  # fmt: skip
        self._fold(scores, selection)
        return Selection(selection)

    @torch.no_grad()
    def _calibrate(self) -> tuple[Tensor, Tensor, float, float]:
        """Mean gate and mean logit of each channel over calibration images, the fraction of gates in (0.1, 0.9), and how
        often an image's gate is on the other side of the threshold from the mean."""
        self.network.eval()
        device = device_of(self.model)
        images, rows = 0, []
        with preserve_rng_state():  # the first epoch's batches, whatever the current epoch
            check = Check(self.network, "train")
            epoch = walk(self.task.data.train, seed=self.task.seed, epoch=0, limit=self.config.steps_per_epoch)
            for index, raw, _ in epoch:
                batch = to_device(check.fit(share(raw, *self.share), index), device)
                logits = call(self.network, batch.inputs).float()
                if self.config.gates == "batch":
                    logits = logits.mean(0, keepdim=True).expand_as(logits)
                rows.append(logits.double().cpu())
                images += round(float(self.mean(torch.tensor([float(len(logits))]))) * self.processes)
                if images >= self.config.calibration:
                    break
        logits = torch.cat(rows)  # (N, channels)
        gates = torch.sigmoid(self.sharpness * logits)
        count = self.mean(torch.tensor([float(len(gates))])).double()
        means, middle = self.mean(torch.stack([gates.sum(0), logits.sum(0)])) / count
        undecided = ((gates > 0.1) & (gates < 0.9)).double().mean(1).sum()
        t = self.config.threshold
        disagree = ((gates < t) != (means < t)).double().mean(1).sum()
        shares = self.mean(torch.stack([undecided, disagree])) / count
        return means, middle, float(shares[0]), float(shares[1])

    def _fold(self, scores: dict[str, np.ndarray], selection: Channels) -> None:
        """Fold the remaining gates into the weights of their channels' consumers."""
        factors = {}
        for name, s in scores.items():
            alive = np.zeros(len(s))
            alive[selection[name]] = s[selection[name]]
            factors[name] = torch.from_numpy(alive).float()
        self.gates.fold_(factors)

    def state(self) -> dict[str, Any]:
        control = None if self.controller is None else self.controller.base
        return {**super().state(), "lam": self.lam, "logits": self.logits, "control": control}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.lam, self.logits = state["lam"], state["logits"]
        if self.controller is not None:
            self.controller.base = state["control"]
        self._phase()
