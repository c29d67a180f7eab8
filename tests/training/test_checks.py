"""Batches that do not fit the model or the loss: what is converted, what is refused, and what is said."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc
import secateurs.recovery as R
import secateurs.training as T
from secateurs.errors import DataError
from secateurs.methods import Task
from secateurs.methods.assess import spread
from secateurs.studies import one_by_one

from .helpers import batches, engine, net

HALF = sc.Budget(macs=0.5)
X, Y = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
IMAGES = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def linear() -> nn.Module:
    """Takes 8x8 images only."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 4),
    )  # fmt: skip


def with_nan() -> torch.Tensor:
    x = X.clone()
    x[1, 0, 2, 3], x[2, 1, 0, 0] = float("nan"), float("inf")
    return x


BAD: dict[str, tuple[Any, str]] = {
    "labels (N, 1)": ((X, Y[:, None]), r"targets are \(4, 1\) int64, for outputs of shape \(4, 4\): class indices must "
                      r"have shape \(4,\)\. Use targets\.squeeze\(-1\)\."),
    "one-hot whole numbers": ((X, torch.eye(4).long()), r"targets are \(4, 4\) int64.*one-hot rows use targets\.argmax\(1\)"),
    "other shares": ((X, torch.rand(4, 5)), r"targets are \(4, 5\) float32, for outputs of shape \(4, 4\)"),
    "floats for labels": ((X, Y.float()), r"targets are \(4,\) float32.*pass class indices"),
    "too few targets": ((X, Y[:3]), r"has 4 inputs and 3 targets: their shapes are \(4, 3, 8, 8\) and \(3,\)"),
    "too many targets": ((X[:3], Y), r"has 3 inputs and 4 targets"),
    "one target": ((X, Y[0]), r"targets must be a tensor of N classes, not a tensor of shape \(\)"),
    "a class too high": ((X, Y + 1), r"The data has a label 4, but the model has 4 classes"),
    "an empty batch": ((X[:0], Y[:0]), r"is empty: the shapes of its inputs and targets are \(0, 3, 8, 8\) and \(0,\)"),
    "gray images": ((X[:, :1], Y), r"does not fit the model, with inputs \(4, 1, 8, 8\) float32: layer '0' \(Conv2d\) "
                    r"expects \(N, 3, H, W\) but gets \(4, 1, 8, 8\)\."),
    "channels last": ((X.permute(0, 2, 3, 1), Y), r"expects \(N, 3, H, W\) but gets \(4, 8, 8, 3\)\. Channels come first: "
                      r"x\.permute\(0, 3, 1, 2\)"),
    "flat images": ((X.flatten(1), Y), r"with inputs \(4, 192\) float32: layer '0' \(Conv2d\) expects \(N, 3, H, W\)"),
    "a video": ((X[:, None], Y), r"with inputs \(4, 1, 3, 8, 8\) float32: layer '0' \(Conv2d\) expects"),
    "larger images": ((torch.randn(4, 3, 16, 16), Y), r"layer '6' \(Linear\) expects 256 features but gets \(4, 1024\)\. "
                      "The usual cause is images of another size"),
    "uint8": ((IMAGES, Y), r"does not fit the model, with inputs \(4, 3, 8, 8\) uint8: it gets bytes \(uint8\)\. Scale "
              r"them as in its training, such as by x\.float\(\) / 255"),
    "int64": ((IMAGES.long(), Y), r"inputs \(4, 3, 8, 8\) int64: it computes in float32.*with x\.float\(\)\."),
    "NaN": ((with_nan(), Y), r"2 of 768 values of its inputs are NaN or infinite"),
    "NaN targets": ((X, torch.full((4, 4), torch.nan)), r"16 of 16 values of its targets are NaN or infinite"),
    "numpy": ((X.numpy(), Y), r"inputs must be a tensor, or a tuple or dict of tensors, not a numpy\.ndarray"),
    "two inputs": (((X, X), Y), r"does not fit the model, with inputs \(4, 3, 8, 8\) float32 and \(4, 3, 8, 8\) float32: "
                   r"TypeError"),
}  # fmt: skip


