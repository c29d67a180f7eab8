"""Batches of any kind, with the user's own functions, losses and metrics."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
import secateurs.recovery as R
import secateurs.training as T
from secateurs.data.structure import examples, leaves, part
from secateurs.errors import ConfigError, DataError, TrainingError
from secateurs.graph.structures import map_tensors
from secateurs.training import batches as B
from secateurs.zoo import vision

from .helpers import batches, engine, net


@dataclass
class Sample:
    image: Tensor
    mask: Tensor
    names: list[str]


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


X, M = torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4, 8, 8))
NAMES = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "batch",
    [
        Sample(X, M, NAMES),
        {"image": X, "mask": M, "names": NAMES},
        UserDict(image=X, mask=M, names=NAMES),
        Pair(X, M),
        [X, M],
        ((X, X), {"a": M, "b": [M, M]}),
        [{"image": x, "mask": m} for x, m in zip(X, M, strict=True)],
        [(x, m) for x, m in zip(X, M, strict=True)],
        (list(X), [{"boxes": torch.rand(2, 4)} for _ in X]),
    ],
)
def test_structures_are_kept_counted_and_split(batch: Any) -> None:
    assert examples(batch) == 4
    doubled = map_tensors(lambda x: x * 2, batch)
    assert type(doubled) is type(batch)
    assert all(torch.equal(2 * a, b) for a, b in zip(leaves(batch), leaves(doubled), strict=True))
    some = part(batch, slice(1, 3), 4)
    assert type(some) is type(batch)
    assert examples(some) == 2
    picked = part(batch, torch.tensor([1, 2]), 4)
    assert all(torch.equal(a, b) for a, b in zip(leaves(some), leaves(picked), strict=True))


def test_names_are_split_with_their_images() -> None:
    assert part(Sample(X, M, NAMES), slice(1, 3), 4).names == ["b", "c"]


@pytest.mark.parametrize("batch", [3, "abc", {}, {"a": [1, 2]}])
def test_what_holds_no_tensor_is_not_a_batch(batch: Any) -> None:
    with pytest.raises(DataError, match="holds no tensor"):
        sc.Data([batch])


def test_an_empty_batch_of_a_step() -> None:
    with pytest.raises(DataError, match=r"Batch 1 of val is empty: its first tensor has shape \(0, 3, 8, 8\)"):
        T.evaluate(net(), [{"x": X}, {"x": X[:0]}], objective=T.Objective(forward=lambda m, b: (m(b["x"]), None)))


# -- equal to pairs ---------------------------------------------------------------------------------------------------


def as_dicts(pairs: list[tuple[Tensor, Tensor]]) -> list[dict[str, Any]]:
    return [{"x": x, "y": y} for x, y in pairs]


def step(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch["x"]), batch["y"])


def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return model(batch["x"]), batch["y"]


@pytest.mark.parametrize("own", [{"step": step, "forward": forward}, {"forward": forward}])
@pytest.mark.parametrize(
    "method",
    [
        sc.L2(), sc.Taylor(examples=16), sc.APoZ(examples=16), sc.Oracle(examples=8), sc.EPruner(), sc.L2Stripes(),
        sc.AOFP(epochs=1), sc.NPN(epochs=2, distil=0), sc.PFF(epochs=1, distil=0), sc.OneStep(distil=0),
    ],
    ids=lambda m: m.name,
)  # fmt: skip
def test_a_step_does_what_pairs_do(method: sc.Method, own: dict[str, Any]) -> None:
    pairs, val = batches(3, rows=32), batches(2, seed=1)  # smaller batches of pairs would be joined for calibration
    given: dict[str, Any] = {"budget": sc.Budget(macs=0.6), "progress": "silent", "device": "cpu"}
    recover = [sc.Reconstruct(images=16), sc.Recover(epochs=1, share=0.5)]
    expected = sc.prune(net(0.0), X[:1], method, data=sc.Data(pairs, val), recover=recover, **given)
    data = sc.Data(as_dicts(pairs), as_dicts(val))
    found = sc.prune(net(0.0), X[:1], method, data=data, recover=recover, **own, **given)
    assert found.plan == expected.plan
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value, msg=name)
    assert found.after.top1 == expected.after.top1
    assert [line.keys() for line in found.history] or not expected.history


def test_a_step_trains_with_several_losses_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.a, self.b = net(0.0)[:6], nn.Conv2d(8, 2, 1), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = self.trunk(x)
            return {"depth": self.a(h), "class": self.b(h)}

    def both(model: nn.Module, batch: Any) -> Tensor:
        out = model(batch.image)
        return out["depth"].square().mean() + F.cross_entropy(out["class"], batch.mask[:, 2:6, 2:6])

    def judged(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        return model(batch.image), batch.mask[:, 2:6, 2:6]

    def depth(outputs: Any, targets: Tensor) -> Tensor:
        return outputs["depth"].square().mean()

    depth.higher_is_better = False  # type: ignore[attr-defined]
    data = [Sample(X, M, NAMES)] * 4
    result = sc.prune(
        Two(), X[:1], "l2", sc.Budget(macs=0.6), sc.Data(data, data), sc.Recover(epochs=3, lr=0.05), step=both, forward=judged,
        metrics={"depth": depth}, progress="silent",
    )  # fmt: skip
    assert result.after.metrics["depth"] < result.calibrated.metrics["depth"]
    assert result.after.top1 is None
    assert result.after.loss is None  # a step is not run in eval mode: it may need train mode
    assert result.history[-1]["val_depth"] == pytest.approx(result.after.metrics["depth"], rel=0.02)
    assert "depth" in repr(result)
    assert sc.Figures(**result.card()["after"]) == result.after
    assert not T.higher_is_better(depth)


# -- figures ----------------------------------------------------------------------------------------------------------


def segmenter() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))


def test_what_has_no_top1_shows_none() -> None:
    found = T.evaluate(segmenter(), [(X, M)])
    assert (found.top1, found.top5) == (None, None)
    assert found.loss is not None
    one = T.evaluate(
        nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), [(X, torch.ones(4, 1))], objective=T.Objective(F.mse_loss)
    )
    assert (one.top1, one.top5) == (None, None)


def test_torchmetrics() -> None:
    vision.torchvision()  # torchmetrics imports it, and not every build can be imported directly
    metrics = pytest.importorskip("torchmetrics")
    iou = metrics.JaccardIndex(task="multiclass", num_classes=3)
    both = metrics.MetricCollection({"iou": iou, "acc": metrics.Accuracy(task="multiclass", num_classes=3)})
    model, val = segmenter(), [(X, M), (X.flip(0), M), (X[:2], M[:2])]
    found = T.evaluate(model, val, objective=T.Objective(metrics={"mIoU": iou, "all": both})).metrics
    iou.reset()
    assert iou.update_count == 0, "the user's metric was used itself"
    with torch.no_grad():
        for x, y in val:
            iou.update(model(x), y)
    assert found["mIoU"] == pytest.approx(float(iou.compute()))
    assert found["all.iou"] == pytest.approx(found["mIoU"])
    assert found.keys() == {"mIoU", "all.iou", "all.acc"}


def test_functions_are_averaged_over_examples() -> None:
    val = [(X, M), (X[:1], M[:1])]
    right = lambda out, y: (out.argmax(1) == y).float().mean()  # noqa: E731
    found = T.evaluate(segmenter(), val, objective=T.Objective(metrics={"right": right})).metrics["right"]
    with torch.no_grad():
        whole = (torch.cat([segmenter()(x) for x, _ in val]).argmax(1) == torch.cat([y for _, y in val])).float().mean()
    assert found == pytest.approx(float(whole))


def test_a_metric_that_fails_is_named() -> None:
    def bad(outputs: Any, targets: Any) -> float:
        raise KeyError("boxes")

    with pytest.raises(DataError, match=r"Batch 0 of val.*metric 'mAP' cannot be computed: KeyError"):
        T.evaluate(segmenter(), [(X, M)], objective=T.Objective(metrics={"mAP": bad}))


def test_structured_targets_need_a_loss() -> None:
    data = [(X, {"a": M, "b": M})]
    with pytest.raises(DataError, match=r"Batch 0 of train.*targets are a dict.*pass your own loss"):
        sc.prune(segmenter(), X[:1], "l2", sc.Budget(macs=0.6), data, sc.Recover(epochs=1), progress="silent")
    loss = lambda out, y: F.cross_entropy(out, y["a"]) + F.cross_entropy(out, y["b"])  # noqa: E731
    result = sc.prune(
        segmenter(),
        X[:1],
        "l2",
        sc.Budget(macs=0.6),
        sc.Data(data, data),
        sc.Recover(epochs=1),
        loss=loss,
        progress="silent",
    )
    assert result.after.loss is not None
    assert result.after.top1 is None


def test_regression_without_a_loss_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    data = [(X, torch.randn(4, 2))]
    with pytest.raises(DataError, match=r"Batch 0 of train.*not class probabilities.*mse_loss"):
        sc.prune(model, X[:1], "l2", sc.Budget(macs=0.6), data, sc.Recover(epochs=1), progress="silent")


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"step": 3}, r"step=3 is not a function: pass step\(model, batch\) -> loss"),
        ({"forward": "x"}, "forward='x' is not a function"),
        ({"loss": 1.0}, "loss=1.0 is not a function"),
        ({"metrics": [3]}, "metrics must be a dict"),
        ({"metrics": {"a": 3}}, r"metrics\['a'\] must be a torchmetrics metric or a function"),
        ({"metrics": {3: max}}, "3 is not a valid name of a metric"),
        ({"step": step, "metrics": {"a": max}}, "metrics need the outputs and targets"),
    ],
)
def test_what_is_not_an_objective(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        sc.prune(net(), X[:1], "l2", sc.Budget(macs=0.6), batches(2), **given)


def test_functions_that_return_something_else() -> None:
    def run(**own: Any) -> None:
        engine(net(), as_dicts(batches(2)), objective=T.Objective(**own)).fit()

    with pytest.raises(
        TrainingError, match=r"step must return the loss, a scalar tensor, not a tensor of shape \(8, 4\)"
    ):
        run(step=lambda m, b: m(b["x"]))
    with pytest.raises(TrainingError, match="step must return the loss, a scalar tensor, not a NoneType"):
        run(step=lambda m, b: None)
    with pytest.raises(TrainingError, match=r"forward must return a pair \(outputs, targets\), not a tensor"):
        run(forward=lambda m, b: m(b["x"]))
    with pytest.raises(DataError, match=r"Batch 0 of train does not fit the step.*KeyError: 'z'"):
        run(step=lambda m, b: m(b["z"]))


class Heads(nn.Module):
    """A dict of maps, with an auxiliary one in training only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.main, self.aux = net(0.0)[:6], nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk(x)
        return {"out": self.main(h), **({"aux": self.aux(h)} if self.training else {})}


