"""What a worker needs in addition to the cells, in a form that can be sent: how to build the network and the data, and the
settings.

Networks are sent as their spec and a safetensors file, in memory. A module without a spec is sent only between processes on one
machine, pickled in memory; nothing is pickled to disk.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from secateurs import artifact
from secateurs.artifact.provenance import rebuilt, source_of, spec_of
from secateurs.data import Data
from secateurs.errors import ConfigError, DataError, Setting
from secateurs.files import parse_tensors, read_bytes
from secateurs.importing import import_object
from secateurs.placement import Placement
from secateurs.runs.sources import DataSpec, NetworkSpec
from secateurs.studies.comparison.compute import Unit
from secateurs.tasks.purpose import Purpose
from secateurs.training import Phase

OWN = "python:"  # begins the name of a function that returns the data


@dataclass(frozen=True)
class Network:
    """A network: from a spec and a file of weights, from the record of `sc.build` and its weights, or a module."""

    spec: NetworkSpec | None = None
    source: Mapping[str, Any] | None = None
    module: nn.Module | None = None
    weights: bytes | None = None  # of the spec or the source; None: the spec's file is at hand
    frozen: frozenset[str] = frozenset()  # parameters of the source's network that are not to be trained
    suffix: str = ".safetensors"

    @classmethod
    def of(cls, given: str | nn.Module, weights: Path | None, num_classes: int | None, trust_code: bool) -> Network:
        """Raises ConfigError for a spec without weights, and for weights given with a module."""
        spec = NetworkSpec(given, weights, num_classes, trust_code)
        spec.open()  # raises for what cannot be found or read
        if isinstance(given, nn.Module):
            return cls(module=given)
        if not spec.has_weights and not given.startswith(OWN):
            raise ConfigError(
                f"{given} without ",
                Setting("weights"),
                " is untrained: its channels are all as good as another. Train it first: `secateurs prune` does, and keeps the "
                "trained network in its --out as pretrained.safetensors.",
            )
        return cls(spec=spec)

    @property
    def name(self) -> str:
        if self.spec is not None:
            return self.spec.name
        assert self.module is not None
        return spec_of(self.module) or type(self.module).__qualname__

    def digest(self) -> str | None:
        """The digest of its weights."""
        if self.module is not None:
            return artifact.weights_digest(self.module)
        return None if self.spec is None else self.spec.digest()

    def portable(self) -> Network:
        """The same network without a module or a path, if possible."""
        if self.spec is not None:
            if self.spec.is_artifact or self.spec.weights is None:
                return self
            weights = self.spec.weights
            return replace(self, weights=read_bytes(weights), suffix=weights.suffix)
        assert self.module is not None
        if spec_of(self.module) is None:
            return self
        state = {name: value.detach().cpu().clone().contiguous() for name, value in self.module.state_dict().items()}
        frozen = frozenset(name for name, p in self.module.named_parameters() if not p.requires_grad)
        return Network(source=source_of(self.module), weights=save(state), frozen=frozen)

    def build(self, data: Data, where: torch.device) -> nn.Module:
        """Return the network on a device. Raises DataError if it does not fit the data."""
        if self.module is not None:
            return Placement.of(self.module).working_copy(self.module, where)
        if self.source is not None:
            assert self.weights is not None
            model = rebuilt(artifact.Source.model_validate(dict(self.source)), trust_code=True)  # of this user's making
            model.load_state_dict(parse_tensors(self.weights, "the weights"))
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name not in self.frozen)
            return model.to(where).eval()
        assert self.spec is not None
        if self.weights is None:
            return self.spec.build(data, where).eval()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"weights{self.suffix}"
            file.write_bytes(self.weights)
            return replace(self.spec, weights=file).build(data, where).eval()


@dataclass(frozen=True)
class Work:
    """What all cells share.

    epochs: the compute of a cell, in training passes of the uncut network. options: passed to `prune`. searched: the share of
    the compute for a method's own training; None: the method's. targets: what the network's forward takes in training in
    addition to the inputs; None: those of the purpose.
    """

    network: Network
    inputs: Any
    data: DataSpec | Data | str
    purpose: Purpose
    recover: tuple[Phase, ...]
    epochs: float
    unit: Unit = "macs"
    search: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    progress: bool = False
    targets: Any = None

    def load(self, where: torch.device) -> Data:
        """Return the data. Raises DataError without validation data."""
        found = self.data
        if isinstance(found, str):
            found = Data.of(import_object(found.removeprefix(OWN), found)())
        elif isinstance(found, DataSpec):
            found = found.load(0, where, self.purpose.task)
        if found.val is None:
            raise DataError("A comparison measures accuracy: pass validation data, sc.Data(train=…, val=…).")
        return found

    def packed(self, *, away: bool) -> bytes:
        """Return it as bytes, for another process. away: on another machine.

        Raises ConfigError for what cannot be sent, with what to pass instead.
        """
        network = self.network.portable()
        if away and network.module is not None:
            raise ConfigError(
                Setting("workers", "ray"),
                f": other machines cannot be sent {network.name}, a module that was not made by sc.build. Pass a spec as the "
                "model, such as 'zoo:resnet20' or 'python:package.module:factory', with weights='FILE'.",
            )
        if away and isinstance(self.data, Data):
            raise ConfigError(
                Setting("workers", "ray"),
                ": other machines cannot be sent batches. Pass a spec as the data, such as 'folder:PATH', a sc.DataSpec, or "
                "'python:package.module:function', which returns sc.Data.",
            )
        whole = replace(self, network=network)
        for what, part, instead in (
            ("model", network, "a spec, such as 'python:package.module:factory'"),
            ("data", self.data, "a spec, such as 'folder:PATH' or 'python:package.module:function'"),
            ("loss, step, forward or metrics", self.purpose, "functions of a module"),
            ("options", (self.recover, self.options, self.inputs, self.targets), "names in place of functions"),
        ):
            check_sent(what, part, instead)
        return pickle.dumps(whole)

    @staticmethod
    def unpacked(packed: bytes) -> Work:
        """Restore what `packed` returned, in a process that the same user started."""
        found = pickle.loads(packed)
        assert isinstance(found, Work)
        return found


def check_sent(what: str, part: Any, instead: str) -> None:
    """Raise ConfigError for what cannot be sent to another process. instead: what to pass."""
    try:
        pickle.dumps(part)
    except Exception as error:  # whatever the objects' own code raises
        raise ConfigError(
            f"The {what} cannot be sent to other processes ({type(error).__name__}: {error}). Pass {instead}, or "
            "run all cells in this process (", Setting("processes", 1), ").",
        ) from error  # fmt: skip