def refused(go: Callable[[], object], message: str, split: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        go()
    assert str(error.value).startswith(f"Batch 0 of {split}"), error.value
    assert str(error.value).count("Batch 0") == 1
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_refused_before_any_work(kind: str) -> None:
    batch, message = BAD[kind]
    example = X[:1]

    class Never(sc.L1):
        def scores(self, task: Any) -> Any:
            raise AssertionError("it was asked")

    def bad() -> Any:
        yield batch

    good = [(X, Y)]
    lines: list[str] = []
    for source in ([batch], bad):
        refused(lambda s=source: sc.prune(linear(), example, Never(), HALF, s, report=lines.append), message, "train")
        refused(lambda s=source: sc.prune(linear(), example, Never(), HALF, sc.Data(good, s)), message, "val")
        refused(lambda s=source: T.evaluate(linear(), s), message, "val")
        model = linear()
        refused(lambda s=source, m=model: engine(m, s).fit(), message, "train")
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), linear().parameters(), strict=True))
        refused(lambda s=source: engine(linear(), sc.Data(good, s)).fit(), message, "val")
    assert not any("keeps" in line for line in lines)


@pytest.mark.parametrize(
    "method", [sc.APoZ(examples=8), sc.Taylor(examples=8), sc.Oracle(examples=8), sc.NPN(epochs=1)]
)
@pytest.mark.parametrize("kind", ["labels (N, 1)", "too few targets", "an empty batch", "gray images", "uint8"])
def test_methods_that_look_at_examples(method: sc.Method, kind: str) -> None:
    batch, message = BAD[kind]
    if kind in ("labels (N, 1)", "gray images", "uint8") and not isinstance(method, sc.NPN):
        message = r"examples of different shapes and dtypes cannot be evaluated together"
    with pytest.raises(DataError, match=rf"^Batch 1 of train.*{message}"):  # the first one is looked at beforehand
        sc.prune(linear(), X[:1], method, HALF, [(X, Y), batch], progress="silent", device="cpu")


