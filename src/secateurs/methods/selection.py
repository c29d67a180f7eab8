"""What a method answers: which channels and stripes stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secateurs.plans import Plan, PrunableGraph

Channels = dict[str, np.ndarray]  # group name → kept channels, sorted; groups left out stay whole


@dataclass(frozen=True)
class Selection:
    """What stays of a network.

    channels: group name → kept channels, sorted; groups left out stay whole.
    stripes: weight of a convolution → kept stripes, bools of shape (filters, rows, columns); weights left out keep all.
    nodes: names of feature maps that recovery should mimic, if it does.
    """

    channels: Mapping[str, Iterable[int]]
    stripes: Mapping[str, np.ndarray] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Selection | Mapping[str, Any]) -> Selection:
        """A selection as it is; kept channels by group as a selection of these."""
        return found if isinstance(found, cls) else cls(found)  # type: ignore[arg-type]

    def plan(self, graph: PrunableGraph, *, allow_inexact: bool = False) -> Plan:
        """The plan of this selection for the network of the graph. Raises PlanError as `graph.plan` does."""
        return graph.plan(self.channels, stripes=self.stripes, allow_inexact=allow_inexact)
