"""The run behind `secateurs redesign`: base, scaled, pruned, from scratch, one stage after another."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, field_validator

from secateurs.cli import options
from secateurs.cli.options import DataOptions, ModelOptions, say
from secateurs.cli.recipes import RedesignOptions, trained
from secateurs.cli.runs import RunFolder, write
from secateurs.errors import BudgetError
from secateurs.files import dump_json

if TYPE_CHECKING:
    import torch
    from torch import nn

    from secateurs import Budget, Cost, Data, Figures, Method, Result
    from secateurs.training import Recipe

PHASES = ("base", "scaled", "prune", "recover", "scratch")
BASE, SCALED, TABLE = "base.safetensors", "scaled.safetensors", "redesign.json"
PRUNED, SCRATCH = "pruned", "from-scratch"  # the artifacts
ROWS = ("base", "scaled", "re-design-pruned", "re-design-scratch")


class Row(BaseModel):
    """Cost and accuracy of one of the networks."""

    macs: int
    params: int
    top1: float | None
    top5: float | None
    loss: float | None


class Table(BaseModel):
    """`redesign.json`. widths: channels of the base, of the scaled network, of the one found."""

    rows: dict[Literal["base", "scaled", "re-design-pruned", "re-design-scratch"], Row]
    widths: dict[str, tuple[int, int, int]]
    error: float | None
    seconds: float

    @field_validator("rows")
    @classmethod
    def _complete(cls, rows: dict[str, Row]) -> dict[str, Row]:
        if missing := [name for name in ROWS if name not in rows]:
            raise ValueError(f"{missing[0]} is missing")
        return rows


@dataclass(frozen=True)
class Run:
    """One run: its settings, and its stages one after another."""

    spec: str
    widen: float
    macs: float
    align: int
    method: Method
    scope: Literal["internal", "all"]
    from_base: bool
    model: ModelOptions
    data: DataOptions
    train: RedesignOptions
    folder: RunFolder
    seed: int
    device: str | None
    track: Sequence[str]

    def record(self) -> dict[str, Any]:
        """All that the result depends on. A resumed run has to agree."""
        from secateurs.artifact import digest

        weights = self.model.weights
        return {
            "command": "redesign",
            "model": self.spec,
            "weights": None if weights is None else digest(weights),
            "num_classes": self.model.num_classes,
            **self.data.settings(),
            "method": {"name": self.method.name, **self.method.model_dump(mode="json")},
            "widen": self.widen,
            "macs": self.macs,
            "align": self.align,
            "scope": self.scope,
            "from_base": self.from_base,
            "train": asdict(self.train),
            "seed": self.seed,
        }

    def go(self, record: dict[str, Any], *, resume: bool, began: float) -> None:
        where = options.pick(self.device)
        data = self.data.load(self.seed, where)
        base, wide, budget, inputs = self._networks(data, where)
        self.folder.writable()
        if options.first():  # the others wait for it where training starts
            self.folder.begin(record, resume=resume)

        base = self._base(base, data, where, resume)
        wide = self._scaled(base, wide, inputs, data, where, resume)
        options.rewind(data)
        result = self._pruned(wide, inputs, budget, data, where, resume)
        rows = [_figures(base, inputs, data, where), result.before, result.after]
        card = {**result.card(), "data": self.data.record(data), "redesign": record, "seed": self.seed}
        self._save(PRUNED, result.model, result, card, began)

        small, history = self._scratch(result.model, data, where, resume)
        rows.append(_figures(small, inputs, data, where))
        nothing = {**asdict(rows[-1]), "top1": None, "top5": None, "loss": None}
        card = {**card, "cut": nothing, "after": asdict(rows[-1]), "error": None, "history": history}
        self._save(SCRATCH, small, result, card, began)
        if options.first():
            widths = self._widths(wide, result, inputs)
            table = {
                "rows": {name: asdict(figures) for name, figures in zip(ROWS, rows, strict=True)},
                "widths": widths,
                "error": result.error if result.plan.exact else None,
                "seconds": round(time.perf_counter() - began, 1),
            }
            write(self.folder.folder / TABLE, dump_json(table, indent=2))
            self.folder.finish(record)

    # -- before any work --------------------------------------------------------------------------------------------

    def _networks(self, data: Data, where: torch.device) -> tuple[nn.Module, nn.Module, Budget, torch.Tensor]:
        """The base, the wide network as it would be trained from scratch, the budget, an input. Whatever would make the
        run fail in the end is made to fail now."""
        import secateurs as sc
        from secateurs.methods import Task
        from secateurs.training.runtime import check_trackers

        check_trackers(self.track, self.folder.folder)
        base = self.model.build(self.spec, data, where, self.seed)
        inputs = options.example(data)
        options.trains(base, inputs, self.spec)
        if self.model.weights is None:
            base = sc.reinitialise(base, self.seed, keep_raw=True)
        fresh = replace(self.model, weights=None).build(self.spec, data, where, self.seed)
        wide = sc.widen(fresh, inputs, self.widen, scope=self.scope, seed=self.seed)
        wide = sc.reinitialise(wide, self.seed, keep_raw=True)
        options.trains(wide, inputs, f"{self.spec}, widened,")

        cost, scaled = sc.count(base, inputs), sc.count(wide, inputs)
        budget = self._budget(cost, scaled)
        task = Task(wide, sc.trace(wide, inputs), budget, self.scope, data, self.seed, inputs)
        widths = task.widths
        least = widths.cost(widths.least).macs if widths.groups else 0
        if widths.groups and least > budget.limits(scaled).macs:
            raise BudgetError(
                f"--macs {self.macs:g} ({budget.limits(scaled).macs:,} of the base's {cost.macs:,}) cannot be met: with "
                f"every channel cut that may be cut, the widened network has {least:,} left. The lowest figure that can "
                f"be met is --macs {least / cost.macs + 5e-5:.4f}; --scope all may allow less.{self._meaning()}"
            )
        options.feasible(self.method, task)
        say(
            f"{self.spec} has {cost.macs:,} MACs, {scaled.macs:,} when widened by {self.widen:g}, to be pruned to "
            f"{budget.limits(scaled).macs:,}"
        )
        return base, wide, budget, inputs

    def _budget(self, base: Cost, scaled: Cost) -> Budget:
        """The base's MACs, or that part of them, as a figure."""
        from secateurs import Budget

        asked = Budget(int(self.macs) if self.macs > 1 else self.macs, align=self.align)  # refuses what is no budget
        budget = Budget(asked.limits(base).macs, align=self.align)
        if asked.limits(base).macs >= scaled.macs:
            raise BudgetError(
                f"--macs {self.macs:g}: the widened network has {scaled.macs:,} MACs, and {asked.limits(base).macs:,} may "
                f"stay: there is nothing to prune. Widen it more, or give a lower --macs."
            )
        return budget

    def _meaning(self) -> str:
        """What --macs is, for who means a multiple of the base's."""
        return " (--macs is a share of the base's MACs up to 1, above that a figure.)" if self.macs > 1 else ""

    # -- the stages -------------------------------------------------------------------------------------------------

    def _base(self, base: nn.Module, data: Data, where: torch.device, resume: bool) -> nn.Module:
        if self.model.weights is not None:
            return base
        return self._trained(base, "base", BASE, self.train.recipe(data), data, where, resume)

    def _scaled(
        self, base: nn.Module, wide: nn.Module, inputs: torch.Tensor, data: Data, where: torch.device, resume: bool
    ) -> nn.Module:
        import secateurs as sc

        if self.from_base and not os.path.lexists(self.folder.folder / SCALED):
            wide = sc.widen(base, inputs, self.widen, scope=self.scope, seed=self.seed)
        return self._trained(wide, "scaled", SCALED, self.train.recipe(data), data, where, resume)

    def _pruned(
        self, wide: nn.Module, inputs: torch.Tensor, budget: Budget, data: Data, where: torch.device, resume: bool
    ) -> Result:
        import secateurs as sc

        return sc.prune(
            wide, inputs, self.method, budget, data, self.train.recovery(), self.scope, self.seed,
            report=say, folder=self.folder.folder, resume=resume, device=where, save_seconds=60, track=self.track,
        )  # fmt: skip

    def _scratch(
        self, small: nn.Module, data: Data, where: torch.device, resume: bool
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        import secateurs as sc
        from secateurs.training import CheckpointStore, Engine

        fresh = sc.reinitialise(small, self.seed, keep_raw=True)
        recipe, own = self.train.scratch(data), self.folder.folder / "scratch"
        if not recipe.epochs:
            return fresh, []
        _announce("the widths found, from scratch", recipe)
        options.rewind(data)
        history = Engine(
            fresh, data, recipe, seed=self.seed, device=where, folder=own, save_seconds=60, title="scratch",
            checkpoints=CheckpointStore(own / "checkpoints"), track=self.track,
        ).fit(resume=resume)  # fmt: skip
        return fresh, history

    def _trained(
        self, network: nn.Module, phase: str, name: str, recipe: Recipe, data: Data, where: torch.device, resume: bool
    ) -> nn.Module:
        file = self.folder.folder / name
        if not os.path.lexists(file):
            _announce("the base" if phase == "base" else "the widened network", recipe)
        options.rewind(data)
        return trained(
            network, data, recipe, self.folder, phase, file, seed=self.seed, device=where, resume=resume, track=self.track
        )  # fmt: skip

    # -- what is left -----------------------------------------------------------------------------------------------

    def _save(self, name: str, network: nn.Module, result: Result, card: dict[str, Any], began: float) -> None:
        from secateurs import artifact

        if options.first():
            seconds = round(time.perf_counter() - began, 1)
            artifact.save(self.folder.folder / name, network, result.plan, {**card, "seconds": seconds}, overwrite=True)

    def _widths(self, wide: nn.Module, result: Result, inputs: torch.Tensor) -> dict[str, list[int]]:
        """Layer → channels of the base, of the scaled network, of the one found."""
        import secateurs as sc

        grown = (result.source or {}).get("widen", [{}])[-1].get("before", {})
        found = {}
        for group in sc.trace(wide, inputs).groups:
            kept = result.plan.groups.get(group.name)
            if group.name in grown or kept is not None:
                found[group.name] = [
                    grown.get(group.name, group.size), group.size, group.size if kept is None else len(kept)
                ]  # fmt: skip
        return found


def _announce(what: str, recipe: Recipe) -> None:
    from secateurs.report import count

    say(f"training {what}, {count(recipe.epochs or 0, 'epoch')}")


def _figures(network: nn.Module, inputs: torch.Tensor, data: Data, where: torch.device) -> Figures:
    import secateurs as sc
    from secateurs import training

    cost = sc.count(network, inputs)
    if data.val is None:
        return sc.Figures(cost.macs, cost.params)
    found = training.evaluate(network.to(where), data.val, device=where)
    return sc.Figures(cost.macs, cost.params, found.top1, found.top5, found.loss)
