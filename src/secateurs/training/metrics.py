"""Model outputs of any supported structure, the default loss, and top-1/top-5."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from secateurs.data.bundle import no_batch
from secateurs.devices import device_of, usable
from secateurs.errors import DataError, TrainingError
from secateurs.graph.copies import copied
from secateurs.graph.modes import evaluating
from secateurs.training import batches as B
from secateurs.training import precision as P
from secateurs.training.checks import Check, described

AUX_WEIGHT = 0.3  # of an auxiliary classifier, as GoogLeNet's paper has it

Loss = Callable[[Any, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Metrics:
    """`top1` and `top5` in percent, `loss` per example, `examples` counted, `seconds` it took."""

    top1: float
    top5: float
    loss: float
    examples: int
    seconds: float = 0.0

    def asdict(self) -> dict[str, float]:
        return asdict(self)


def call(model: nn.Module, inputs: Any) -> Any:
    """model(x), model(*xs) or model(**named), for inputs that are a tensor, a tuple or a dict."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def heads(outputs: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The logits (N, classes) and the auxiliary classifiers' logits of a tensor, tuple, dict or dataclass."""
    if isinstance(outputs, torch.Tensor):
        return outputs, []
    if isinstance(outputs, Mapping) and "logits" in outputs:
        main, rest = outputs["logits"], [v for k, v in outputs.items() if k.startswith("aux")]
    elif hasattr(outputs, "logits"):  # a dataclass or a named tuple
        names = getattr(outputs, "_fields", None) or vars(outputs)
        main, rest = outputs.logits, [getattr(outputs, n) for n in names if n.startswith("aux")]
    elif isinstance(outputs, (tuple, list)) and outputs:
        main, rest = outputs[0], list(outputs[1:])
    else:
        main, rest = None, []
    if not isinstance(main, torch.Tensor):
        raise TrainingError(
            f"The model returned a {type(outputs).__name__} without logits: expected a tensor, a tuple "
            "whose first item is one, or an object or dict with 'logits'. For other outputs pass your own loss."
        )
    return main, [r for r in rest if isinstance(r, torch.Tensor) and r.shape == main.shape]


