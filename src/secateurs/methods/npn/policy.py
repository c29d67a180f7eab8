"""The policy: one logit for each channel of the network, the pruner's mean over images and recent batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.graph import ChannelGroup
from secateurs.methods.criteria import norms
from secateurs.methods.select import Widths, select_within_budget
from secateurs.methods.selection import Channels


def initial(groups: Sequence[ChannelGroup], model: nn.Module, open: float, prior: float) -> Tensor:
    """(channels,) initial logits: `open`, and more for channels of larger weights than others of their group. So the norms
    decide between channels that the search is too short to tell apart."""
    found = [torch.zeros(0, dtype=torch.float64)]
    for group in groups:
        size = norms(group, model, 2).double().cpu()
        found.append(open + prior * (size / size.mean().clamp(min=1e-12) - 1).clamp(-1, 1))
    return torch.cat(found).float()


class Policy:
    """The pruner's decision on the channels, independent of the image.

    logits: (channels,) over all groups in order. above: (channels,) how often an image's gate is open. kept: (channels,)
    1 for the channels that are fixed as kept, None before.
    """

    def __init__(self, widths: Widths, initial: Tensor) -> None:
        self.widths, self.initial = widths, initial
        self.sizes = [g.size for g in widths.groups]
        self.logits, self.above = initial.clone(), (initial >= 0).float()
        self.kept: Tensor | None = None
        self._there: Tensor | None = None  # the same where gates are

    def update(self, sums: Tensor, pace: float) -> None:
        """Follow a batch. sums: (3, channels), over its images: of the logits, of open gates, and of ones."""
        logits, above = (sums[:2] / sums[2]).to(self.logits)
        self.logits.lerp_(logits, pace)
        self.above.lerp_(above, pace)

    def masked(self, gate: Tensor) -> Tensor:
        """Gates (channels,) or (N, channels) with those of cut channels closed."""
        if self.kept is None:
            return gate
        if gate.device.type == "cpu":
            return gate * self.kept.to(gate)
        if self._there is None or self._there.dtype != gate.dtype:
            self._there = self.kept.to(gate)
        return gate * self._there

    # -- widths -------------------------------------------------------------------------------------------------------

    def open(self, slope: float) -> np.ndarray:
        """The open widths: (groups,). A gate near the threshold counts in part: so the cost changes before the gate has
        crossed it, and λ can react in time. slope: of the sigmoid at the threshold, as the network sees it or gentler."""
        full = torch.sigmoid(slope * self.initial.clamp(min=0))
        part = self.masked((torch.sigmoid(slope * self.logits) / full).clamp(max=1))
        widths = np.array([float(s.sum()) for s in part.split(self.sizes)])
        return self._allowed(widths - (self.widths.step - 1) / 2)  # the nearest alignment step, not the next

    def decided(self, threshold: float) -> np.ndarray:
        """The widths if exactly the gates below the threshold were closed: (groups,). threshold: of the logits."""
        above = self.masked((self.logits >= threshold).float())
        return self._allowed(np.array([int(s.sum()) for s in above.split(self.sizes)]))

    def _allowed(self, widths: np.ndarray) -> np.ndarray:
        """Not below the least; in whole steps if the budget has an alignment. Groups whose widths the user has set count as
        they are, so that λ closes them, too."""
        widths = np.where(self.widths.step > 1, self.widths.rounded(widths), widths)
        return np.maximum(widths, self.widths.least)

    # -- channels -----------------------------------------------------------------------------------------------------

    def fix(self, threshold: float) -> None:
        """Fix the channels that stay: the best within the budget, or without one those above the threshold."""
        budget = self.widths.budget is not None
        ranks = self.split(self.logits)
        channels = select_within_budget(self.widths, ranks) if budget else self.best(ranks, threshold)
        self.kept, self._there = torch.zeros_like(self.logits), None
        for group, kept in zip(self.widths.groups, self.kept.split(self.sizes), strict=True):
            kept[torch.from_numpy(channels[group.name])] = 1

    def best(self, scores: dict[str, np.ndarray], threshold: float) -> Channels:
        """The channels above the threshold; the best of a group in which they are too few, or do not fill an alignment step."""
        decided = np.array([int((s >= threshold).sum()) for s in scores.values()])
        widths = self.widths.aligned(np.maximum(decided, self.widths.least))
        best = {name: np.argsort(-s, kind="stable") for name, s in scores.items()}
        return {name: np.sort(order[:w]) for (name, order), w in zip(best.items(), widths, strict=True)}

    def channels(self) -> Channels:
        """The channels that are fixed as kept."""
        assert self.kept is not None
        return {name: np.flatnonzero(kept) for name, kept in self.split(self.kept).items()}

    def split(self, values: Tensor) -> dict[str, np.ndarray]:
        """(channels,) → by group, in double precision"""
        parts = values.double().cpu().split(self.sizes)
        return {g.name: part.numpy() for g, part in zip(self.widths.groups, parts, strict=True)}

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {"logits": self.logits, "above": self.above, "kept": self.kept}

    def load(self, state: dict[str, Any]) -> None:
        kept = state["kept"]
        if kept is not None and (not isinstance(kept, Tensor) or kept.shape != self.logits.shape):
            raise ValueError(f"'kept' must be a tensor of {len(self.logits)} values, or None")
        self.logits, self.above = state["logits"].cpu(), state["above"].cpu()
        self.kept, self._there = None if kept is None else kept.cpu(), None
