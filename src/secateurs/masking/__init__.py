"""Mask channels without changing the network's shape: the masked network of a plan, and gates."""

from secateurs.masking.gates import Gates
from secateurs.masking.mask import mask, masking

__all__ = ["Gates", "mask", "masking"]
