"""PFF's pruner: stripes are driven to zero while the network trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.graph.channels import parameter
from secateurs.methods.costs import power_of
from secateurs.methods.method import Task
from secateurs.methods.pff.control import Controller
from secateurs.methods.pff.outcome import report
from secateurs.methods.pff.phases import Readers, attenuate_, ceiling, faded, readers
from secateurs.methods.pff.settings import Settings
from secateurs.methods.pff.sizes import restore_, squares
from secateurs.methods.pff.skeleton import Measure, Norms, Skeleton
from secateurs.methods.pruner import Pruner
from secateurs.methods.selection import Selection
from secateurs.methods.stripes.criterion import L2Stripes
from secateurs.methods.stripes.select import Left, channel_scores

ALPHA = 1e-5  # the paper's, for 160 epochs
CHECKS = 50  # minimum number of updates of α in a run
MEASURE = 10  # steps without α, for measuring the gradient; at most a fifth of the search


class PFFPruner(Pruner):
    """The pruner.

    Without control (`alpha` is set, or there is no budget) the values decrease until the end, and what is below the threshold
    then is cut. Under control, a run has three phases (`phases`): α decreases the values until the stripes and channels to cut
    are chosen; those are faded out; and the network trains in its final shape.
    """

    captures = True
    MOMENTUM = 0.9

    def __init__(self, task: Task, config: Settings) -> None:
        super().__init__(task)
        self.config, self.model = config, task.model
        self.stripes = config.stripes(task)
        found, blocks = self.stripes.kernels, self.stripes.blocks
        self.sizes = squares(self.model, found)  # of the stripes, to be restored at the end
        self.measured: list[dict[str, Any]] = []  # entries of the history: the power of the costs, if it was measured
        worth = self.stripes.worth(self._cost()).tolist() if config.weighs(task) else None
        self.measure: Measure
        if config.penalty == "skeleton":
            prior = Norms(self.model, found, blocks, worth).strength().detach() if config.by_norms(task) else None
            self.measure = skeleton = Skeleton(self.model, found, blocks, prior)
            optimizer = torch.optim.SGD(
                [skeleton.values], config.skeleton_lr, self.MOMENTUM, weight_decay=config.skeleton_decay
            )
            # The network has no parameters: so the values join its optimizer, and are averaged over processes separately.
            self.networks = {"skeleton": (nn.Module(), optimizer)}
        else:
            self.measure = Norms(self.model, found, blocks, worth)
        self.alive = torch.ones(self.stripes.units, dtype=torch.bool)
        self.whole = True  # whether all of them are alive: known here, so that a GPU is not asked in each step
        self.alpha = ALPHA if config.alpha is None else config.alpha
        self.controller: Controller | None = None
        # Once chosen: the largest value of a unit that is cut, the stripes that stay, and the channels, of all groups in a row.
        self.ceiling: float | None = None
        self.stays = torch.ones(len(self.stripes), dtype=torch.bool)
        self.channels = torch.ones(int(self.stripes.widths.sizes.sum()), dtype=torch.bool)
        self._doomed: tuple[Tensor, Readers] | None = None  # see `_to_go`
        self.frozen: list[nn.Parameter] = []
        if config.train == "skeleton":
            self.frozen = [w for name in found if (w := parameter(self.model, name)).requires_grad]  # type: ignore[misc]
            for w in self.frozen:
                w.requires_grad_(False)

    def _cost(self) -> float:
        """The power of the costs by which values are divided. Before training, norms stand for the values."""
        config = self.config
        norms = L2Stripes(floor=config.floor, block=config.block)

        def select(cost: float) -> Selection:
            return norms.model_copy(update={"cost": cost}).select(self.task)

        return power_of(config.cost, replace(self.task, log=self.measured.append), select, pooled=True)

    def begin(self, total: int, epoch_steps: int) -> None:
        super().begin(total, epoch_steps)
        device = parameter(self.model, next(iter(self.stripes.kernels))).device
        if isinstance(self.measure, Skeleton):
            self.measure.values.data = self.measure.values.data.to(device)
        self.alive = self.alive.to(device)
        self.start = self.measure.strength().detach().clone()
        if self.config.controlled(self.task):
            first = self._needed()
            self.controller = self._controller(first)
            self.alpha = 0.0 if self._measuring() else self.controller.update(first, 0.0)

    def _controller(self, first: float) -> Controller:
        """first: the threshold that the budget needs before training."""
        return Controller(self._guess(first), self.config.delta, self.config.arrive, first)

    @property
    def _rate(self) -> float:
        """How far an α of one moves a strength in a step, at the peak learning rate."""
        config = self.config
        return (config.skeleton_lr if isinstance(self.measure, Skeleton) else config.lr) / (1 - self.MOMENTUM)

    def _guess(self, first: float) -> float:
        """The α that would take a value from the first threshold to δ in time if the loss had no effect on it."""
        config, recipe = self.config, self.config.recipe(self.task)
        done = np.linspace(0, config.arrive, 50)
        factor = float(np.mean([recipe.factor(d, d * config.length) for d in done]))
        path = self._rate * factor * config.arrive * max(1, self.total)
        return max(first - config.delta, config.delta) / path

    def _measuring(self) -> bool:
        """Whether the gradient is still being measured: in the first steps, in which α is zero."""
        steps = min(MEASURE, max(1, int(0.2 * self.config.arrive * self.total)))
        return self.config.limit is not None and self.steps < steps

    def penalty(self) -> Tensor | float:
        """α times the sum of all values (eq. 2)."""
        if self.alpha == 0:
            return 0.0
        strength = self.measure.strength()
        return self.alpha * (self.measure.pull.to(strength.device) * strength).sum()

    # -- after each step ----------------------------------------------------------------------------------------------

    def advance(self) -> None:
        if self.controller is not None:
            if isinstance(self.measure, Skeleton):
                self.measure.rectify_()
            if self.ceiling is not None:
                self._fade(self.ceiling)
            elif self.controller.settled(self.steps / max(1, self.total)):
                self._choose()
            elif self.steps % max(1, min(10, self.total // CHECKS)) == 0 and not self._measuring():
                self._limit(self.controller)
                self.alpha = self.controller.update(self._needed(), self.steps / max(1, self.total))
        self._silence()
        if self.config.live and self.ceiling is None:
            below = (self.measure.strength().detach() < self.config.delta) & self.alive
            if below.any():
                self._kill(below)

    def _limit(self, controller: Controller) -> None:
        """Set the highest α, on the first call: what would move the strengths `limit` times as fast as the loss has done."""
        if self.config.limit is None or controller.most != float("inf"):
            return
        moved = float((self.measure.strength().detach() - self.start).abs().mean()) / self.steps
        if moved > 0:
            controller.most = self.config.limit * moved / self._rate

    def _choose(self) -> None:
        """Choose what to cut."""
        assert self.controller is not None
        self.alpha = 0.0
        scores = self._scores()
        left, _ = self.stripes.select_within_budget(scores, self._channel_scores)
        self.ceiling = float(scores[self.stripes.unit][~left.alive].max(initial=0.0))
        self._doomed = None
        self.stays = torch.from_numpy(left.alive)
        self.channels = torch.from_numpy(np.concatenate([np.zeros(0, dtype=bool), *left.channels]))

    def _to_go(self) -> tuple[Tensor, Readers]:
        """The units to cut, once chosen, (units,) bool, and what reads the channels to cut."""
        if self._doomed is None:
            units = np.ones(self.stripes.units, dtype=bool)
            units[self.stripes.unit[self.stays.numpy()]] = False
            found = readers(self.model, self.task.groups, self._kept())
            self._doomed = torch.from_numpy(units).to(self.alive.device), found
        return self._doomed

    def _fade(self, first: float) -> None:
        arrive, total = self.config.arrive, max(1, self.total)
        end = faded(arrive, self.config.fixed)
        earlier, now = (ceiling(first, arrive, end, i / total) for i in (self.steps - 1, self.steps))
        units, found = self._to_go()
        if now > 0:
            self.measure.limit_(units, now)
            # A norm would compensate for small weights, and then collapse: so what is read of the channels fades as well.
            attenuate_(self.model, found, now / earlier)
        else:
            self.alive, self.whole = ~units, bool(self.stays.all())

    def _kept(self) -> list[np.ndarray]:
        """The channels that stay, once chosen, for each group in scope: (size,) bool."""
        ends = np.cumsum(self.stripes.widths.sizes)
        return [self.channels.numpy()[end - n : end] for end, n in zip(ends, self.stripes.widths.sizes, strict=True)]

    def _kill(self, below: Tensor) -> None:
        """Zero these units for good; no more than the budget requires. below: (units,) bool."""
        if self.task.budget is not None:
            below = below & (self.measure.strength().detach() <= self._needed())
        self.alive = self._staying(self.alive & ~below)
        self.whole = bool(self.alive.all())
        self._silence()

    def _staying(self, alive: Tensor) -> Tensor:
        """These units and those that layers always keep. alive: (units,) bool."""
        units = np.zeros(self.stripes.units, dtype=bool)
        units[self.stripes.unit[self._left(alive.cpu().numpy()).alive]] = True
        return torch.from_numpy(units).to(alive.device)

    def _silence(self) -> None:
        """Keep dead units at zero despite momentum, and what is read of channels without stripes."""
        if self.whole:
            return
        self.measure.silence_(~self.alive)
        if self.ceiling is not None:
            found = self._to_go()[1]
        else:
            found = readers(self.model, self.task.groups, self._left(self.alive.cpu().numpy()).channels)
        attenuate_(self.model, found, 0.0)

    def _left(self, alive: np.ndarray) -> Left:
        """What is left with these units. alive: (units,) bool."""
        return self.stripes.left(alive[self.stripes.unit], self._scores())

    def _needed(self) -> float:
        """The threshold that would meet the budget now."""
        return self.stripes.needed(self._scores(), self._channel_scores)

    def _scores(self) -> np.ndarray:
        return self.measure.strength().detach().double().cpu().numpy()

    def _channel_scores(self) -> list[np.ndarray]:
        return channel_scores(self.task)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _finish(self) -> Selection:
        try:
            scores, delta = self._scores(), self.config.delta
        finally:
            self.measure.finish_()
            for w in self.frozen:
                w.requires_grad_(True)
        if self.ceiling is not None:
            left, delta = self.stripes.left(self.stays.numpy(), scores, self._kept()), self.ceiling
        elif self.task.budget is not None:
            left, delta = self.stripes.select_within_budget(scores, self._channel_scores)
        else:
            alive = (scores >= delta)[self.stripes.unit]
            left = self.stripes.left(alive, scores, self.stripes.capped(self._channel_scores))
        selection = self.stripes.selection(left)
        kept = {name: torch.from_numpy(stays) for name, stays in selection.stripes.items()}
        restore_(self.model, self.sizes, kept, self.task.example_inputs)
        fixed = self.config.alpha is not None
        found = report(self.task, self.stripes, left, scores, self.config.delta, delta, self.alpha, fixed)
        for line in found.warnings:
            self.warn(line)
        for line in found.lines:
            self.log(line)
        for record in (*self.measured, found.record):
            self.task.note(**record)
        return selection

    # -- checkpoints -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        # With what follows from the network as it was, and from figures that another machine might round in another way.
        skeleton = self.measure if isinstance(self.measure, Skeleton) else None
        values, prior = (None, None) if skeleton is None else (skeleton.values.detach().clone(), skeleton.prior.clone())
        first = (self.measure.first, self.measure.pull) if isinstance(self.measure, Norms) else None
        base, needed = (None, None) if self.controller is None else (self.controller.base, self.controller.first)
        most = None if self.controller is None or self.controller.most == float("inf") else self.controller.most
        return {
            **super().state(), "measured": list(self.measured), "values": values, "prior": prior, "first": first,
            "start": self.start.clone(), "alive": self.alive.clone(), "stays": self.stays.clone(),
            "channels": self.channels.clone(), "ceiling": self.ceiling, "alpha": self.alpha, "needed": needed,
            "control": base, "most": most,
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        if isinstance(self.measure, Skeleton):
            self.measure.values.data.copy_(state["values"])
            self.measure.weigh_(state["prior"].to(self.measure.prior))
        elif isinstance(self.measure, Norms):
            self.measure.first, self.measure.pull = state["first"]
        self.start = state["start"].to(self.start)
        self.alive, self.whole, self._doomed = state["alive"].to(self.alive.device), bool(state["alive"].all()), None
        self.stays, self.channels = state["stays"].cpu(), state["channels"].cpu()
        self.alpha, self.ceiling = state["alpha"], state["ceiling"]
        for key in ("ceiling", "most"):
            if not isinstance(state[key], float | None):
                raise ValueError(f"{key!r} must be a number, not {state[key]!r}")
        self.measured = state["measured"]
        if not all(isinstance(record, dict) for record in self.measured):
            raise ValueError("'measured' must be entries of the history")
        if self.controller is not None:
            self.controller = self._controller(state["needed"])
            self.controller.base = state["control"]
            self.controller.most = float("inf") if state["most"] is None else state["most"]