MASKS = [{"image": X, "mask": M[:, 2:6, 2:6]}] * 3


def test_the_original_teaches_what_forward_makes_of_a_batch() -> None:
    forward = lambda m, b: (m(b["image"])["out"], b["mask"])  # noqa: E731
    result = sc.prune(
        Heads(), X[:1], "l2", sc.Budget(macs=0.6), MASKS, sc.Recover(epochs=1), forward=forward, progress="silent"
    )
    assert result.history[-1]["share"] == 0.9


@pytest.mark.parametrize("method", [sc.Taylor(examples=4), sc.Oracle(examples=4), sc.OneStep()], ids=lambda m: m.name)
def test_a_step_sees_what_the_network_returns_in_training(method: sc.Method) -> None:
    def step(model: nn.Module, batch: Any) -> Tensor:
        found = model(batch["image"])
        return F.cross_entropy(found["out"], batch["mask"]) + 0.3 * F.cross_entropy(found["aux"], batch["mask"])

    forward = lambda m, b: (m(b["image"])["out"], b["mask"])  # noqa: E731
    model = Heads()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    sc.prune(model, X[:1], method, sc.Budget(macs=0.6), MASKS, step=step, forward=forward, progress="silent")
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda out, y: F.cross_entropy(out, y, reduction="none"), r"not a tensor of shape \(8,\)"),
        (lambda out, y: 0.5, "not a float"),
        (lambda out, y: None, "not a NoneType"),
    ],
)
def test_a_loss_that_is_no_scalar(loss: Any, words: str) -> None:
    message = f"loss must be a scalar tensor, the mean over examples, {words}"
    with pytest.raises(TrainingError, match=message):
        engine(net(), batches(2), loss=loss).fit()
    with pytest.raises(TrainingError, match=message):
        T.evaluate(net(), batches(2), objective=T.Objective(loss))


