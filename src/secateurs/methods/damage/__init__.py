"""Least-squares damage: what layers cannot make up for when channels that they read are cut."""

from secateurs.methods.damage.criterion import Damage

__all__ = ["Damage"]
