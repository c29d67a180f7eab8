"""A pruned network on disk: `plan.json`, `model.safetensors`, `card.json`. No pickle; written atomically.

`card` defines the schema of a card, `folder` reads an artifact, `saving` writes one, `state` is what it holds of a network.
"""

from secateurs.artifact.card import Card, Earlier, Source, networks
from secateurs.artifact.fields import Figures, Latency
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
from secateurs.artifact.signature import InputRecord, Signature
from secateurs.artifact.state import check_state, weights_digest

__all__ = [
    "CARD",
    "MODEL",
    "NEW",
    "PLAN",
    "STAGED",
    "Card",
    "Earlier",
    "Figures",
    "InputRecord",
    "Latency",
    "Signature",
    "Source",
    "check_state",
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
    "weights_digest",
]
