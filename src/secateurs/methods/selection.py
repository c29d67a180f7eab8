"""What a method returns: the channels and stripes to keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secateurs.data.structure import kind_of
from secateurs.errors import ConfigError
from secateurs.graph.channels import by_name
from secateurs.plans import Plan, PrunableGraph

Channels = dict[str, np.ndarray]  # group name → kept channels, sorted; groups left out stay whole


@dataclass(frozen=True)
class Selection:
    """What to keep of a network.

    channels: group name → kept channels, sorted; groups left out stay whole.
    stripes: weight of a convolution → kept stripes, bools of shape (filters, *kernel); weights left out keep all.
    nodes: names of feature maps for recovery by mimicking.
    """

    channels: Mapping[str, Iterable[int]]
    stripes: Mapping[str, np.ndarray] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Selection | Mapping[str, Any], whose: str = "select") -> Selection:
        """Convert kept channels by group to a selection; a selection is returned as is. whose: the function that returned it.

        Raises ConfigError for anything else.
        """
        if isinstance(found, cls):
            return found
        if not isinstance(found, Mapping):
            raise ConfigError(
                f"{whose} must return the channels to keep, {{group name: indices}}, or a Selection, not {kind_of(found)}."
            )
        return cls(by_name(found))

    def plan(self, graph: PrunableGraph, *, allow_inexact: bool = False) -> Plan:
        """The plan of this selection for the network of the graph. Raises PlanError as `graph.plan` does."""
        return graph.plan(self.channels, stripes=self.stripes, allow_inexact=allow_inexact)
