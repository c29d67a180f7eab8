"""Reconstruction: layers solved by least squares to the original's outputs, without labels."""

from secateurs.recovery.reconstruct.phase import reconstruct
from secateurs.recovery.reconstruct.recipe import Reconstruct

__all__ = ["Reconstruct", "reconstruct"]
