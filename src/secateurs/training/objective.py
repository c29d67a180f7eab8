"""The objective that a network is trained and evaluated with: a loss, or custom functions of a model and a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secateurs.data.structure import kind_of
from secateurs.errors import ConfigError, TrainingError
from secateurs.graph.inputs import call
from secateurs.graph.structures import map_tensors
from secateurs.training import batches as B
from secateurs.training.losses import CrossEntropy, Loss, heads, ignored_by, shares

Step = Callable[[nn.Module, Any], Tensor]  # (model, batch) -> loss
Forward = Callable[[nn.Module, Any], tuple[Any, Any]]  # (model, batch) -> (outputs, targets)


class _Called(BaseException):
    """Ends the user's function once it has called the model. Not an `Exception`, because the function may catch those."""

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs


class Judged(NamedTuple):
    """The results of a network for a batch."""

    outputs: Any
    targets: Any
    loss: Tensor | None  # mean over examples; None if no loss is defined


@dataclass(frozen=True)
class Objective:
    """How a model is trained and evaluated on a batch.

    loss: `loss(outputs, targets) -> scalar`; by default, cross-entropy.
    step: `step(model, batch) -> scalar loss`, for training, with the model in train mode.
    forward: `forward(model, batch) -> (outputs, targets)`, for evaluation, with the model in eval mode. Without `step`, also
        for training.
    metrics: for each name, a torchmetrics metric or a function `(outputs, targets) -> scalar` that returns the mean over the
        examples of a batch. The figure is the mean over all examples. An attribute `higher_is_better = False` marks a metric
        that is better when it is lower.

    With `step` or `forward`, a batch may be anything. It is passed on as the data yields it, with its tensors on the model's
    device.

    Raises ConfigError for functions that cannot be called.
    """

    loss: Loss | None = None
    step: Step | None = None
    forward: Forward | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, signature in (
            ("loss", "loss(outputs, targets) -> scalar"),
            ("step", "step(model, batch) -> loss"),
            ("forward", "forward(model, batch) -> (outputs, targets)"),
        ):
            given = getattr(self, name)
            if given is not None and not callable(given):
                raise ConfigError(f"{name}={given!r:.60} is not a function: pass {signature}.")
            _check_called(name, given, signature)
        if not isinstance(self.metrics, Mapping):
            raise ConfigError('metrics must be a dict of metrics by name, such as {"mIoU": JaccardIndex(…)}.')
        for name, metric in self.metrics.items():
            if not isinstance(name, str) or not name.strip():
                raise ConfigError(f"{name!r} is not a valid name of a metric: it must be a string that is not empty.")
            if not callable(metric):
                raise ConfigError(
                    f"metrics[{name!r}] must be a torchmetrics metric or a function (outputs, targets) -> scalar, not "
                    f"{type(metric).__name__}."
                )
            _check_called(f"metrics[{name!r}]", metric, "metric(outputs, targets) -> scalar")
        if self.metrics and self.step is not None and self.forward is None:
            raise ConfigError(
                "metrics need the outputs and targets of a batch: with step=… also pass "
                "forward=lambda model, batch: (outputs, targets)."
            )

    @property
    def whole(self) -> bool:
        """Whether batches are passed on whole instead of being split into inputs and targets."""
        return self.step is not None or self.forward is not None

    @property
    def by_classes(self) -> bool:
        """Whether the task may be classification: there is no custom loss or step."""
        return self.loss is None and self.step is None

    @property
    def ignored(self) -> int:
        """The class index that the loss ignores."""
        return ignored_by(self.loss)

    def train(self, net: nn.Module, batch: B.Batch, default: Loss, mixup: float = 0.0) -> tuple[Any, Any, Tensor]:
        """Return the outputs, the targets and the loss to minimize. default: the loss if there is no custom loss.

        With a `step`, the outputs are those of the model's last call, or None if it only calls parts of the model.
        """
        loss = self._loss(default)
        if mixup and batch.whole:
            raise ConfigError("mixup needs batches of inputs and targets: mix them in your own step.")
        if self.step is not None:
            outputs, lost = _stepped(self.step, net, batch.inputs)
            return outputs, None, lost
        if batch.whole:
            outputs, targets = self._forwarded(net, batch.inputs)
            return outputs, targets, loss(outputs, targets)
        if not batch.labeled:
            return call(net, batch.inputs), batch.targets, torch.zeros((), device=batch.targets.device)
        if not mixup:
            outputs = call(net, batch.inputs)
            return outputs, batch.targets, loss(outputs, batch.targets)
        # the reversed batch is mixed in with a weight of at most ½, so that `targets` stay the dominant labels
        keep = float(torch.distributions.Beta(mixup, mixup).sample())
        keep = max(keep, 1 - keep)
        outputs = call(net, map_tensors(lambda x: keep * x + (1 - keep) * x.flip(0), batch.inputs))
        others = B.taken(batch, torch.arange(batch.rows).flip(0)).targets
        mixed = keep * loss(outputs, batch.targets) + (1 - keep) * loss(outputs, others)
        return outputs, batch.targets, mixed

    def judge(self, model: nn.Module, batch: B.Batch, default: Loss | None = None) -> Judged:
        """Return the outputs, targets and loss in eval mode. default: the loss if there is no custom loss."""
        default = default or CrossEntropy()
        if not batch.whole:
            outputs = call(model, batch.inputs)
            loss = self._loss(default)(outputs, batch.targets) if batch.labeled else None
            return Judged(outputs, batch.targets, loss)
        if self.forward is not None:
            outputs, targets = self._forwarded(model, batch.inputs)
            own = self.loss is not None or (self.step is None and by_class(outputs, targets))
            loss = self._loss(default)(outputs, targets) if own else None
            return Judged(outputs, targets, loss)
        assert self.step is not None
        outputs, loss = _stepped(self.step, model, batch.inputs)
        return Judged(outputs, None, loss)

    def measured(self, model: nn.Module, batch: B.Batch) -> Judged:
        """Return the outputs, targets and loss. The loss comes from the step if nothing else defines it. Raises ConfigError if
        no loss is defined.

        For the step, modules with children are in train mode, because they may return something else in it. Layers stay in
        eval mode.
        """
        if self.step is not None and (self.forward is None or self.loss is None):
            inner = [m for m in model.modules() if m._modules]
            modes = [m.training for m in inner]
            try:
                for m in inner:
                    m.training = True
                outputs, loss = _stepped(self.step, model, batch.inputs)
            finally:
                for m, mode in zip(inner, modes, strict=True):
                    m.training = mode
            return Judged(outputs, None, loss)
        found = self.judge(model, batch)
        if found.loss is None and batch.labeled:
            raise ConfigError(
                "Nothing says what the loss of these outputs is: pass loss=fn(outputs, targets), or step=… that returns it."
            )
        return found

    def outputs(self, model: nn.Module, batch: B.Batch) -> Any:
        """Return the model's outputs in eval mode. Labels are not read, unless the user's functions read them."""
        if not batch.whole:
            return call(model, batch.inputs)
        if self.forward is not None:
            return self._forwarded(model, batch.inputs)[0]
        assert self.step is not None
        return _stepped(self.step, model, batch.inputs)[0]

    def arguments(self, model: nn.Module, batch: B.Batch, training: bool = False) -> Any:
        """Return the arguments of the first call of the model for this batch, as `call` takes them. The model does not run.
        training: in a training step instead of in evaluation."""
        if not batch.whole:
            return batch.inputs

        def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
            raise _Called(dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments) if kwargs else args)

        handle = model.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            if training and self.step is not None:
                self.step(model, batch.inputs)
            else:
                self.outputs(model, batch)
        except _Called as called:
            return called.inputs
        finally:
            handle.remove()
        raise TrainingError("The functions of a batch must call the model, not parts of it.")

    def targets(self, model: nn.Module, batch: B.Batch) -> Any:
        """Return the arguments that the model takes in a training step in addition to those in evaluation, as `example_targets`
        of a trace. None if there are none, or if the two calls have no inputs in common."""
        if self.step is None or self.forward is None:
            return None
        inputs, more = (self.arguments(model, batch, training) for training in (False, True))
        if isinstance(inputs, dict) and isinstance(more, dict):
            return {name: value for name, value in more.items() if name not in inputs} or None
        if isinstance(inputs, tuple) and isinstance(more, tuple):
            return more[len(inputs) :] or None
        return None

    def _loss(self, default: Loss) -> Loss:
        """Return the custom loss or the default. It must return a scalar."""
        function = self.loss or default
        return lambda outputs, targets: scalar(function(outputs, targets), "loss")

    def _forwarded(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        assert self.forward is not None
        found = self.forward(model, batch)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise TrainingError(
                f"forward must return a pair (outputs, targets), not {kind_of(found)}.",
                hint="Return targets of None if none.",
            )
        return found[0], found[1]


def _check_called(name: str, function: Callable[..., Any], how: str) -> None:
    """Raise ConfigError for a function that cannot be called with two arguments; how: what they are."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # written in C
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise ConfigError(f"{name} is called as {how}, and does not take that: {error}.") from None


def by_class(outputs: Any, targets: Any) -> bool:
    """Whether cross-entropy accepts these: logits (N, classes, *) with class indices (N, *) or probabilities."""
    try:
        logits, _ = heads(outputs)
    except TrainingError:
        return False
    if logits.ndim < 2 or logits.shape[1] < 2 or not isinstance(targets, Tensor):
        return False
    if targets.is_floating_point():
        return targets.shape == logits.shape and shares(targets)
    return targets.shape == logits.shape[:1] + logits.shape[2:]


def classified(outputs: Any, targets: Any) -> bool:
    """Whether cross-entropy accepts these, with one row of logits per example: (N, classes)."""
    if not by_class(outputs, targets):
        return False
    logits = heads(outputs)[0]
    return logits.ndim == 2 and logits.is_floating_point()


def _stepped(step: Step, net: nn.Module, batch: Any) -> tuple[Any, Tensor]:
    """Run the user's step. Returns the outputs of the model's last call in it, and its loss."""
    seen: list[Any] = [None]

    def see(module: nn.Module, args: Any, out: Any) -> None:
        seen[0] = out

    handle = net.register_forward_hook(see)
    try:
        loss = step(net, batch)
    finally:
        handle.remove()
    return seen[0], scalar(loss, "step")


def scalar(loss: Any, what: str) -> Tensor:
    """Return a loss as a scalar. what: the function that returned it. Raises TrainingError if it is not a scalar tensor."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        must = "return the loss, a scalar tensor" if what == "step" else "be a scalar tensor, the mean over examples"
        raise TrainingError(f"{what} must {must}, not {kind_of(loss)}.")
    return loss.reshape(())