class Joins(nn.Module):
    """Joins maps whose sizes agree for some inputs only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.h = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, 2, padding=1), nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        twice = self.b(image).repeat(1, 1, 2, 2)
        return self.h(torch.cat([self.a(image), twice], 1).mean((2, 3)))


def test_the_line_of_the_users_code_that_fails_is_named() -> None:
    code, start = inspect.getsourcelines(Joins.forward)
    line = next(start + i for i, text in enumerate(code) if "torch.cat" in text)
    odd, place = torch.randn(4, 3, 7, 7), rf"Sizes of tensors must match.*\(test_checks\.py:{line}\)"
    with pytest.raises(sc.TraceError, match=rf"does not run on these example inputs: {place}\. Pass inputs"):
        sc.trace(Joins(), odd)
    with pytest.raises(DataError, match=rf"Batch 0 of train does not fit the model, .* {place}\.$"):
        sc.prune(Joins(), X, "l2", HALF, [(odd, Y)])


def test_a_dict_that_is_a_whole_batch_is_told_of_forward_and_step() -> None:
    told = (
        r"unexpected keyword argument 'mask'.* the whole batch, .*: forward=…, .* or step=…, \(model, batch\) -> loss"
    )
    with pytest.raises(DataError, match=told):
        sc.prune(Joins(), X, "l2", HALF, [{"image": X, "mask": Y}])
    with pytest.raises(DataError) as caught:
        sc.prune(Joins(), X, "l2", HALF, [{"image": torch.randn(4, 3, 7, 7)}])
    assert "forward=" not in str(caught.value)


def test_what_is_converted() -> None:
    model = linear()
    expected = T.evaluate(model, [(X, Y)])
    for x, y in ((X.double(), Y), (X, Y.int()), (X, Y.to(torch.uint8)), (X.double(), Y.short())):
        found = T.evaluate(model, [(x, y)])
        assert (found.top1, found.loss) == (expected.top1, expected.loss)
    shares = torch.eye(4)
    assert T.evaluate(model, [(X, shares.double())]).loss == pytest.approx(expected.loss)
    one, two = linear(), linear()
    engine(one, [(X, Y)]).fit()
    engine(two, [(X.double(), Y.int())]).fit()
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("method", ["l1", "apoz", "taylor", sc.Oracle(examples=4), sc.NPN(epochs=1), sc.AOFP(epochs=1),
                                    sc.OneStep(epochs=1), sc.PFF(epochs=1)])  # fmt: skip
def test_a_model_in_float64(method: Any) -> None:
    model = linear().double()
    data = sc.Data([(X, Y), (X.half(), Y)], [(X, Y), (X.double(), torch.eye(4))])
    result = sc.prune(
        model, X[:1].double(), method, sc.Budget(macs=0.8), data, sc.Recover(epochs=1, precision="fp32"), progress="silent",
        device="cpu",
    )  # fmt: skip
    assert {p.dtype for p in result.model.parameters()} == {torch.float64}
    assert result.after.top1 is not None


def test_float64_inputs_for_every_method() -> None:
    data = sc.Data([(X.double(), Y)] * 2, [(X.double(), Y)])
    for method in (*("apoz", "taylor"), sc.Oracle(examples=4), sc.NPN(epochs=1), sc.AOFP(epochs=1), sc.PFF(epochs=1)):
        sc.prune(linear(), X[:1], method, sc.Budget(macs=0.8), data, progress="silent", device="cpu")


def test_a_model_that_takes_uint8_itself() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = linear()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x.float() / 255)

    data = sc.Data([(IMAGES, Y)], [(IMAGES, Y)])
    assert (
        sc.prune(Scaled(), IMAGES[:1], "l1", HALF, data, sc.Recover(epochs=1), progress="silent").after.top1 is not None
    )
    with pytest.raises(DataError, match=r"layer 'net.0' \(Conv2d\) expects \(N, 3, H, W\)"):
        T.evaluate(Scaled(), [(IMAGES[:, :2], Y)])


def pooled() -> nn.Module:
    """Batch norm on one value per channel and image."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 4))


def test_a_batch_of_one_under_batch_norm() -> None:
    dataset = torch.utils.data.TensorDataset(torch.cat([X, X, X[:1]]), torch.cat([Y, Y, Y[:1]]))
    loader = torch.utils.data.DataLoader(dataset, batch_size=4)
    message = (
        r"^Batch 2 of train has a single image, and layer '2' \(BatchNorm2d\) gets \(1, 4, 1, 1\): batch norm cannot "
        r"train on one value per channel\. Use another batch size.*drop_last=True"
    )
    with pytest.raises(DataError, match=message):
        engine(pooled(), loader).fit()
    engine(net(), loader).fit()  # there are more pixels than one
    assert T.evaluate(pooled(), loader).examples == 9  # nothing is trained


def test_a_later_batch_is_named() -> None:
    wrong = [*batches(3), (torch.randn(8, 1, 8, 8), batches(1)[0][1])]
    with pytest.raises(
        DataError, match=r"^Batch 3 of train does not fit the model, with inputs \(8, 1, 8, 8\) float32"
    ):
        engine(net(), wrong).fit()
    with pytest.raises(DataError, match=r"^Batch 3 of val does not fit the model"):
        T.evaluate(net(), wrong)
    with pytest.raises(DataError, match=r"^Batch 3 of test is empty"):
        T.evaluate(net(), [*batches(3), (X[:0], Y[:0])], split="test")


