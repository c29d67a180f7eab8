"""A pruned network on disk: `plan.json`, `model.safetensors`, `card.json`. No pickle; written atomically.

`card` defines the schema of a card, `folder` reads an artifact, `saving` writes one, and `state` defines what it stores of a
network.
"""

from secateurs.artifact.card import Card, Earlier, Source, networks
from secateurs.artifact.fields import Figures, Latency
from secateurs.artifact.folder import (
    CARD,
    MODEL,
    NEW,
    PLAN,
    README,
    digest,
    exists,
    foreign,
    is_round,
    local,
    place,
    read,
    remove,
    restored,
)
from secateurs.artifact.hub import on_hub
from secateurs.artifact.saving import STAGED, save
from secateurs.artifact.signature import InputRecord, Signature
from secateurs.artifact.state import check_state, weights_digest
from secateurs.artifact.timings import TIMINGS, TargetRecord, Timings, read_timings, save_timings

__all__ = [
    "CARD",
    "MODEL",
    "NEW",
    "PLAN",
    "README",
    "STAGED",
    "TIMINGS",
    "Card",
    "Earlier",
    "Figures",
    "InputRecord",
    "Latency",
    "Signature",
    "Source",
    "TargetRecord",
    "Timings",
    "check_state",
    "digest",
    "exists",
    "foreign",
    "is_round",
    "local",
    "networks",
    "on_hub",
    "place",
    "read",
    "read_timings",
    "remove",
    "restored",
    "save",
    "save_timings",
    "weights_digest",
]
