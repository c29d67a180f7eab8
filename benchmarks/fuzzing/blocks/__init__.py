"""The blocks, by family. Importing them registers them."""

from fuzzing.blocks import (
    attention,
    combined,
    convolutions,
    gates,
    norms,
    parametrized,
    recurrent,
    residuals,
    sharing,
    spectral,
    splits,
    state,
    training,
    widths,
)

__all__ = [
    "attention",
    "combined",
    "convolutions",
    "gates",
    "norms",
    "parametrized",
    "recurrent",
    "residuals",
    "sharing",
    "spectral",
    "splits",
    "state",
    "training",
    "widths",
]