class CrossEntropy:
    """Mean cross-entropy, auxiliary classifiers weighted by 0.3. Targets: (N,) indices or (N, classes) shares.

    Raises DataError for other targets, and for class indices that are out of range.
    """

    def __init__(self, label_smoothing: float = 0.0):
        self.label_smoothing = label_smoothing
        self.classes: int | None = None  # number of the model's classes, known after its first output

    def __call__(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        main, aux = heads(outputs)
        if targets.is_floating_point():
            if targets.shape != main.shape:
                raise DataError(
                    f"The targets are {described(targets)}, for outputs of shape {tuple(main.shape)}: pass class indices "
                    "(integers, one per image) or class probabilities."
                )
            if torch.float64 in (targets.dtype, main.dtype):
                targets = targets.to(torch.float64 if main.dtype == torch.float64 else torch.float32)
        else:
            if main.ndim < 2 or targets.shape != main.shape[:1] + main.shape[2:]:
                raise DataError(_indices(main, targets))
            targets = targets.long()
            if main.ndim > 1 and (targets.device.type == "cpu" or self.classes != main.shape[1]):
                self.classes = main.shape[1]
                self.check(targets)
        loss = F.cross_entropy(main, targets, label_smoothing=self.label_smoothing)
        for other in aux:
            loss = loss + AUX_WEIGHT * F.cross_entropy(other, targets, label_smoothing=self.label_smoothing)
        return loss

    def check(self, targets: torch.Tensor) -> None:
        """Raise DataError for class indices that are out of range. Checked before batches are on a GPU, where they cause a
        device-side assert, and without synchronizing it."""
        if self.classes is None or targets.is_floating_point():
            return
        found = targets.long()
        found = found[found != B.IGNORED]
        low, high = (int(v) for v in found.aminmax()) if found.numel() else (0, 0)
        if low < 0 or high >= self.classes:
            raise DataError(
                f"The data has a label {low if low < 0 else high}, but the model has {self.classes} classes "
                f"(0…{self.classes - 1}): build it for the data's number of classes, or fix the labels."
            )


def _indices(outputs: torch.Tensor, targets: torch.Tensor) -> str:
    """The message about invalid shapes of class indices."""
    text = f"The targets are {described(targets)}, for outputs of shape {tuple(outputs.shape)}: "
    if outputs.ndim < 2:
        return f"{text}cross-entropy takes outputs of shape (N, classes). For other outputs pass your own loss."
    expected = outputs.shape[:1] + outputs.shape[2:]
    text += f"class indices must have shape {tuple(expected)}."
    if targets.shape == (*expected, 1):
        return f"{text} Use targets.squeeze(-1)."
    return f"{text} For one-hot rows use targets.argmax(1)." if targets.shape == outputs.shape else text


def to_device(batch: B.Batch, device: torch.device, channels_last: bool, loss: Loss) -> B.Batch:
    """The batch on the device; its labels are checked before they are moved."""
    if device.type != "cpu" and isinstance(loss, CrossEntropy):
        loss.check(batch.targets)
    return B.to_device(batch, device, channels_last)


def forward(net: nn.Module, batch: B.Batch, loss: Loss, mixup: float = 0.0) -> tuple[Any, torch.Tensor]:
    """The outputs and their loss. With `mixup` > 0 the reversed batch is mixed into it, with a weight drawn from
    Beta(mixup, mixup) and at most a half, so that `targets` stay the dominant labels."""
    if not mixup:
        outputs = call(net, batch.inputs)
        return outputs, loss(outputs, batch.targets)
    keep = float(torch.distributions.Beta(mixup, mixup).sample())
    keep = max(keep, 1 - keep)
    outputs = call(net, B.apply(lambda x: keep * x + (1 - keep) * x.flip(0), batch.inputs))
    return outputs, keep * loss(outputs, batch.targets) + (1 - keep) * loss(outputs, batch.targets.flip(0))


def topk_correct(outputs: Any, targets: torch.Tensor, ks: tuple[int, ...] = (1,)) -> torch.Tensor:
    """The number of examples whose class is among the k highest logits, per k: (len(ks),) on the logits' device. Zeros
    for outputs that are not logits (N, classes)."""
    try:
        logits, _ = heads(outputs)
    except TrainingError:
        return torch.zeros(len(ks), device=targets.device)
    if targets.ndim > 1:
        targets = targets.argmax(1)
    if logits.ndim != 2:
        return logits.new_zeros(len(ks), dtype=torch.float32)
    k = min(max(ks), logits.shape[1])
    top = logits.topk(k, dim=1).indices if k > 1 else logits.argmax(1, keepdim=True)
    found = top == targets[:, None]  # (N, k)
    return torch.stack([found[:, :n].any(1).sum() for n in ks]).float()


def check_data(model: nn.Module, data: Any, loss: Loss | None = None) -> None:
    """Raise DataError before any work if the first batch of `data.train` or `data.val` does not fit the model or the
    loss. Runs in eval mode on the model's device; one-shot iterators are skipped, as this would consume them.

    A user's own loss is not checked on training batches: it may need the model's outputs in train mode.
    """
    train, val = B.split_data(data)
    for split, source, own in (("train", train, None if loss is None else no_loss), ("val", val, loss)):
        if source is not None and not isinstance(source, Iterator):
            raw = B.first(source, split)
            if split == "train" and not (batch := B.as_batch(raw, 0, split, labels=False)).labeled:
                raw, own = (batch.inputs, batch.targets), no_loss
            evaluate(model, [raw], loss=own, split=split)


def no_loss(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
    """A loss that reads no labels: zero."""
    return torch.zeros((), device=targets.device)


def runs(batches: Iterable[B.Batch], *models: nn.Module) -> Iterator[tuple[B.Batch, list[Any]]]:
    """Each training batch, in the models' dtype and on their device, with what each model returns for it. Raises DataError
    for a batch that does not fit a model."""
    check, device = Check(models[0], "train"), device_of(models[0])
    for index, raw in enumerate(batches):
        batch = B.to_device(check.fit(raw, index), device)
        with check.running(batch, index):
            outputs = [call(model, batch.inputs) for model in models]
        yield batch, outputs


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Any,
    *,
    device: torch.device | str | None = None,
    loss: Loss | None = None,
    precision: str = "fp32",
    channels_last: bool = False,
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
    share: tuple[int, int] = (0, 1),
    split: str = "val",
) -> Metrics:
    """Return top-1, top-5 and loss of the model in eval mode; its mode is restored.

    `batches`: iterable of (inputs, targets), or a function that returns one. `device`: where to run, by default the
    model's device; on another one a copy runs. `reduce` sums a tensor over processes, `share` = (rank, world) selects
    this process's rows of each batch. `split`: the name of the batches in errors.

    Raises DataError for batches that are not pairs, are empty, or do not fit the model or the loss, for NaN in the first one,
    for a pass without a batch, and for an iterable without a length that does not end within a million batches or
    an hour.
    """
    where = device_of(model) if device is None else usable(device)
    if where != device_of(model):
        model = copied(model).to(where)
    loss = loss or CrossEntropy()
    total = torch.zeros(4, dtype=torch.float64)  # loss, top-1, top-5, examples
    sums = torch.zeros(4, device=where)
    began = time.perf_counter()
    check = Check(model, split)
    with evaluating(model):
        for index, raw in enumerate(B.bounded(batches, split, B.EVALUATE_SECONDS, B.ENDING)):
            batch = check.fit(B.as_batch(raw, index, split), index)
            if batch.targets.shape[0] < share[1] and share[0]:
                continue  # too few rows for every process: the first process takes them all
            if batch.targets.shape[0] >= share[1]:
                batch = B.share(batch, *share)
            with check.running(batch, index), P.autocast(precision, where):
                inputs, targets, _ = to_device(batch, where, channels_last, loss)
                outputs = call(model, inputs)
                value = loss(outputs, targets)
            rows = targets.shape[0]
            sums[0] += value.float() * rows
            sums[1:3] += topk_correct(outputs, targets, (1, 5))
            sums[3] += rows
            if index % 64 == 63:  # float32 on the device, float64 here, to keep precision in long passes
                total += sums.cpu().double()
                sums.zero_()
    total += sums.cpu().double()
    if reduce is not None:
        total = reduce(total.to(where, torch.float32)).cpu().double()
    lost, top1, top5, n = total.tolist()
    if n == 0:
        raise DataError(f"There is no data to evaluate on. {no_batch(batches, split)}")
    return Metrics(100 * top1 / n, 100 * top5 / n, lost / n, int(n), time.perf_counter() - began)
