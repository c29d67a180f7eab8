"""NPN's pruner, which alternates between training the pruner network and both networks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs.artifact.history import warning
from secateurs.devices import device_of
from secateurs.masking.gates import Gates
from secateurs.methods.method import Task
from secateurs.methods.npn.calibration import calibrate
from secateurs.methods.npn.control import Controller, Pulls, Shares
from secateurs.methods.npn.network import PrunerNetwork, some_images
from secateurs.methods.npn.policy import Policy, initial
from secateurs.methods.npn.settings import Settings
from secateurs.methods.pruner import Pruner
from secateurs.methods.selection import Selection
from secateurs.report import count
from secateurs.training.eager import EagerHook
from secateurs.training.syncnorm import all_sum


class NPNPruner(Pruner):
    """The pruner. Gates are set in the main network's own forward, from the pruner network's output on the same inputs.

    In the search, until `sharpen`, gates are soft, and λ leads them to the budget. Then the channels that stay are fixed.
    """

    captures = True
    TURNS = 4  # in the search, at least: the pruner alone, both, …
    TRAVEL = 12.0  # how far the heads' learning rate moves a logit in the search if its gradient keeps its sign
    LINES = 20  # of the history, with the open share and the budget
    BINS = 20  # of the histograms of gates, between 0 and 1

    def __init__(self, task: Task, config: Settings) -> None:
        super().__init__(task)
        self.config, self.model = config, task.model
        self.groups, self.widths = task.groups, task.widths
        self.sizes = [g.size for g in self.groups]
        self.shares = Shares(self.widths)
        self.policy = Policy(self.widths, initial(self.groups, self.model, config.open, config.prior))
        self.network = PrunerNetwork(config.base(task), task.example_inputs, self.policy.initial, task.generator())
        trunk, heads = ([p for p in m.parameters() if p.requires_grad] for m in (self.network.net, self.network.heads))
        self.optimizer = torch.optim.Adam(  # its learning rates stay when the main network's is annealed
            [{"params": trunk, "lr": config.pruner_lr, "scheduled": False},
             {"params": heads, "lr": config.pruner_lr * (config.head_lr or 1.0), "scheduled": False}],
            betas=(0.8, 0.99),  # λ changes by orders of magnitude: old gradients are uninformative
        )  # fmt: skip
        self.networks = {"pruner": (self.network, self.optimizer)}
        self.search = self.turn = 1  # steps until the channels are fixed; of the pruner alone, or of both
        self.norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm)]
        self._frozen: set[_BatchNorm] = set()  # batch norms that are frozen temporarily
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.lam = config.lam or 1e-3
        self.controller = None if task.budget is None else Controller(self.lam, self.shares.goals)
        weights = np.ones(len(self.sizes)) if config.penalty == "count" else self.widths.prices()
        self.weights = torch.from_numpy(np.repeat(weights, self.sizes)).float().to(device_of(self.model))
        self.found: dict[str, Any] | None = None  # what the gates were when the channels were fixed
        self.record: list[dict[str, Any]] = []
        self._latest: Tensor | None = None  # of the last batch: see `Policy.update`
        self._gate: Tensor | None = None
        self._pulls = Pulls(self.weights)
        self.gates = Gates(self.model, self.groups).attach()
        # Before the gates' own hook, so that they are set when it runs.
        self._hook = EagerHook(self.model, self._set_gates, forget=self._forget)
        self._phase()

    # -- phases -------------------------------------------------------------------------------------------------------

    def begin(self, total: int, epoch_steps: int) -> None:
        super().begin(total, epoch_steps)
        self.search = max(1, round(self.config.sharpen * total))
        self.turn = max(1, min(self.epoch_steps, self.search // self.TURNS))
        if self.config.head_lr is None:
            self.optimizer.param_groups[1]["lr"] = min(0.5, self.TRAVEL / self.search)
        self._phase()

    @property
    def sharpness(self) -> float:
        """Scale a of the sigmoid 1 / (1 + exp(-a·x)), which drives gates to 0 and 1 at the end (sec. 4.1)."""
        if self.steps < self.search:
            return 1.0
        over = (self.steps - self.search) / max(1, self.total - self.search)
        return self.config.scale if self.config.schedule == "step" else self.config.scale ** min(1.0, over)

    @property
    def holding(self) -> bool:
        """Whether only the main network trains, with the channels that were fixed."""
        return self.config.hold and self.policy.kept is not None

    @property
    def alone(self) -> bool:
        """Whether only the pruner trains: in even turns, of an epoch at most; in odd ones both do (algorithm 1)."""
        return not self.holding and (self.steps // self.turn) % 2 == 0

    @property
    def _measuring(self) -> bool:
        """Whether the scale of λ is measured: in the first turn, before the network adapts to its gates, and until it is found;
        not if the user has set λ."""
        control = self.controller
        return control is not None and self.config.lam is None and (self.steps < self.turn or control.scale is None)

    def _phase(self) -> None:
        for p in self.trainable:
            p.requires_grad_(not self.alone)

    # -- the forward pass ---------------------------------------------------------------------------------------------

    def _set_gates(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if not self.gates.attached:
            return
        if model.training:
            self._freeze_norms(self.alone)
        if self.holding:
            self.gates.flat(self.policy.masked(torch.ones_like(self.weights)))
        elif model.training or self.config.gates == "sample":
            gate = self._gates_of(model.training, args, kwargs)
            self.gates.flat(self._pulls.by_loss(gate) if self._measuring and model.training else gate)
            self._gate = gate if model.training else None
        else:  # one policy, whatever the images
            logits = self.policy.logits.to(self.weights)
            self.gates.flat(self.policy.masked(torch.sigmoid(self.sharpness * logits)))

    def _forget(self) -> None:
        self._latest = self._gate = None
        self._pulls.sums.zero_()

    def _gates_of(self, training: bool, args: Any, kwargs: Any) -> Tensor:
        """The gates for these images: (channels,), or (N, channels) per sample."""
        self.network.train(training)
        self.gates.flat(None)
        part = self.wrapped.get("pruner")
        batch = self.config.gates == "batch"
        if batch:
            args, kwargs = some_images(args, kwargs, self.config.pruner_images)
        logits = (self.network if part is None else part.net)(*args, **kwargs).float()  # (N, channels)
        if training:
            rows = logits.detach()
            ones = torch.ones_like(rows[0])
            self._latest = torch.stack([rows.sum(0), (rows >= 0).to(rows).sum(0), len(rows) * ones])
        if batch:
            logits = self._batch_mean(logits) if training else logits.mean(0)
        return self.policy.masked(torch.sigmoid(self.sharpness * logits))

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
        """λ‖gates‖₁, the mean over the images of the batch (eq. 3), each gate weighted by what its channel costs."""
        if self._gate is None:
            return 0.0
        gate, self._gate = self._gate, None
        if self._measuring:
            gate = self._pulls.by_penalty(gate)
        rows = gate if gate.ndim == 2 else gate[None]
        return self.lam * (rows * self.weights).sum(1).mean()

    # -- after each step ----------------------------------------------------------------------------------------------

    def advance(self) -> None:
        pace = min(0.5, max(0.1, 10 / self.search))
        latest, sums = self._read()
        if latest is not None:
            self.policy.update(latest, pace)
        if self.controller is not None and sums is not None:
            typical = self._pulls.typical(sums, self.lam)
            if typical is not None:  # None: float16 overflowed, and the step was skipped
                self.controller.follow(typical, pace)
        if not self.holding:
            open = self.shares.of(self.policy.open(max(2.5, self.sharpness)))
            if self.controller is not None:
                self.lam = self.controller.update(open, self.steps / self.search, 1 / self.search)
            if self.steps % max(1, self.search // self.LINES) == 0 or self.steps == self.search:
                self._note(open)
        if self.steps >= self.search and self.found is None:
            self._fix()
        self._phase()

    def _read(self) -> tuple[Tensor | None, Tensor | None]:
        """What `Policy.update` and `Pulls.typical` take of the last step, on the CPU; None for what was not measured. Read at
        once: the next step's λ follows from it, so a GPU is waited for."""
        latest, self._latest = self._latest, None
        sums = self._pulls.sums if self._measuring else None
        found = [self.mean(x) for x in (latest, sums) if x is not None]
        read = torch.cat([x.flatten() for x in found]).cpu().split([x.numel() for x in found]) if found else ()
        parts = iter(read)
        one = None if latest is None else next(parts).view_as(latest)
        two = None if sums is None else next(parts).clone()
        if sums is not None:
            sums.zero_()
        return one, two

    def _note(self, open: list[float]) -> None:
        """A line of the history: under each limit, what is open, what would be left if the gates were decided now, and
        the target."""
        line: dict[str, Any] = {"event": "open", "step": self.steps, "lam": self.lam}
        decided = self.shares.of(self.policy.decided(self._threshold))
        for i, name in enumerate(self.shares.figures):
            line[name] = {"open": round(open[i], 4), "decided": round(decided[i], 4)}
            if self.controller is not None:
                line[name]["target"] = round(self.controller.targets(self.steps / self.search)[i], 4)
        line["histogram"] = self._histogram(self.policy.masked(torch.sigmoid(self.sharpness * self.policy.logits)))
        self.record.append(line)

    def _histogram(self, gates: Tensor) -> list[int]:
        """How many of these gates are in each of the bins between 0 and 1."""
        return [int(n) for n in torch.histc(gates.detach().float().cpu(), self.BINS, 0, 1)]

    @property
    def _threshold(self) -> float:
        """The threshold of a logit once the sigmoid is sharp."""
        t = self.config.threshold
        return math.log(t / (1 - t)) / self.config.scale

    def _fix(self) -> None:
        """Fix the channels that stay. What the gates have not closed by now is cut in their order."""
        policy, threshold = self.policy, self._threshold
        gate = torch.sigmoid(self.config.scale * policy.logits)
        undecided = ((gate > 0.1) & (gate < 0.9)).float().mean()
        disagree = torch.where(policy.logits >= 0, 1 - policy.above, policy.above).mean()
        decided = policy.decided(threshold)
        self.found = self._event(decided, undecided, disagree, policy.logits < threshold, gate)
        if self.task.budget is None and not self.config.hold:
            return
        policy.fix(threshold)
        names, shares, goals = list(self.shares.figures), self.shares.of(decided), self.shares.goals
        excess = max([s - g for s, g in zip(shares, goals, strict=False)], default=0.0)
        if not -0.1 <= excess <= 0.05:
            costs = [f"{s:.1%} of the {n} (budget {g:.1%})" for n, s, g in zip(names, shares, goals, strict=True)]
            self.found["short"] = True
            line = (
                f"npn: after its search of {count(self.steps, 'step')}, the open gates cost {' and '.join(costs)}. The order "
                "of the gates decides which channels stay; in a longer run (epochs=…) the gates do."
            )
            self.log(line)
            self.record.append(warning(line))  # noted at the end: checkpoints have the record

    def _event(
        self, widths: np.ndarray, undecided: Tensor, disagree: Tensor, closed: Tensor, gates: Tensor
    ) -> dict[str, Any]:
        """What the gates are: the share of the cost at these widths, before any trimming to the budget."""
        shares = {n: round(share, 4) for n, share in zip(self.shares.figures, self.shares.of(widths), strict=True)}
        return {
            "event": "gates", "step": self.steps,
            "undecided": round(float(undecided), 4), "disagree": round(float(disagree), 4),
            "lam": self.lam, "closed": int(closed.sum()), "of": len(closed), **shares,
            "short": self.found is not None and self.found["short"],
            "histograms": {g.name: self._histogram(part) for g, part in zip(self.groups, gates.split(self.sizes), strict=True)},
        }  # fmt: skip

    # -- the end ------------------------------------------------------------------------------------------------------

    def _finish(self) -> Selection:
        self._freeze_norms(False)
        policy = self.policy
        try:
            if self.found is None:  # training ended early
                self._fix()
            hold = self.config.hold or self.met
            gates = torch.ones_like(policy.logits) if hold else self._calibrate()
        finally:
            self._hook.remove()
            self.gates.detach()
            for p in self.trainable:
                p.requires_grad_(True)
        # A channel whose gate has closed since is dead: the budget does not bring it back.
        last = policy.split(policy.masked(gates))
        channels = policy.channels() if hold else policy.best(last, self.config.threshold)
        if self.task.budget is None and all(len(channels[g.name]) == g.size for g in self.groups):
            self.warn(f"npn closed no gates: raise lam={self.lam:g}, or train longer.")
        for entry in [*self.record, self.found]:
            assert entry is not None
            self.task.note(**entry)
        folded = policy.split(gates)
        for name, s in folded.items():  # exact: what is cut reads as zero
            s[np.setdiff1d(np.arange(len(s)), channels[name])] = 0
        self.gates.fold_({name: torch.from_numpy(s).float() for name, s in folded.items()})
        return Selection(channels)

    def _calibrate(self) -> Tensor:
        """(channels,) mean gates over calibration images. Notes the fraction of gates in (0.1, 0.9), and how often an image's
        gate is on the other side of the threshold from the mean."""
        limit, device = self.config.steps_per_epoch, device_of(self.model)
        logits = calibrate(self, self.network, self.config.calibration, per_epoch=limit, device=device)
        if self.config.gates == "batch":
            total = self.mean(torch.cat([logits.sum(0), logits.new_tensor([len(logits)])]))
            logits = (total[:-1] / total[-1]).expand_as(logits)
        gates = self.policy.masked(torch.sigmoid(self.sharpness * logits))  # (N, channels)
        count = self.mean(torch.tensor([float(len(gates))])).double()
        means = self.mean(gates.sum(0)) / count
        closed = means < self.config.threshold
        undecided = ((gates > 0.1) & (gates < 0.9)).double().mean(1).sum()
        disagree = ((gates < self.config.threshold) != closed).double().mean(1).sum()
        shares = self.mean(torch.stack([undecided, disagree])) / count
        widths = np.array([len(c) for c in self.policy.best(self.policy.split(means), self.config.threshold).values()])
        self.found = self._event(widths, shares[0], shares[1], closed, means)
        return means

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        control = None if self.controller is None else self.controller.base
        scale = None if self.controller is None else self.controller.scale
        return {
            **super().state(), **self.policy.state(), "lam": self.lam, "control": control,
            "scale": scale, "found": self.found, "record": list(self.record),
            "frozen": [i for i, norm in enumerate(self.norms) if norm in self._frozen],
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.policy.load(state)
        found, record = state["found"], list(state["record"])
        if not isinstance(found, dict | None) or not all(isinstance(line, dict) for line in record):
            raise ValueError("'found' must be a dict or None, and 'record' must hold dicts")
        if not all(type(i) is int and 0 <= i < len(self.norms) for i in state["frozen"]):
            raise ValueError(f"'frozen' must be indices of the {len(self.norms)} batch norms")
        if not isinstance(state["scale"], float | None):
            raise ValueError(f"'scale' must be a number, not {state['scale']!r}")
        self.lam, self.found, self.record = state["lam"], found, record
        self._frozen = {self.norms[i] for i in state["frozen"]}
        if self.controller is not None:
            self.controller.base, self.controller.scale = state["control"], state["scale"]
        self._phase()
