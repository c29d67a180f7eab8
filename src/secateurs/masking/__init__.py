"""Channels silenced in a network of the old shape: the masked twin of a cut, and gates."""

from secateurs.masking.gates import Gates
from secateurs.masking.mask import mask

__all__ = ["Gates", "mask"]
