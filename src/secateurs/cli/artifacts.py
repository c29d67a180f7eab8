"""An artifact as the commands that run it need it: its network, the original beside it, and inputs for both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from secateurs.cli.options import Flag
from secateurs.cli.task import no_network, recorded
from secateurs.errors import ArtifactError

if TYPE_CHECKING:
    from torch import nn

    from secateurs import Data
    from secateurs.artifact import Card, Source
    from secateurs.runs import DataSpec


@Parameter(name="*")
@dataclass(frozen=True)
class ArtifactOptions:
    model: str | None = None
    """how to build the original network, if the artifact's card does not say"""
    num_classes: int | None = None
    """outputs of the network, with --model"""
    input: str | None = None
    """shape of one input, such as 3,224,224; by default what the network was pruned on"""
    trust_code: Flag = False
    """import and run the code that the artifact's card names"""


@dataclass(frozen=True)
class Opened:
    """An artifact that is read from disk."""

    folder: Path
    options: ArtifactOptions

    @cached_property
    def card(self) -> Card:
        from secateurs.artifact import read

        return read(self.folder)[1]

    @cached_property
    def source(self) -> Source:
        """How the original network is built."""
        from secateurs.artifact import Source

        if self.options.model is not None:
            return Source(spec=self.options.model, num_classes=self.options.num_classes)
        if self.card.source is None or self.card.source.spec is None:
            raise no_network(self.folder)
        return self.card.source

    @cached_property
    def network(self) -> nn.Module:
        """The pruned network, in eval mode."""
        import secateurs as sc

        if self.options.model is None:
            return sc.load(self.folder, trust_code=self._trusted)
        return sc.load(self.folder, self._fresh)

    @cached_property
    def original(self) -> nn.Module:
        """The network before any cut, in eval mode and in the pruned network's number formats. Its weights are not those that
        were pruned. They take the same time, except in a detector, whose time depends on the boxes that it finds."""
        from secateurs.placement import Placement

        fresh, placement = self._fresh, Placement.of(self.network)
        return placement.restore(fresh.to(placement.dtype))

    @cached_property
    def _fresh(self) -> nn.Module:
        """The network before any cut, as its spec builds it."""
        from secateurs.artifact import CARD, place
        from secateurs.artifact.provenance import rebuilt
        from secateurs.files import shown

        uncut = self.source.model_copy(update={"plans": [], "widen": []})
        try:
            return rebuilt(uncut, self._trusted).eval()
        except ArtifactError as error:
            if self.options.model is not None:
                raise
            raise error.within(f"{shown(place(self.folder, CARD))}: ") from error.__cause__

    @property
    def _trusted(self) -> bool:
        """What the user names is trusted."""
        return self.options.trust_code or self.options.model is not None

    def inputs(self) -> Any:
        """Noise of the shape that the network takes: as given, as the card records it, or what the network was designed for."""
        from secateurs.cli.inspect import default_shape, shape_of
        from secateurs.deploy.inputs import batch_of, batched, noise

        given, signature = self.options.input, self.card.signature
        if given is None and signature is not None and signature.inputs:
            try:
                inputs = noise(signature.examples())
            except ArtifactError as error:
                raise error.advised("--input gives the shape of one input.") from None
            return batched(inputs, 1 if batch_of(inputs) else None)
        shape = shape_of(given) if given else default_shape(str(self.source.spec), self.original, self.card)
        return noise(recorded(self.card, self.folder).blank(shape))

    def data(self, given: DataSpec) -> Data:
        """The data that the card names, or the given one."""
        import torch

        from secateurs.cli.evaluate import recorded_data

        return recorded_data(self.folder, self.card, given, torch.device("cpu"), self.options.trust_code)[1]
