"""The rows: what a paper says, and the settings of `secateurs prune` that should give it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROWS, RESULTS = HERE / "rows", HERE / "results"
PROFILES = ("paper", "reduced")

# The reduced profile: a smaller network of the same kind, fewer images, and what the method and recovery do in two epochs.
IMAGES = {"train": 5000, "test": 2000}
SMALLER = {"zoo:resnet56": "zoo:resnet20", "zoo:resnet110": "zoo:resnet20"}
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

    def settings(self, profile: str) -> dict[str, Any]:
        """The options in a profile. Raises ValueError for a row that has none there."""
        if profile == "paper":
            return dict(self.config)
        if self.figures["data"] != "CIFAR-10":
            raise ValueError(f"{self.name} is on {self.figures['data']}: the reduced profile is for CIFAR-10.")
        method, model = self.config["method"], self.config["model"]
        kept = {k: self.config[k] for k in ("normalize", "method", "scope") if k in self.config}
        return {
            "model": SMALLER.get(model, model), **kept, "batch_size": 64,
            **({"set": SHORT[method]} if method in SHORT else {}),
            "macs": round(self.figures["macs"] / 100, 4), "recover": "none" if method == "pff" else "finetune:1",
        }  # fmt: skip


def rows() -> dict[str, Row]:
    figures = yaml.safe_load((HERE / "figures.yaml").read_text())
    return {name: Row(name, f, yaml.safe_load((ROWS / f"{name}.yaml").read_text())) for name, f in figures.items()}
