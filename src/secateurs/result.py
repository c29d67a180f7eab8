"""The result of pruning: the network, its plan, its cost and its metrics."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs import artifact
from secateurs.artifact import Figures, Latency, Signature
from secateurs.artifact.history import rounds
from secateurs.calls import call, label
from secateurs.deploy import Bench, deployed
from secateurs.deploy.inputs import noise
from secateurs.errors import ArtifactError, ConfigError, a_or_an
from secateurs.methods.method import Method
from secateurs.methods.registry import about, registered
from secateurs.plans import Plan
from secateurs.plans.stripes import summary
from secateurs.plans.widths import layer_widths
from secateurs.report import modelcard, page
from secateurs.report.figures import formatted, heading
from secateurs.report.tables import notebook
from secateurs.version import __version__

__all__ = ["Figures", "Latency", "Result"]


def described(card: artifact.Card, command: str | None = None) -> str:
    """The text of an artifact's README.md. command: that made it; by default the call in Python is in its place."""
    method = registered(card.method.name)
    told = "" if method is None else about(method)
    return modelcard.text(card, command or call(card), told, "python" if command is None else "sh")


@dataclass(frozen=True, repr=False)
class Result:
    """What `prune` returns."""

    model: nn.Module  # the smaller network
    plan: Plan  # what is kept of the original
    before: Figures  # the original
    cut: Figures  # right after the cut
    calibrated: Figures  # after calibration; those of the cut if nothing was calibrated
    after: Figures  # after recovery
    error: float  # relative difference between the sliced and the masked network
    method: Method
    history: list[dict[str, Any]] = field(default_factory=list)  # the method's record, then one entry per epoch
    source: dict[str, Any] | None = None  # how to rebuild the unpruned model, if it came from `build`
    limits: dict[str, Any] | None = None  # what the user excluded, and how far groups could be cut; see `Limits`
    warnings: tuple[str, ...] = ()  # sentences: what you must know before you use the network
    signature: Signature | None = None  # how the network is called: its inputs, classes and preprocessing
    settings: dict[str, Any] = field(default_factory=dict)  # what else its card says: budget, scope, recovery, seed
    latency: Latency | None = None  # what was measured, where the budget limits it

    def __repr__(self) -> str:
        parts = [
            f"macs {self.before.macs:,} → {self.after.macs:,}",
            f"params {self.before.params:,} → {self.after.params:,}",
        ]
        if self.before.top1 is not None and self.after.top1 is not None:
            parts.append(f"top1 {self.before.top1:.2f} → {self.after.top1:.2f}")
        for name, value in self.after.metrics.items():
            show = formatted([self.before.metrics.get(name), value])
            parts.append(f"{heading(name)} {show(self.before.metrics.get(name))} → {show(value)}")
        if len(parts) == 2 and self.before.loss is not None and self.after.loss is not None:
            parts.append(f"loss {self.before.loss:.3f} → {self.after.loss:.3f}")
        if self.latency is not None:
            parts.append(f"ms {self.latency.before * 1000:.3g} → {self.latency.after * 1000:.3g}")
        return f"Result({self.method.name}: {', '.join(parts)}, error {self.error:.1e})"

    def _repr_html_(self) -> str:
        """The cost of each network on the way and what was measured of it, in a notebook."""
        return notebook(self.networks, self.method.name, self.error)

    @property
    def networks(self) -> list[tuple[str, Figures]]:
        """What each network on the way is called, and its figures, the original first; see `Card.networks`."""
        return artifact.networks((), self.before, rounds(self.history), self.cut, self.calibrated, self.after)

    def report(self, path: str | Path = page.NAME, *, bench: Bench | None = None, overwrite: bool = False) -> Path:
        """Write a report: one HTML page that needs no other file and no network, with the figures at each stage, the verified
        error, the widths, what the method has on record, and the training. Returns its path, by default in the working
        directory.

        bench: what `secateurs.bench` measured of the original and this network, to show it, too. overwrite: replace a file.

        Raises ConfigError without jinja2, for a file that exists or does not end in .html, and for a `bench` of another type;
        ArtifactError if it cannot be written.
        """
        page.check(path, overwrite=overwrite)
        if bench is not None and not isinstance(bench, Bench):
            raise ConfigError(
                f"bench is {a_or_an(type(bench).__name__)}: pass what sc.bench(model, result.model, inputs) returned, or leave "
                "it out."
            )
        run = page.Run.of(type(self.model).__name__, self.plan, self.card(), None if bench is None else bench.record())
        run.command, run.label = call(run.card), label(run.card)
        return page.write([run], path, overwrite=overwrite)

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Save as an artifact: plan.json, model.safetensors, card.json, and README.md, a model card for the Hugging Face Hub,
        to which the folder can be uploaded as it is. See `secateurs.load`. A README.md of your own is kept.

        overwrite: replace an existing artifact in the folder, atomically.

        Raises ArtifactError if the folder holds an artifact and `overwrite` is not set, or files with these names that
        are not an artifact's.
        """
        return artifact.save(folder, self.model, self.plan, self.card(), overwrite=overwrite, describe=described)

    def deploy(self, example_inputs: Any = None, *, seconds: float = 1.0) -> nn.Module:
        """A copy of the network for inference: an ordinary module that computes the same, faster. Branches are merged where the
        model's blocks offer it, batch norms are folded, and stripe kernels and the memory format chosen, as measured on the
        model's device for `seconds`. It must agree with the network to a relative 1e-4.

        example_inputs: what to compare and to measure on; by default noise of the shapes that the network was pruned on.

        Raises ArtifactError where those are not on record.
        """
        if example_inputs is None:
            try:
                example_inputs = noise((self.signature or artifact.Signature()).examples())
            except ArtifactError as error:
                raise error.advised("Pass example_inputs=….") from None
        return deployed(self.model, example_inputs, seconds=seconds)

    def card(self) -> dict[str, Any]:
        """The metadata that is saved with the network: JSON-serializable."""
        return {
            "source": self.source,
            "method": self.method.record(),
            "before": asdict(self.before),
            "cut": asdict(self.cut),
            "calibrated": asdict(self.calibrated),
            "after": asdict(self.after),
            "error": self.error,
            **({"warnings": list(self.warnings)} if self.warnings else {}),
            **({} if self.limits is None else {"limits": self.limits}),
            **({} if self.latency is None else {"latency": asdict(self.latency)}),
            **({} if self.signature is None else {"signature": self.signature.model_dump(mode="json")}),
            "stripes": summary(self.plan),
            "widths": layer_widths(self.model, self.plan),
            **self.settings,
            "history": self.history,
            "versions": {
                "secateurs": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
