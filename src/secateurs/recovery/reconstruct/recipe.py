"""The settings of a reconstruction."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from secateurs.training.recipe import Phase


class Reconstruct(Phase):
    """Recovers accuracy without labels and without training: every layer that reads cut channels (or lost stripes) is solved
    by ridge least squares, in the order in which the network runs, from the inputs that the cut network gives it to the
    outputs that the original had. Two passes over the images serve all layers. See docs/recipes.md.
    """

    mode: ClassVar[str] = "reconstruct"

    images: int = Field(default=1024, ge=2, description="training images to solve from; labels are not read")
    positions: int = Field(default=12, ge=1, description="positions of each layer's output that are used of each image")
    ridge: float = Field(
        default=1e-3, gt=0, description="penalty on changes of the weights, relative to the inputs' mean square"
    )

    @property
    def reads_labels(self) -> bool:
        return False
