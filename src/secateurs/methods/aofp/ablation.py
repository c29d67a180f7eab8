"""What a pass ablates: for each group the same channels in all examples, or a half of its own for each example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secateurs.methods.aofp.halves import Halves

# One example in so many is scored if each has a half of its own: all filters of the search space, on half of the examples,
# are as much work as half of the filters on all of them.
EVERY = 2

Ablated = np.ndarray | Halves  # the same channels for all examples, or a half for each example


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that consumes a group's channels on an axis of its weight."""

    group: str
    layer: str
    index: np.ndarray  # (size, m): indices on the weight's axis
    inputs: np.ndarray  # (size, m'): indices on the input's channel axis
    linear: bool  # its forward is linear in its input, and it can be called on fewer channels

    @property
    def key(self) -> str:
        return f"{self.group}\n{self.layer}"

    @property
    def size(self) -> int:
        return len(self.index)


class Columns:
    """Where some of a group's filters are in a layer that reads them, on the layer's device.

    inputs: (k,) channels of the layer's input, sorted. owners: (k,) the position of each one's filter among the given ones.
    weights: (k',) indices on the weight's axis, sorted. space: (n,) the filters, None for all of the group.
    """

    def __init__(self, reader: Reader, filters: np.ndarray, device: torch.device) -> None:
        at = reader.inputs[filters]
        order = np.argsort(at.reshape(-1), kind="stable")
        self.size = reader.size
        self.inputs = there(at.reshape(-1)[order], device)
        self.owners = there(np.repeat(np.arange(len(at)), at.shape[1])[order], device)
        self.weights = there(np.sort(reader.index[filters].reshape(-1)), device)
        self.space = None if len(filters) == reader.size else there(filters, device)

    def whole(self, masks: Tensor) -> Tensor:
        """(rows, n) → (rows, size)."""
        if self.space is None:
            return masks
        found = masks.new_zeros(len(masks), self.size)
        found[:, self.space] = masks
        return found


class Ablation:
    """What is ablated, for the layers that read it (in the order in which they run).

    active: whether passes are measured. kept: for layers some of whose outputs will be cut, (outputs,) with 0 for those.
    """

    def __init__(self, readers: Iterable[Reader]) -> None:
        self.readers = list(readers)
        self.channels: dict[str, Ablated] = {}
        self.active = True
        self.kept: dict[str, Tensor] = {}
        self._masks: Tensor | None = None  # (rows, columns of all readers), if drawn before the pass
        ends = np.cumsum([r.size for r in self.readers])
        self._at = {r.key: slice(int(e) - r.size, int(e)) for r, e in zip(self.readers, ends, strict=True)}
        self._columns: dict[str, Columns] = {}

    def set(self, channels: Mapping[str, Ablated | Iterable[int]]) -> None:
        found = {n: c if isinstance(c, Halves) else np.asarray(c, dtype=np.int64) for n, c in channels.items()}
        self.channels = {n: c for n, c in found.items() if isinstance(c, Halves) or len(c)}

    def keep(self, masks: Mapping[str, np.ndarray], device: torch.device) -> None:
        """Set `kept`, in one transfer."""
        self.kept = {}
        if masks:
            flat = there(np.concatenate(list(masks.values())), device)
            self.kept = dict(zip(masks, flat.split([len(mask) for mask in masks.values()]), strict=True))

    def draw(self, examples: int, device: torch.device) -> None:
        """Draw the halves of the next passes, of so many examples, before them: the layers' work is then the same in every
        pass, so that it can be compiled. Groups that are not ablated have empty halves."""
        if not self._columns or next(iter(self._columns.values())).inputs.device != device:
            self._columns = {r.key: Columns(r, np.arange(r.size), device) for r in self.readers}
        masks = torch.zeros(_scored(examples), sum(r.size for r in self.readers), dtype=torch.bool)
        for reader in self.readers:
            if isinstance(halves := self.channels.get(reader.group), Halves):
                part = masks[:, self._at[reader.key]]
                part[:, torch.from_numpy(halves.space)] = halves.draw(len(masks))
        self._masks = there(masks, device)

    def undraw(self) -> None:
        """Draw the halves of the next passes in them, each layer its own."""
        self._masks = None

    def drawn(self, reader: Reader, x: Tensor) -> bool:
        """Whether what this layer ablates of its input x (N, C, *) was drawn before."""
        return self.active and self._masks is not None and len(self._masks) == _scored(len(x))

    def wants(self, reader: Reader, x: Tensor) -> bool:
        """Whether this layer is to be scored."""
        return self.drawn(reader, x) or (self.active and reader.group in self.channels)

    def of(self, reader: Reader, x: Tensor) -> tuple[Columns, Tensor | None]:
        """Some filters that a layer reads from x (N, C, *), and which of them each scored example ablates, (rows, n) bool;
        None: all examples ablate all of them."""
        if self.drawn(reader, x):
            assert self._masks is not None
            return self._columns[reader.key], self._masks[:, self._at[reader.key]]
        channels = self.channels[reader.group]
        if isinstance(channels, Halves):
            return Columns(reader, channels.space, x.device), there(channels.draw(_scored(len(x))), x.device)
        return Columns(reader, channels, x.device), None


def _scored(examples: int) -> int:
    return -(-examples // EVERY)


def there(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """On a device, without waiting for it."""
    return torch.as_tensor(values).to(device, non_blocking=True)