def test_float_targets_of_a_loss_of_ones_own_have_no_top1() -> None:
    found = T.evaluate(net(), [(x, torch.randn(8, 4)) for x, _ in batches(2)], objective=T.Objective(F.mse_loss))
    assert (found.top1, found.top5) == (None, None)


def test_counts_are_not_taught_as_classes() -> None:
    data = [(x, y * 10) for x, y in batches(2)]
    loss = lambda out, y: (out.mean(1) - y).abs().mean()  # noqa: E731
    result = sc.prune(net(), X[:1], "l2", sc.Budget(macs=0.6), data, sc.Recover(epochs=1), loss=loss, progress="silent")
    assert "share" not in result.history[-1]


def test_a_step_without_teaching_unless_asked() -> None:
    lines: list[str] = []

    def history(**share: float) -> dict[str, Any]:
        result = sc.prune(
            net(), X[:1], "l2", sc.Budget(macs=0.6), as_dicts(batches(2)), sc.Recover(epochs=1, **share), step=step,
            report=lines.append, progress="silent",
        )  # fmt: skip
        return result.history[-1]

    assert "share" not in history()
    assert history(share=0.5)["share"] == 0.5


def test_rows_of_several_processes() -> None:
    batch = B.as_batch(Sample(X, M, NAMES), 0, whole=True)
    parts = [B.share(batch, rank, 2) for rank in range(2)]
    assert [p.rows for p in parts] == [2, 2]
    assert [p.inputs.names for p in parts] == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda o, t: {"a": 1.0}, "a dict with 1 entry. For several figures pass several functions"),
        (lambda o, t: (1.0, 2.0), "a tuple of 2. For several figures"),
        (lambda o, t: None, "a NoneType"),
        (lambda o, t: torch.ones(len(o)), r"a tensor of shape \(4,\)"),
    ],
)
def test_a_metric_returns_one_number(given: Any, says: str) -> None:
    with pytest.raises(DataError, match=rf"The metric 'dice' must return a scalar, the mean over .*, not {says}"):
        T.evaluate(net(0.0), [(X, torch.zeros(4, dtype=torch.long))], objective=T.Objective(metrics={"dice": given}))


@pytest.mark.parametrize("value", [1, 1.0, True, torch.ones(1, 1), np.float32(1), np.ones(1)])
def test_numbers_of_any_kind_are_figures(value: Any) -> None:
    data = [(X, torch.zeros(4, dtype=torch.long))]
    found = T.evaluate(net(0.0), data, objective=T.Objective(metrics={"one": lambda o, t: value}))
    assert found.metrics == {"one": 1.0}


def test_mixup_mixes_targets_of_any_structure() -> None:
    x, y = batches(1)[0]
    y = y[:7]
    seen = []

    def loss(outputs: Any, targets: Any) -> Tensor:
        seen.append(targets)
        return F.cross_entropy(outputs, targets["class"])

    pair = (x[:7], {"class": y, "name": [*"abcdefg"]})
    engine(net(), [pair], R.Recover(epochs=1, mixup=0.4, precision="fp32"), loss=loss).fit()
    first, second = seen
    assert torch.equal(second["class"], first["class"].flip(0))
    assert second["name"] == [*"gfedcba"]
