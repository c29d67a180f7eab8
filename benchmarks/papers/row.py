"""The rows: what a paper says, and the settings of `secateurs prune` that should give it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from secateurs.grammar import terms
from secateurs.recovery.text import KINDS

HERE = Path(__file__).parent
ROWS, RESULTS = HERE / "rows", HERE / "results"
PROFILES = ("paper", "reduced")

# The reduced profile: a smaller network of the same kind on CIFAR-10, fewer images, an epoch or two of the method, and one of
# each phase of recovery.
IMAGES = {"train": 5000, "test": 2000}
KEPT = ("vgg16", "googlenet")  # as they are in the zoo; a ResNet is a ResNet-20
SHORT = {
    "aofp": {"epochs": 1, "lr": 0.005},
    "npn": {"epochs": 1},
    "pff": {"epochs": 2},
    "onestep": {"epochs": 0.5},
}


@dataclass(frozen=True)
class Row:
    """A row of a paper's table. figures: what the paper says. config: the options of `secateurs prune`."""

    name: str
    figures: Mapping[str, Any]
    config: Mapping[str, Any]

    @classmethod
    def of(cls, name: str) -> Row:
        return rows()[name]

    @property
    def phases(self) -> list[str]:
        """The phases of recovery, with their lengths: "mimic:15", or "none"."""
        return [term.name for term in terms(self.config["recover"], KINDS)]

    def settings(self, profile: str) -> dict[str, Any]:
        """The options in a profile."""
        if profile == "paper":
            return dict(self.config)
        method, network = self.config["method"], self.config["model"].rpartition(":")[2]
        network = network if network in KEPT else "resnet20"
        phases = [phase.partition(":")[0] for phase in self.phases]
        return {
            "model": f"zoo:{network}", "normalize": "cifar10", "method": method,
            **({"scope": self.config["scope"]} if "scope" in self.config else {}), "batch_size": 64,
            **({"set": SHORT[method]} if method in SHORT else {}), "macs": round(self.figures["macs"] / 100, 4),
            "recover": ",".join(phase if phase == "none" else f"{phase}:1" for phase in phases),
        }  # fmt: skip


def rows() -> dict[str, Row]:
    figures = yaml.safe_load((HERE / "figures.yaml").read_text())
    return {name: Row(name, f, yaml.safe_load((ROWS / f"{name}.yaml").read_text())) for name, f in figures.items()}
