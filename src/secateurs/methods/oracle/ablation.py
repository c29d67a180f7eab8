"""The loss of a network without some channels of one group, for many subsets of them."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.graph import ChannelGroup
from secateurs.graph.channels import parameter
from secateurs.graph.inputs import tensors
from secateurs.masking.gates import Gates
from secateurs.methods.assess import Assessor
from secateurs.methods.oracle.prefix import Held, Prefix
from secateurs.training import batches as B
from secateurs.training.metrics import Meter, Metrics
from secateurs.training.objective import Judged


def readers(model: nn.Module, group: ChannelGroup) -> list[nn.Module]:
    """The modules that own the group's consumers; a tied parameter has several owners."""
    read = {id(parameter(model, s.param)) for s in group.slots if s.consumes}
    return [m for m in model.modules() if any(id(p) in read for p in [*m._parameters.values(), *m._buffers.values()])]


class Ablation:
    """Evaluate masks of one group's channels: masks in, losses out. A context manager: it gates the assessor's model.

    The layers before the group's consumers run once per batch, not once per mask. `hold`: how many bytes of their outputs may
    be cached while nothing but this group's masks changes; either all batches are cached or none.
    """

    def __init__(self, assessor: Assessor, group: ChannelGroup, hold: int = 0) -> None:
        self.assessor, self.group = assessor, group
        self.gates = Gates(assessor.model, [group])
        self._held: list[Held] = []
        self._hold = hold

    def __enter__(self) -> Ablation:
        self.gates.attach()
        probe = self.assessor.moved(B.rows_of(self.assessor.batches[0], 0, 4))
        every = torch.ones(self.group.size, device=self.assessor.device)
        half = every.clone()
        half[::2] = 0
        self.prefix = Prefix(
            self.assessor.model,
            readers(self.assessor.model, self.group),
            lambda: self._compared(self._run(probe, every)),
            lambda: self._compared(self._run(probe, half)),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.prefix.close()
        self.gates.detach()
        self._held = []

    # -- measuring ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(self, masks: Tensor, batches: list[B.Batch] | None = None) -> Tensor:
        """For each mask (rows of (M, size), 1 = kept) the sums over all examples of the loss and of top-1 hits: (M, 2).

        batches: used instead of the assessor's; never cached.
        """
        masks = masks.to(self.assessor.device)
        sums = torch.zeros(len(masks), 2, dtype=torch.float64)
        for i, batch in enumerate(self.assessor.batches if batches is None else batches):
            first, held = self._prepare(i, batch, masks[0], batches is None)
            found = [first if first is not None else self._replay(held, batch, masks[0])]
            found += [self._replay(held, batch, mask) for mask in masks[1:]]
            sums += torch.stack(found).cpu().double()
        return sums

    @torch.no_grad()
    def on(self, index: int, mask: Tensor) -> Tensor:
        """The same for one mask and one of the assessor's batches: (2,) on the device."""
        batch, mask = self.assessor.batches[index], mask.to(self.assessor.device)
        first, held = self._prepare(index, batch, mask, True)
        found: Tensor = self._replay(held, batch, mask) if first is None else first
        return found

    def _prepare(self, i: int, batch: B.Batch, mask: Tensor, ours: bool) -> tuple[Any, Held]:
        """The outputs to replay on this batch; and the mask's result on it, if it had to be run for that."""
        if ours and self._held:
            return None, self._held[i]
        found, held = self.prefix.capture(lambda: self._run(batch, mask))
        if ours and i == 0 and self._hold:
            self._fill(held)
        return found, held

    def _fill(self, first: Held) -> None:
        """Cache all batches' prefix outputs if they are small enough."""
        batches = self.assessor.batches
        bytes_each = sum(x.untyped_storage().nbytes() for x in first.values())
        if bytes_each * len(batches) <= self._hold:
            every = torch.ones(self.group.size, device=self.assessor.device)
            rest = [self.prefix.capture(lambda b=b: self._run(b, every))[1] for b in batches[1:]]  # type: ignore[misc]
            self._held = [first, *rest]

    def _replay(self, held: Held, batch: B.Batch, mask: Tensor) -> Any:
        return self.prefix.replay(held, lambda: self._run(batch, mask))

    def _run(self, batch: B.Batch, mask: Tensor) -> Any:
        self.gates.flat(mask)
        return torch.stack(self.assessor.run(batch))

    def _compared(self, found: Any) -> Tensor:
        """What two runs with the same result have in common: the loss."""
        loss: Tensor = found[0]
        return loss


class Judging(Ablation):
    """Evaluates all figures that are measured of a network, in place of the loss."""

    def figures(self, masks: Tensor) -> list[Metrics]:
        """For each mask (rows of (M, size), 1 = kept) what is measured of the network."""
        with self, torch.no_grad():
            return self._figures(masks.to(self.assessor.device))

    def _figures(self, masks: Tensor) -> list[Metrics]:
        assessor = self.assessor
        loss, metrics = assessor.objective.loss, assessor.objective.metrics
        meters = [Meter(metrics, assessor.device, together=False, loss=loss) for _ in masks]
        for i, batch in enumerate(map(assessor.moved, assessor.batches)):
            first, held = self._prepare(i, batch, masks[0], False)
            meters[0].add(first, batch.rows)
            for meter, mask in zip(meters[1:], masks[1:], strict=True):
                meter.add(self._replay(held, batch, mask), batch.rows)
        found = [meter.metrics(None, 0.0) for meter in meters]
        return [metrics for metrics in found if metrics is not None]

    def _run(self, batch: B.Batch, mask: Tensor) -> Judged:
        self.gates.flat(mask)
        return self.assessor.judge(batch)

    def _compared(self, found: Judged) -> Tensor:
        every = [x.flatten().double() for x in tensors(found.outputs)]
        return torch.cat(every) if every else torch.full((1,), math.nan)  # which equals nothing
