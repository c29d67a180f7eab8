"""The blocks, by family. Importing them registers them."""

from fuzzing.blocks import (
    attention,
    borrowed,
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
    "borrowed",
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
