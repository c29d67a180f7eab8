"""AOFP: the settings, and the pruner that searches all layers at once while the network trains."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from secateurs.budget import Budget
from secateurs.devices import device_of
from secateurs.errors import ConfigError
from secateurs.graph import Cost
from secateurs.masking.gates import Gates
from secateurs.methods.aofp.scoring import Damage
from secateurs.methods.aofp.search import BinaryFilterSearch, Move
from secateurs.methods.criteria import norms
from secateurs.methods.method import Task
from secateurs.methods.pruner import Pruner, TrainingMethod
from secateurs.methods.registry import register
from secateurs.methods.select import select_within_budget
from secateurs.methods.selection import Selection
from secateurs.training import Recipe
from secateurs.training.seeds import mix


@register("aofp")
class AOFP(TrainingMethod):
    """Approximated oracle filter pruning (Ding et al., ICML 2019).

    While the network trains, a random half of each layer's search space is ablated for each batch, on a separate path
    that ends after the next layer, and the damage measured there is attributed to the ablated filters. After φ batches the
    less damaging half is pruned if its damage is below θ, else it becomes the search space.
    """

    search_cost: int | None = Field(
        default=None, ge=1, description="φ: batches per search step; default: a hundredth of the training"
    )
    theta: float = Field(default=0.01, ge=0, le=10, description="θ: damage below which filters are pruned")
    theta_growth: float = Field(
        2.0,
        ge=1,
        le=100,
        description="with a budget: the largest factor by which θ may grow in a full search; 1: θ is constant",
    )
    epochs: float = Field(
        4,
        gt=0,
        allow_inf_nan=False,
        description="maximum number of training epochs; training may stop earlier when the budget is met",
    )
    lr: float = Field(default=1e-3, gt=0, le=10, description="learning rate during the search, constant")
    weight_decay: float = Field(default=1e-4, ge=0, le=1, description="weight decay during the search")
    ratio: Literal["example", "batch"] = Field(
        default="example", description="t of eq. 7: mean of the examples' ratios (eq. 6), or ratio of the batch's sums"
    )
    warmup: int = Field(default=0, ge=0, description="batches before the search starts")
    stagger: bool = Field(
        default=False, description="start the layers' searches one after another, spread over φ batches"
    )
    min_filters: int = Field(default=1, ge=1, description="minimum number of filters that every layer keeps")
    patience: int = Field(
        default=1, ge=1, description="stop after this many sweeps of restarts in which no layer can be pruned"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(default="auto", description="as in a Recipe")

    def recipe(self) -> Recipe:
        return Recipe(
            epochs=self.epochs, lr=self.lr, schedule="constant", weight_decay=self.weight_decay, precision=self.precision
        )  # fmt: skip

    def attach(self, task: Task) -> AOFPPruner:
        return AOFPPruner(task, self)


class Pace:
    """Controls θ: θ grows while the cost is above a straight line to the budget, and shrinks, never below
    its initial value, while the cost is below it. By at most `growth` in a full search, since the effect of θ shows only
    after one."""

    ARRIVE = 0.9  # fraction of the training after which the budget should be met
    BAND = 0.02  # an excess of this or more counts in full

    def __init__(self, theta: float, growth: float, goal: float) -> None:
        self.theta, self.start, self.growth, self.goal = theta, theta, growth, goal

    def line(self, progress: float) -> float:
        """The fraction of the cost that should be left by then."""
        return 1.0 - (1.0 - self.goal) * min(1.0, progress / self.ARRIVE)

    def update(self, share: float, progress: float, steps: float) -> float:
        """θ after this fraction of a full search."""
        excess = max(-1.0, min(1.0, (share - self.line(progress)) / self.BAND))
        self.theta = min(max(self.start, 1.0), max(self.start, self.theta * self.growth ** (excess * steps)))
        return self.theta


class AOFPPruner(Pruner):
    """The pruner. Base masks are gates; damage is measured in the network's own forward passes."""

    def __init__(self, task: Task, config: AOFP) -> None:
        super().__init__(task)
        self.config, self.model = config, task.model
        self.widths = task.widths
        self.damage = Damage(self.model, task.groups, task.example_inputs, config.ratio)
        searched = set(self.damage.names)
        self.groups = [g for g in task.groups if g.name in searched]
        if not self.groups:
            reasons = "; ".join(f"{n}: {why}" for n, why in list(self.damage.reasons.items())[:3])
            raise ConfigError(f"aofp found no layer whose damage can be measured. {reasons or 'No group is prunable.'}")
        self.searches: dict[str, BinaryFilterSearch] = {}
        self.order: dict[str, np.ndarray] = {}  # the move that pruned each filter, 0 for none
        self.moves = 0
        self.idle: set[str] = set()  # layers whose search has restarted since the last pruning
        self.sweeps = 0  # full sweeps over the layers
        self.ended: str | None = None  # why the search ended
        self.record: list[dict[str, Any]] = []
        self._drawn: dict[str, np.ndarray] = {}
        self.gates = Gates(self.model, self.groups).attach()
        self.damage.attach()
        self._handle = self.model.register_forward_pre_hook(_Look(self.damage), with_kwargs=True)

    # -- set-up -------------------------------------------------------------------------------------------------

    def begin(self, total: int, epoch_steps: int) -> None:
        super().begin(total, epoch_steps)
        c = self.config
        self.cost = c.search_cost or max(1, total // 100)
        self.searches = {g.name: BinaryFilterSearch(g.size, self.cost, c.min_filters) for g in self.groups}
        self.order = {g.name: np.zeros(g.size) for g in self.groups}
        self.full_search = self.cost * max(1, math.ceil(math.log2(max(g.size for g in self.groups))))
        budget, base = self.task.budget, self.widths.base
        self.pace = Pace(c.theta, c.theta_growth, 1.0 if budget is None else _share(budget, budget.limits(base), base))
        names = [g.name for g in self.widths.groups]
        self.record = [
            {
                "event": "search", "groups": names, "sizes": self.widths.sizes.tolist(), "macs": int(base.macs),
                "params": int(base.params), "search_cost": self.cost, "theta": c.theta, "left_out": self.damage.reasons,
            }
        ]  # fmt: skip
        if budget is not None and self._fits(self._widths()):
            self.ended = "the budget is already met"
        self._draw()

    def _starts(self, position: int) -> int:
        """The step at which the search on the layer at this position starts."""
        late = position * (self.cost // len(self.groups)) if self.config.stagger else 0
        return self.config.warmup + late

    def _draw(self) -> None:
        """The filters to ablate for the next batch: a function of the seed, the step and the layer."""
        self._drawn = {}
        if self.ended is None:
            for i, (name, search) in enumerate(self.searches.items()):
                if search.live and self.steps >= self._starts(i):
                    seed = mix(self.task.seed, "aofp", self.steps, i)
                    self._drawn[name] = search.draw(torch.Generator().manual_seed(seed))
        self.damage.ablate(self._drawn)

    def _mask(self) -> None:
        """Set the base masks. There are no masks until something is pruned."""
        alive = np.concatenate([s.alive for s in self.searches.values()])
        self.gates.flat(None if alive.all() else torch.from_numpy(alive).to(device_of(self.model), torch.float32))

    # -- after each step ----------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        return super().done or self.ended is not None

    def advance(self) -> None:
        if self._drawn:
            found = self.damage.take(self.mean(self.damage.sums()))
            for name, ablated in self._drawn.items():
                self.searches[name].record(ablated, found.get(name, math.nan))
            self._finish_steps([name for name in self._drawn if self.searches[name].full])
            if self.task.budget is not None and self.ended is None:
                self.pace.update(self._share(self._widths()), self.steps / self.total, 1 / self.full_search)
        self._draw()

    def _finish_steps(self, full: list[str]) -> None:
        moves = {name: self.searches[name].finish(self.pace.theta) for name in full}
        pruned = sorted((n for n in full if moves[n].kind == "pruned"), key=lambda n: moves[n].worst)
        for name in pruned:  # least damaging first: the budget may be met before the last
            if self.ended is None:
                self._prune(name, moves[name])
        if pruned:
            self.idle.clear()
            self.sweeps = 0
            self._mask()
        else:
            self.idle.update(name for name in full if moves[name].kind == "restarted")
        live = {name for name, search in self.searches.items() if search.live}
        if full and live <= self.idle and self.ended is None:
            self._stall(bool(live))

    def _prune(self, name: str, move: Move) -> None:
        """One move. The last move is trimmed to the least damaging filters that the budget requires to be pruned."""
        self.moves += 1
        at = next(i for i, g in enumerate(self.widths.groups) if g.name == name)
        count, widths = len(move.picked), self._widths()
        if self.task.budget is not None:
            for k in range(1, count + 1):
                widths[at] = self.searches[name].width - k
                if self._fits(widths):
                    count, self.ended = k, "the budget is met"
                    break
        widths[at] = self.searches[name].width - count
        gone = move.picked[:count]
        self.searches[name].prune(gone)
        self.order[name][gone] = self.moves + np.arange(count) / count
        cost = self.widths.cost(widths)
        self.record.append(
            {
                "event": "move", "step": self.steps, "group": name, "count": count,
                "damage": float(move.damage[count - 1]), "theta": self.pace.theta, "widths": widths.tolist(),
                "macs": int(cost.macs), "params": int(cost.params),
            }
        )  # fmt: skip

    def _stall(self, live: bool) -> None:
        """Count a sweep in which no layer could be pruned."""
        self.idle.clear()
        self.sweeps += 1
        self.record.append({"event": "stall", "step": self.steps, "theta": self.pace.theta})
        if not live:
            self.ended = "every layer is down to its minimum number of filters"
        elif self.sweeps >= self.config.patience and (self.task.budget is None or self.config.theta_growth == 1):
            self.ended = (
                f"no layer has a filter left whose damage is below theta={self.pace.theta:g}; raise theta to prune more"
            )
        if self.ended is not None:
            self.log(f"aofp stops after {self.steps} of {self.total} steps: {self.ended}")

    # -- widths and the budget ----------------------------------------------------------------------------------------

    def _widths(self) -> np.ndarray:
        """The number of filters left in every prunable group."""
        return np.array([self._width(g.name, g.size) for g in self.widths.groups], dtype=np.int64)

    def _width(self, name: str, size: int) -> int:
        return self.searches[name].width if name in self.searches else size

    def _fits(self, widths: np.ndarray) -> bool:
        return self.widths.fits(self.widths.aligned(widths))

    def _share(self, widths: np.ndarray) -> float:
        assert self.task.budget is not None
        return _share(self.task.budget, self.widths.cost(self.widths.aligned(widths)), self.widths.base)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _finish(self) -> Selection:
        self._handle.remove()
        self.damage.detach()
        self.gates.detach()
        alive = {g.name: np.ones(g.size, dtype=bool) for g in self.widths.groups}
        alive |= {name: search.alive for name, search in self.searches.items()}
        selection = {name: np.flatnonzero(a) for name, a in alive.items()}
        budget, base = self.task.budget, self.widths.base
        forced = 0
        if budget is not None:
            widths = self.widths.aligned(self._widths())
            cost, limits = self.widths.cost(widths), budget.limits(base)
            met = self.widths.fits(widths)
            slack = [(limits.macs - cost.macs) / base.macs] if budget.macs is not None else []
            slack += [(limits.params - cost.params) / base.params] if budget.params is not None else []
            scores = self._scores()
            if met and min(slack) <= 0.01:
                best = {g.name: np.argsort(-scores[g.name], kind="stable") for g in self.widths.groups}
                selection = {g.name: np.sort(best[g.name][:w]) for g, w in zip(self.widths.groups, widths, strict=True)}
            else:
                selection = select_within_budget(self.widths, scores)
            forced = sum(int(a.sum() - a[selection[name]].sum()) for name, a in alive.items())
        widths = np.array([len(selection[g.name]) for g in self.widths.groups])
        kept = self.widths.cost(widths)
        self.record.append(
            {
                "event": "end", "step": self.steps, "moves": self.moves, "theta": self.pace.theta, "forced": forced,
                "reason": self.ended or "training finished",
                "widths": widths.tolist(), "macs": int(kept.macs), "params": int(kept.params),
            }
        )  # fmt: skip
        if forced:
            self.log(
                f"aofp: the search left {self._share(self._widths()):.1%} of the budgeted cost; {forced} more filters "
                f"were cut by their last measured damage to meet the budget (train longer or raise theta to search them, too)"
            )
        for entry in self.record:
            self.task.note(**entry)
        return Selection(selection)

    def _scores(self) -> dict[str, np.ndarray]:
        """Scores for the final trim to the budget. Filters left: the last measured damage per ablated filter; pruned filters:
        negative, higher for filters that were pruned later. Without a measurement, the norm of the weights decides."""
        seen = [s.latest[s.alive & np.isfinite(s.latest)] for s in self.searches.values()]
        typical = float(np.median(np.concatenate(seen))) if any(len(s) for s in seen) else 1.0
        found = {}
        for group in self.widths.groups:
            size = norms(group, self.model, 2).double().cpu().numpy()
            score = max(typical, 1e-12) * size / max(float(size.mean()), 1e-12)
            if group.name in self.searches:
                search, order = self.searches[group.name], self.order[group.name]
                score = np.where(np.isfinite(search.latest), search.latest, score)
                score = np.where(search.alive, score, order / (self.moves + 2) - 1)
            found[group.name] = score
        return found

    # -- checkpoints -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "searches": {name: search.state() for name, search in self.searches.items()},
            "order": {name: torch.from_numpy(order.copy()) for name, order in self.order.items()},
            "moves": self.moves, "idle": sorted(self.idle), "sweeps": self.sweeps, "ended": self.ended,
            "theta": self.pace.theta, "record": list(self.record),
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        for name, search in self.searches.items():
            search.load(state["searches"][name])
            self.order[name] = state["order"][name].cpu().numpy().copy()
        self.moves, self.idle, self.sweeps = state["moves"], set(state["idle"]), state["sweeps"]
        if not self.idle <= self.searches.keys() or not all(isinstance(line, dict) for line in state["record"]):
            raise ValueError("'idle' must name layers that are searched, and 'record' must hold dicts")
        if not isinstance(state["ended"], str | None):
            raise ValueError(f"'ended' must be a string, not {state['ended']!r}")
        self.ended, self.pace.theta, self.record = state["ended"], state["theta"], list(state["record"])
        self._mask()
        self._draw()


def _share(budget: Budget, cost: Cost, base: Cost) -> float:
    """The cost as a fraction of the original; the larger of MACs and parameters if both are limited."""
    shares = [cost.macs / base.macs] if budget.macs is not None else []
    shares += [cost.params / base.params] if budget.params is not None else []
    return max(shares)


class _Look:
    """Damage is measured in training passes only, not in evaluations during training."""

    def __init__(self, damage: Damage) -> None:
        self.damage = damage

    def __deepcopy__(self, memo: dict[int, Any]) -> _Look:
        return self

    def __call__(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        self.damage.active = model.training and torch.is_grad_enabled()