def test_losses_of_the_users_own() -> None:
    """Only what is surely wrong is refused: not the shapes and types that other losses take."""

    def squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return ((outputs.sum(1) - targets.float().flatten()) ** 2).mean()

    for y in (Y[:, None], Y.float(), Y.float()[:, None], Y.int(), Y > 1, Y + 9):
        options: dict[str, Any] = {"loss": squared, "progress": "silent", "device": "cpu"}
        sc.prune(net(), X[:1], "l1", HALF, sc.Data([(X, y)], [(X, y)]), sc.Recover(epochs=1), **options)
    with pytest.raises(DataError, match=r"^Batch 0 of train does not fit the loss, with inputs \(4, 3, 8, 8\) float32 and "
                       r"targets \(4, 1\) int64: 0D or 1D target"):  # fmt: skip
        engine(net(), [(X, Y[:, None])], loss=nn.CrossEntropyLoss()).fit()
    with pytest.raises(DataError, match=r"^Batch 0 of val does not fit the loss"):
        T.evaluate(net(), [(X, Y[:, None])], objective=T.Objective(lambda outputs, targets: outputs[targets.missing]))


def test_a_loss_that_wants_what_the_model_puts_out_in_train_mode() -> None:
    class Aux(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: torch.Tensor) -> Any:
            out = self.net(x)
            return (out, out) if self.training else out

    def both(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        first, second = outputs
        return nn.functional.cross_entropy(first + second, targets)

    sc.prune(Aux(), X[:1], "l1", HALF, [(X, Y)], sc.Recover(epochs=1), loss=both, progress="silent", device="cpu")


def test_memory_and_our_own_errors_stay_what_they_are() -> None:
    class Broken(nn.Module):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error, self.fc = error, nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise self.error

    for error in (torch.OutOfMemoryError("too much"), MemoryError("too much"), sc.ConfigError("too much")):
        with pytest.raises(type(error), match=r"^too much$"):
            T.evaluate(Broken(error), [(X, Y)])
    with pytest.raises(DataError, match=r"does not fit the model.*: KeyError: 'x' \(test_checks\.py:\d+\)\.$") as found:
        T.evaluate(Broken(KeyError("x")), [(X, Y)])
    assert isinstance(found.value.__cause__, KeyError)


def test_an_empty_pass_is_an_error() -> None:
    def nothing() -> Any:
        yield from ()

    for empty in ([], nothing, torch.utils.data.DataLoader([])):
        with pytest.raises(DataError, match=r"There is no data to evaluate on\. val is empty"):
            T.evaluate(net(), empty)
        with pytest.raises(DataError, match="train is empty"):
            engine(net(), empty, R.Recover(epochs=1, schedule="constant")).fit()
        with pytest.raises(DataError, match="val is empty"):
            list(spread(empty, 5))
    for data, split in ((sc.Data(nothing), "train"), (sc.Data([(X, Y)], nothing), "val")):
        with pytest.raises(DataError, match=f"{split} is empty"):
            sc.prune(net(), X[:1], "l1", HALF, data)
        with pytest.raises(DataError, match=f"{split} is empty"):
            next(data.batches(split))
    used = iter([(X, Y)])
    assert T.evaluate(net(), used).examples == 4
    with pytest.raises(DataError, match="one-shot iterator, which is used up after one pass"):
        T.evaluate(net(), used)
    with pytest.raises(DataError, match="not an int"):
        T.evaluate(net(), 5)


def test_looking_beforehand_changes_nothing() -> None:
    """Neither the model nor the caller's random state, and one-shot iterators are not used up."""
    model = net()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()

    def noisy() -> Any:
        yield torch.randn(4, 3, 8, 8), Y

    T.check_data(model, sc.Data(noisy, noisy))
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    once = iter([(X, Y)])
    T.check_data(model, sc.Data(once))
    assert len(list(once)) == 1


def test_curves_name_the_split() -> None:
    model = linear()
    good, gray = (X, Y), (X[:, :1], Y)
    data = sc.Data([good], [good, gray])
    task = Task(model, sc.trace(model, X[:1]), None, "all", data, 0, X[:1])
    with pytest.raises(
        DataError, match=r"^Batch 1 of val has inputs \(4, 1, 8, 8\) float32 and targets \(4,\) int64, but the first"
    ):
        one_by_one(task, "0", "l1", examples=4)
