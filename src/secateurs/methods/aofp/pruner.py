"""AOFP's pruner: searches all layers at once while the network trains."""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import nn

from secateurs.devices import device_of
from secateurs.errors import ConfigError
from secateurs.graph.inputs import rows
from secateurs.masking.gates import Gates
from secateurs.methods.aofp.halves import Halves
from secateurs.methods.aofp.pace import Pace
from secateurs.methods.aofp.scoring import Damage
from secateurs.methods.aofp.search import BinaryFilterSearch, Move
from secateurs.methods.aofp.settings import Settings, limits
from secateurs.methods.criteria import norms
from secateurs.methods.method import Task
from secateurs.methods.pruner import Pruner
from secateurs.methods.select import select_within_budget
from secateurs.methods.selection import Selection
from secateurs.seeds import mix
from secateurs.training.eager import EagerHook

log = logging.getLogger("secateurs")

SAMPLES = 128  # halves in a search step, at least: each filter of the search space is ablated in 64 of them


class AOFPPruner(Pruner):
    """The pruner. Base masks are gates; damage is measured in the network's own forward passes."""

    def __init__(self, task: Task, config: Settings) -> None:
        super().__init__(task)
        self.config, self.model = config, task.model
        self.widths = limits(task, config.min_filters)
        self._at = {g.name: i for i, g in enumerate(self.widths.groups)}
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
        self.halves = 0  # that a batch gives each layer
        self.forced = 0  # filters that were cut to keep to the schedule
        self._drawn: dict[str, np.ndarray | Halves] = {}
        self._waiting: list[
            tuple[int, dict[str, np.ndarray | Halves], torch.Tensor]
        ] = []  # sums of steps, on the device
        self.gates = Gates(self.model, self.groups).attach()
        self.damage.attach()
        # The halves of a batch are of different widths.
        self.captures = config.halves == "example" and not self.damage.irregular
        if config.compile is True and self.damage.irregular:
            log.warning(
                "aofp's steps are not compiled: %s runs several times in a pass, or on other rows than the batch's",
                self.damage.irregular[0],
            )
        self._hook = EagerHook(self.model, self._look, forget=self._forget)

    # -- set-up -------------------------------------------------------------------------------------------------

    def begin(self, total: int, epoch_steps: int) -> None:
        super().begin(total, epoch_steps)
        c = self.config
        self.cost = c.search_cost or max(1, total // 100)
        samples = SAMPLES if c.search_cost is None else 1
        self.searches = {
            g.name: BinaryFilterSearch(g.size, self.cost, int(self.widths.least[self._at[g.name]]), samples)
            for g in self.groups
        }
        self.order = {g.name: np.zeros(g.size) for g in self.groups}
        budget, base = self.task.budget, self.widths.base
        goal = budget.shares(budget.limits(base), base) if budget else {}
        self.pace = Pace(c.theta, c.theta_growth, goal, self._starts(len(self.groups) - 1), total)
        names = [g.name for g in self.widths.groups]
        self.record = [
            {
                "event": "search", "groups": names, "sizes": self.widths.sizes.tolist(), "macs": int(base.macs),
                "params": int(base.params), "search_cost": self.cost, "theta": c.theta, "left_out": self.damage.reasons,
            }
        ]  # fmt: skip
        if budget is not None and self._fits(self._widths()):
            self.ended = "the budget is already met"
        elif (first := self._starts(0) + self.cost) > total:
            log.warning(
                "aofp: the first step of the search takes %d batches (search_cost=%d, warmup=%d), and the training has %d, so "
                "nothing will be searched", first, self.cost, c.warmup, total,
            )  # fmt: skip
        self._draw()

    @property
    def full_search(self) -> int:
        """Batches from a layer's whole search space to a single filter, in the largest layer."""
        step = max(self.cost, *(-(-s.samples // max(1, self.halves)) for s in self.searches.values()))
        return step * max(1, math.ceil(math.log2(max(g.size for g in self.groups))))

    def _starts(self, position: int) -> int:
        """The step at which the search on the layer at this position starts."""
        late = position * (self.cost // len(self.groups)) if self.config.stagger else 0
        return self.config.warmup + late

    def _draw(self) -> None:
        """What to ablate in the next batch: a function of the seed, the step and the layer."""
        self._drawn = {}
        if self.ended is None:
            for i, (name, search) in enumerate(self.searches.items()):
                if search.live and self.steps >= self._starts(i):
                    seed = mix(self.task.seed, "aofp", self.steps, i)
                    if self.config.halves == "batch":
                        self._drawn[name] = search.draw(torch.Generator().manual_seed(seed))
                    else:
                        self._drawn[name] = Halves(search.space, search.half, seed, self.rank, self.processes)
        self.damage.ablate(self._drawn)

    def _mask(self, *, always: bool = False) -> None:
        """Set the base masks. There are no masks until something is pruned, unless always."""
        alive = {name: search.alive for name, search in self.searches.items()}
        whole, masked = np.concatenate(list(alive.values())), always or not all(a.all() for a in alive.values())
        self.gates.flat(torch.from_numpy(whole).to(device_of(self.model), torch.float32) if masked else None)
        self.damage.keep(alive if masked else None)

    def _look(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        """Damage is measured in training passes only, not in evaluations during training."""
        ablation = self.damage.ablation
        ablation.active = model.training and torch.is_grad_enabled()
        if not self._hook.compiled:
            ablation.undraw()
            return
        # All that changes from step to step is in tensors of the same shapes.
        ablation.draw(rows((args, kwargs)), device_of(self.model))
        if not self.gates.gated:
            self._mask(always=True)

    def _forget(self) -> None:
        self._mask()
        self._draw()

    # -- after each step ----------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        return super().done or self.ended is not None

    def advance(self) -> None:
        if self._drawn:
            self._waiting.append((self.steps, self._drawn, self.mean(self.damage.sums()) * self.processes))
            if self._may_finish():
                self._settle()
        self._draw()

    def _may_finish(self) -> bool:
        """Whether a step of a search may be complete. Otherwise what was measured is not read yet, and no GPU waited for."""
        waiting = Counter(name for _, drawn, _ in self._waiting for name in drawn)
        on_cpu = self._waiting[-1][2].device.type == "cpu"
        return on_cpu or any(self.searches[name].batches + n >= self.cost for name, n in waiting.items())

    def _settle(self) -> None:
        """Record what was measured in the steps that wait."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        read = torch.cat([sums for _, _, sums in waiting]).cpu().split([len(sums) for _, _, sums in waiting])
        for (step, drawn, _), sums in zip(waiting, read, strict=True):
            self._record(step, drawn, sums)

    def _record(self, step: int, drawn: dict[str, np.ndarray | Halves], sums: torch.Tensor) -> None:
        """Record what was measured in a step."""
        taken, samples = self.damage.take(sums, drawn), self.damage.samples(sums, drawn)
        halves = self.damage.halves(sums, drawn)
        for name, ablated in drawn.items():
            search = self.searches[name]
            if isinstance(ablated, Halves):
                none = np.zeros(len(search.alive))
                search.add(*samples.get(name, (none, none)), max(1, halves.get(name, 0)))
            else:
                search.record(ablated, taken.get(name, math.nan))
        self.halves = max(1, min(halves.values(), default=1))
        full = [name for name in drawn if self.searches[name].full]
        self._finish_steps(full)
        if self.task.budget is not None and self.ended is None:
            if full:
                self._catch_up()
            self.pace.update(self._shares(self._widths()), step, 1 / self.full_search)

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
        at, count, widths = self._at[name], len(move.picked), self._widths()
        if not self.widths.shrinking(widths)[at] and self.task.budget is not None:
            return  # what is still to be cut is in other layers, whose widths the user has set
        self.moves += 1
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

    def _catch_up(self) -> None:
        """Cut what the schedule requires and the search has not picked."""
        widths = self._widths()

        def due() -> bool:
            return self.pace.due(self._shares(widths), self.steps, self.full_search) > 0

        scores = self._scores() if due() else {}
        known = [(n, j) for n, s in self.searches.items() for j in np.flatnonzero(s.alive & np.isfinite(s.latest))]
        gone: dict[str, list[int]] = {}
        for name, j in sorted(known, key=lambda at: scores[at[0]][at[1]]) if scores else ():
            at = self._at[name]
            if widths[at] > self.searches[name].least and self.widths.shrinking(widths)[at]:
                widths[at] -= 1
                gone.setdefault(name, []).append(int(j))
                if self._fits(widths):
                    self.ended = "the budget is met"
                if self.ended or not due():
                    break
        if not gone:
            return
        self.moves += 1
        for name, filters in gone.items():
            self.searches[name].drop(np.array(filters))
            self.order[name][filters] = self.moves + np.arange(len(filters)) / len(filters)
        self.idle.clear()
        self.sweeps = 0
        self._mask()
        count, cost = sum(map(len, gone.values())), self.widths.cost(widths)
        self.forced += count
        self.record.append(
            {
                "event": "forced", "step": self.steps, "count": count, "widths": widths.tolist(),
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
        return not self.widths.shrinking(widths).any()

    def _shares(self, widths: np.ndarray) -> dict[str, float]:
        """What is left of the cost. Layers whose widths the user has set count as they are, so that θ follows them, too."""
        if self.task.budget is None:
            return {}
        widths = np.maximum(self.widths.rounded(widths), self.widths.least)
        return self.task.budget.shares(self.widths.cost(widths), self.widths.base)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _finish(self) -> Selection:
        self._settle()
        self._hook.remove()
        self.damage.detach()
        self.gates.detach()
        alive = {g.name: np.ones(g.size, dtype=bool) for g in self.widths.groups}
        alive |= {name: search.alive for name, search in self.searches.items()}
        widths, scores = self.widths.aligned(self._widths()), self._scores()
        slack = [self.pace.goal[name] - share for name, share in self._shares(widths).items()]
        if self.widths.fits(widths) and min(slack, default=0.0) <= 0.01:
            best = {g.name: np.argsort(-scores[g.name], kind="stable") for g in self.widths.groups}
            selection = {g.name: np.sort(best[g.name][:w]) for g, w in zip(self.widths.groups, widths, strict=True)}
        else:
            selection = select_within_budget(self.widths, scores)
        trimmed = sum(int(a.sum() - a[selection[name]].sum()) for name, a in alive.items())
        widths = np.array([len(selection[g.name]) for g in self.widths.groups])
        kept = self.widths.cost(widths)
        self.record.append(
            {
                "event": "end", "step": self.steps, "moves": self.moves, "theta": self.pace.theta,
                "forced": self.forced + trimmed, "reason": self.ended or "training finished",
                "widths": widths.tolist(), "macs": int(kept.macs), "params": int(kept.params),
            }
        )  # fmt: skip
        measured = any(np.isfinite(s.latest).any() for s in self.searches.values())
        if not self.moves and not trimmed and self.task.budget is None:
            none = f"no layer has a filter whose damage is below theta={self.pace.theta:g}: raise theta"
            short = f"no step of the search was complete: train longer, or lower search_cost={self.cost}"
            self.warn(f"aofp pruned no filters, since {none if measured else short}.")
        if trimmed and self.task.budget is not None:
            left = " and ".join(
                f"{share:.1%} of the {name} (budget {self.pace.goal[name]:.1%})"
                for name, share in self._shares(self._widths()).items()
            )
            by = "last measured damage" if measured else "norms, since no step of the search was complete,"
            self.warn(
                f"aofp: the search left {left}. {trimmed} more filters were cut by their {by} to meet the budget: train longer "
                "or raise theta to search them, too."
            )
        for entry in self.record:
            self.task.note(**entry)
        return Selection(selection)

    def _scores(self) -> dict[str, np.ndarray]:
        """Scores for cuts that the search has not picked. Filters left: the damage that their layer would have taken, which
        balances the layers. Pruned filters: negative, higher for filters that were pruned later. Without a measurement, the
        norm of the weights decides."""
        seen = [s.latest[s.alive & np.isfinite(s.latest)] for s in self.searches.values()]
        typical = float(np.median(np.concatenate(seen))) if any(len(s) for s in seen) else 1.0
        found = {}
        for group in self.widths.groups:
            size = norms(group, self.model, 2).double().cpu().numpy()
            damage = max(typical, 1e-12) * size / max(float(size.mean()), 1e-12)
            search = self.searches.get(group.name) or BinaryFilterSearch(group.size, 1)
            score = search.toll(np.where(np.isfinite(search.latest), search.latest, damage))
            if group.name in self.order:
                score = np.where(search.alive, score, self.order[group.name] / (self.moves + 2) - 1)
            found[group.name] = score
        return found

    # -- checkpoints -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        self._settle()
        return {
            **super().state(),
            "searches": {name: search.state() for name, search in self.searches.items()},
            "order": {name: torch.from_numpy(order.copy()) for name, order in self.order.items()},
            "moves": self.moves, "forced": self.forced, "halves": self.halves,
            "idle": sorted(self.idle), "sweeps": self.sweeps, "ended": self.ended,
            "theta": self.pace.theta, "record": list(self.record),
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        for name, search in self.searches.items():
            search.load(state["searches"][name])
            self.order[name] = state["order"][name].cpu().numpy().copy()
        self.moves, self.forced, self.halves = state["moves"], state["forced"], state["halves"]
        self.idle, self.sweeps = set(state["idle"]), state["sweeps"]
        if not self.idle <= self.searches.keys() or not all(isinstance(line, dict) for line in state["record"]):
            raise ValueError("'idle' must name layers that are searched, and 'record' must hold dicts")
        if not isinstance(state["ended"], str | None):
            raise ValueError(f"'ended' must be a string, not {state['ended']!r}")
        self._waiting = []
        self.ended, self.pace.theta, self.record = state["ended"], state["theta"], list(state["record"])
        self._mask()
        self._draw()
