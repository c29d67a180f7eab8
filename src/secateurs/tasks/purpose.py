"""What a network is for: a task, and the user's own functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from secateurs.data import Data
from secateurs.data.structure import leaves
from secateurs.devices import device_of
from secateurs.errors import ConfigError, DataError, SecateursError, Setting
from secateurs.graph.copies import copied
from secateurs.graph.faults import described, fault
from secateurs.graph.inputs import call
from secateurs.graph.modes import evaluating
from secateurs.seeds import preserve_rng_state
from secateurs.tasks import Classification, VisionTask, resolve
from secateurs.tasks.task import of_example
from secateurs.training import CrossEntropy
from secateurs.training import batches as B
from secateurs.training.checks import Check
from secateurs.training.losses import Loss
from secateurs.training.objective import Forward, Objective, Step

OTHER = ("give the data that the network is for, or a network that is made for so many classes.",)


@dataclass(frozen=True)
class Purpose:
    """A task, and functions of the user's own, which replace the task's.

    named: whether the user named the task, or it is the default.
    """

    task: VisionTask = field(default_factory=Classification)
    named: bool = False
    loss: Loss | None = None
    step: Step | None = None
    forward: Forward | None = None
    metrics: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls, task: str | VisionTask | None, loss: Loss | None = None, step: Step | None = None,
        forward: Forward | None = None, metrics: Mapping[str, Any] | None = None,
    ) -> Purpose:  # fmt: skip
        """Raises ConfigError for a task that there is not, and for what are no functions."""
        found = cls(resolve(task), task is not None, loss, step, forward, metrics)
        _ = found.base
        return found

    @property
    def given(self) -> dict[str, Any]:
        """The user's own functions."""
        found = {"loss": self.loss, "step": self.step, "forward": self.forward, "metrics": self.metrics}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def base(self) -> Objective:
        """How the network meets a batch, without the metrics of the task."""
        return Objective(**{**self.task.functions(), **self.given})

    @property
    def _known(self) -> bool:
        """Whether the outputs must be the task's: functions of the user's own may take any, unless a task is named."""
        return self.named or not (self.base.whole or self.base.loss is not None)

    def objective(self, network: nn.Module, inputs: Any, measured: bool = True) -> Objective:
        """The same with the metrics of the task, if they are `measured` and the user has none. inputs: those of one example.

        Raises DataError for a network of another task.
        """
        if not self._known:
            return self.base
        return self.task.fitted(self.base, network, inputs, measured and self.metrics is None)

    def check_measured(self, data: Data | None) -> None:
        """Raise ConfigError for metrics of the user's own that nothing measures."""
        if self.metrics and (data is None or data.val is None):
            raise ConfigError(
                Setting("metrics", tuple(self.metrics)),
                " are measured on validation data: pass data=sc.Data(train=…, val=…).",
            )

    def record(self) -> dict[str, Any]:
        """The settings that a resumed run must have, too. Of functions only their names can be compared."""
        own = {
            name: sorted(value) if isinstance(value, Mapping) else _called(value) for name, value in self.given.items()
        }
        return {**self._task(), **({"functions": own} if own else {})}

    def card(self) -> dict[str, Any]:
        """What an artifact's card says: of functions those of the user's own, also if there are none."""
        return {**self._task(), "functions": sorted(self.given)}

    def _task(self) -> dict[str, Any]:
        return {"task": self.task.card()} if self.named else {}

    def example(self, network: nn.Module, data: Data) -> Any:
        """What the network is called with for one example, on its device: to trace with."""
        return of_example(network, data, self.base, self.base.arguments)

    def example_targets(self, network: nn.Module, data: Data) -> Any:
        """What the network is called with in training beside that: to trace what runs in training only. None if nothing, and
        where that would use up an iterator."""
        if isinstance(data.train if data.val is None else data.val, Iterator):
            return None
        return of_example(network, data, self.base, self.base.targets)

    def check_fits(self, network: nn.Module, data: Data, name: str, advice: tuple[object, ...] = OTHER) -> None:
        """Raise DataError if the network does not run on the data, or is not the task's or not for its classes.

        advice: what to do about another number of classes.
        """
        inputs, classes = self.example(network, data), len(data.classes or ())
        try:
            with torch.no_grad(), evaluating(network):
                outputs = call(network, inputs)
        except SecateursError:
            raise
        except Exception as error:  # of the network's own code
            raise _misfit(network, name, "run", inputs, error, self.task.misfit(network, inputs)) from error
        if self._known:
            self.task.check(outputs, inputs, classes, name, advice)

    def check_trains(self, network: nn.Module, data: Data, name: str) -> None:
        """Raise DataError if the network, which runs on the data, cannot be trained on it: one step of a copy, with two
        examples. A one-shot iterator is left as it is."""
        if isinstance(data.train, Iterator):
            return
        objective, probe = self.base, copied(network).train()
        raw = B.first(data.train, "train")
        batch = B.rows_of(B.as_batch(raw, 0, "train", labels=False, whole=objective.whole), 0, 2)
        batch = B.to_device(Check(network, "train").fit(batch, 0), device_of(network))
        try:
            with preserve_rng_state():
                if batch.labeled:
                    objective.train(probe, batch, CrossEntropy())[2].backward()
                else:
                    outputs = leaves(call(probe, batch.inputs))
                    torch.stack([x.float().mean() for x in outputs if x.is_floating_point()]).sum().backward()
        except SecateursError:
            raise
        except Exception as error:  # of the network's own code
            raise _misfit(probe, name, "train", batch.inputs, error) from error


def _called(function: Any) -> str:
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}"


def _misfit(
    model: nn.Module, name: str, what: str, inputs: Any, error: Exception, advice: tuple[object, ...] = ()
) -> DataError:
    """The error for a network that does not accept its inputs. advice: of its task."""
    first = leaves(inputs)[0]
    image = isinstance(inputs, torch.Tensor)
    shape = "images of " + "x".join(map(str, first.shape[1:])) if image else described(first)
    return DataError(
        f"{name} does not {what} on {shape}: {fault(error, model, inputs)}", hint=advice or _hint(model, first)
    )


def _hint(model: nn.Module, image: torch.Tensor) -> tuple[object, ...]:
    """What to change about how images are read."""
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = None if convolution is None else convolution.in_channels
    if image.ndim >= 3 and channels in (1, 3) and image.shape[-3] in (1, 3) and image.shape[-3] != channels:
        return (
            Setting("channels", channels),
            " reads them with ",
            "one channel." if channels == 1 else "three channels.",
        )
    return Setting("image_size"), " resizes them."
