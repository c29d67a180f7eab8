"""A pruned network on disk: `plan.json`, `model.safetensors`, `card.json`. No pickle; written atomically.

`card` defines the schema of a card, `folder` reads an artifact, `saving` writes one.
"""

from secateurs.artifact.card import Card, Earlier, Source, networks
from secateurs.artifact.fields import Figures
from secateurs.artifact.folder import (
    CARD,
    MODEL,
    NEW,
    PLAN,
    digest,
    exists,
    foreign,
    is_round,
    place,
    read,
    remove,
    restored,
)
from secateurs.artifact.saving import STAGED, save

__all__ = [
    "CARD",
    "MODEL",
    "NEW",
    "PLAN",
    "STAGED",
    "Card",
    "Earlier",
    "Figures",
    "Source",
    "digest",
    "exists",
    "foreign",
    "is_round",
    "networks",
    "place",
    "read",
    "remove",
    "restored",
    "save",
]
