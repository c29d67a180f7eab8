"""Batch-norm statistics re-estimated on images."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import secateurs as sc
from secateurs.recovery.calibrate import Pooled, calibrate_
from secateurs.testing.networks import network
from secateurs.training import without_labels
from secateurs.training.runtime import wait_for_everyone
from tests.processes import launch


def images(n: int, seed: int = 0, size: int = 8) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def small(**norm: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, **norm), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6, **norm), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
        nn.BatchNorm1d(4, **norm),
    )  # fmt: skip


def norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]


def brute_force(model: nn.Module, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and unbiased variance of each norm's inputs in float64, layer by layer, all images at once."""
    model, found = copy.deepcopy(model).double().eval(), []
    for norm in norms(model):
        seen: list[Tensor] = []
        handle = norm.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            model(x.double())
        handle.remove()
        values = seen[0].movedim(1, 0).flatten(1)  # (C, N·H·W)
        norm.running_mean.copy_(values.mean(1))
        norm.running_var.copy_(values.var(1))
        found.append((values.mean(1), values.var(1)))
    return found


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}])
def test_one_batch_gives_the_exact_statistics_of_every_layer(options: dict[str, Any]) -> None:
    model, x = small(**options), images(40)
    found = sc.calibrate(model, [x])
    for norm, (mean, var) in zip(norms(found), brute_force(model, x), strict=True):
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-5, atol=1e-6)
        assert norm.momentum == options.get("momentum", 0.1)
        assert norm.num_batches_tracked == (norm.momentum is None)


def test_a_norm_that_averages_over_all_batches_counts_those_of_the_calibration() -> None:
    """Training that follows would otherwise hardly change what is the mean over an earlier training's many batches."""
    model, x = small(momentum=None), images(96)
    for norm in norms(model):
        norm.num_batches_tracked.fill_(50_000)
    found = sc.calibrate(model, [x[:32], x[32:64], x[64:]])
    assert [int(norm.num_batches_tracked) for norm in norms(found)] == [3] * 3
    assert [int(norm.num_batches_tracked) for norm in norms(model)] == [50_000] * 3


def test_batches_of_different_size_are_pooled_exactly() -> None:
    model, x = small(), images(150)
    found = sc.calibrate(model, [x[:40], x[40:100], x[100:]])
    values = model[0](x).detach().double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(found[1].running_mean.double(), values.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1].running_var.double(), values.var(1), rtol=1e-6, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.integers(0, 99), st.sampled_from([0.0, 1e4]))
def test_pooling_equals_the_statistics_of_the_whole(sizes: list[int], seed: int, offset: float) -> None:
    parts = [np.random.default_rng([seed, i]).normal(offset, 1 + i, (n, 3)) for i, n in enumerate(sizes)]
    pooled = Pooled(0, torch.zeros(3).double(), torch.zeros(3).double())
    for p in parts:
        pooled.add(Pooled(len(p), torch.from_numpy(p.mean(0)), torch.from_numpy(((p - p.mean(0)) ** 2).sum(0))))
    whole = np.concatenate(parts)
    np.testing.assert_allclose(pooled.mean.numpy(), whole.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(pooled.squares.numpy() / len(whole), whole.var(0), rtol=1e-9)


def test_nothing_else_changes() -> None:
    model = small().train()
    model[5].eval()
    model[1].weight.requires_grad_(False)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    found = sc.calibrate(model, [images(32)])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in found.modules()] == modes
    assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in model.parameters()]
    changed = {k for k, v in found.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {f"{i}.running_{s}" for i in (1, 5, 10) for s in ("mean", "var")}
    assert [vars(m).keys() for m in found.modules()] == [vars(m).keys() for m in model.modules()]


X = images(32)


@pytest.mark.parametrize("batch", [X, (X,), (X, torch.zeros(32)), {"input": X}, ({"input": X}, torch.zeros(32))])
def test_batches_of_any_kind(batch: Any) -> None:
    expected, found = sc.calibrate(small(), [X]), sc.calibrate(small(), [batch])
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in found.state_dict().items())


def test_two_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.bn(a + b)

    found = sc.calibrate(Two(), [((X, X),)])
    torch.testing.assert_close(found.bn.running_mean, 2 * X.mean((0, 2, 3)))


@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, (9, 3, 5)), (nn.BatchNorm3d, (9, 3, 2, 2, 2)),
                                             (nn.SyncBatchNorm, (9, 3, 4, 4))])  # fmt: skip
def test_norms_of_any_kind(kind: Any, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape) * 3 + 1
    model = nn.Sequential(kind(3))
    found = sc.calibrate(model, [x])[0]
    torch.testing.assert_close(found.running_var, x.movedim(1, 0).flatten(1).var(1))
    assert type(found) is kind
    assert "forward" not in vars(found)


def test_norms_without_running_statistics_and_unused_norms_are_left_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.plain = nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)
            self.instance, self.idle = nn.InstanceNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.instance(self.plain(self.used(x)))

    found = sc.calibrate(Net(), [X])
    assert found.plain.running_mean is None
    assert torch.equal(found.idle.running_var, torch.ones(3))
    assert found.instance.running_mean is None
    assert not torch.equal(found.used.running_mean, torch.zeros(3))


@pytest.mark.parametrize("sizes", [(32,), (20, 12), (1, 31)])
def test_instance_norms_have_the_means_of_the_images_own_statistics(sizes: tuple[int, ...]) -> None:
    conv, norm = nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True)
    found = sc.calibrate(nn.Sequential(conv, norm), list(X.split(sizes)))
    y = conv(X).detach().double()  # (N, C, H, W)
    assert torch.allclose(found[1].running_mean.double(), y.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(found[1].running_var.double(), y.var((2, 3)).mean(0), rtol=1e-5)


def test_a_batch_with_one_value_per_channel_counts_as_well() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3))
    x = torch.cat([X, X.flip(0) + 1, X[:1]])
    found = sc.calibrate(model, list(x.split(32)), images=65)  # 32, 32 and 1
    y = x.double().mean((2, 3))
    assert torch.allclose(found[2].running_mean.double(), y.mean(0), atol=1e-6)
    assert torch.allclose(found[2].running_var.double(), y.var(0), rtol=1e-5)
    alone = sc.calibrate(model, [X[:1]])  # has no variance
    assert torch.equal(alone[2].running_var, torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    model = small().to(dtype)
    found, exact = sc.calibrate(model, [X.to(dtype)]), sc.calibrate(copy.deepcopy(model).float(), [X.to(dtype).float()])
    assert {p.dtype for p in found.parameters()} == {dtype}
    for a, b in zip(norms(found), norms(exact), strict=True):
        assert torch.equal(a.running_var, b.running_var.to(dtype))


def test_number_of_images() -> None:
    x = images(300)
    one = sc.calibrate(small(), [x[i : i + 10] for i in range(0, 300, 10)], images=35)
    spread = torch.cat([x[i * 30 // 4 * 10 :][:10] for i in range(4)])[:35]  # of a list, at even distances
    values = small()[0](spread).detach().movedim(1, 0).flatten(1)
    torch.testing.assert_close(one[1].running_mean, values.mean(1))
    with pytest.raises(sc.ConfigError, match="images=1 is not a valid number of images"):
        sc.calibrate(small(), [x], images=1)


def test_single_images_are_joined() -> None:
    found = sc.calibrate(small(), [X[i : i + 1] for i in range(32)])
    expected = sc.calibrate(small(), [X])
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in found.state_dict().items())


def test_images_of_different_size_are_not_joined() -> None:
    found = sc.calibrate(small(), [images(4), images(4, size=16)])
    assert bool(found[10].running_var.isfinite().all())


def test_a_norm_with_a_single_value_keeps_its_statistics() -> None:
    found = sc.calibrate(small(), [X[:1]])
    assert torch.equal(found[10].running_var, torch.ones(4))
    assert not torch.equal(found[1].running_var, torch.ones(8))


def test_what_does_not_fit() -> None:
    with pytest.raises(sc.DataError, match=r"Batch 0 of train .*expects \(N, 3, H, W\) but gets \(4, 1, 8, 8\)"):
        sc.calibrate(small(), [torch.zeros(4, 1, 8, 8)])
    with pytest.raises(sc.DataError, match="NaN"):
        sc.calibrate(small(), [X * float("nan")])
    with pytest.raises(sc.DataError, match="empty"):
        sc.calibrate(small(), lambda: iter([]))


def test_a_batch_that_is_not_finite_is_named() -> None:
    """By its place in the data, also where batches are joined or left out, and before any mean of it is put into a bias."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    batches = [images(8, seed) for seed in range(6)]
    batches[3][0, 0, 0, 0] = float("nan")
    said = "Batch 3 of train: 1 of 1,536 values of .* are NaN"
    half, y = sc.Budget(macs=0.5), torch.zeros(8, dtype=torch.long)
    missing = [torch.full((8,), torch.nan if i else 0.0) for i in range(6)]  # what the functions do not use
    pairs, dicts = [(x, y) for x in batches], [{"x": x, "y": y, "z": z} for x, z in zip(batches, missing, strict=True)]
    with pytest.raises(sc.DataError, match=said):
        sc.prune(model, batches[0], "l2", half, pairs, check_speed=False)
    forward = lambda model, batch: (model(batch["x"]), batch["y"])  # noqa: E731
    with pytest.raises(sc.DataError, match=said):
        sc.prune(model, batches[0], "l2", half, dicts, forward=forward, check_speed=False)
    with pytest.raises(sc.DataError, match="Batch 300 of train"):
        sc.calibrate(small(), [batches[i // 100] for i in range(600)], images=48)
    parts = lambda model, batch: (model[1:](model[0](batch["x"])), batch["y"])  # noqa: E731
    found = sc.prune(model, batches[0], "l2", half, dicts, forward=parts, check_speed=False)
    assert all(bool(p.isfinite().all()) for p in found.model.parameters())


def test_a_failure_leaves_the_model_as_it_was() -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(sc.DataError):
        calibrate_(model, without_labels([X, X[:, :1]], 64, seed=0))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class TestPrune:
    def data(self) -> sc.Data:
        torch.manual_seed(1)
        batches = [(torch.randn(32, 3, 16, 16), torch.randint(0, 4, (32,))) for _ in range(3)]
        return sc.Data(batches, batches[:1])

    def test_figures_and_card(self, tmp_path: Any) -> None:
        model, data = network(), self.data()
        plain = sc.prune(model, torch.zeros(1, 3, 16, 16), "l1", sc.Budget(macs=0.5), data, calibrate=False)
        told: list[str] = []
        result = sc.prune(model, torch.zeros(1, 3, 16, 16), "l1", sc.Budget(macs=0.5), data, report=told.append)
        assert plain.calibrated == plain.cut == plain.after
        assert (result.plan, result.error, result.cut) == (plain.plan, plain.error, plain.cut)
        assert result.cut != result.calibrated == result.after
        expected = sc.calibrate(plain.model, data)
        assert all(torch.equal(v, expected.state_dict()[k]) for k, v in result.model.state_dict().items())
        assert "calibrated on 96 images: statistics of 5 norms" in told
        result.save(tmp_path / "a")
        assert sc.artifact.read(tmp_path / "a")[1].calibrated == result.calibrated
        loaded = sc.load(tmp_path / "a", model=model)
        assert all(torch.equal(v, result.model.state_dict()[k]) for k, v in loaded.state_dict().items())

    def test_other_batches(self) -> None:
        model, budget = network(), sc.Budget(macs=0.5)
        x = torch.randn(64, 3, 16, 16)
        result = sc.prune(model, x[:1], "l1", budget, calibrate=[x])
        expected = sc.calibrate(sc.prune(model, x[:1], "l1", budget).model, [x])
        assert all(torch.equal(v, expected.state_dict()[k]) for k, v in result.model.state_dict().items())

    def test_nothing_cut_is_not_calibrated(self) -> None:
        model = network()
        result = sc.prune(model, torch.zeros(1, 3, 16, 16), "l1", sc.Budget(macs=1.0), self.data())
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in result.model.state_dict().items())
        assert result.calibrated == result.cut

    def test_one_shot_iterators_are_left_to_training(self) -> None:
        batches = iter(self.data().train)
        recipe = sc.Recover(steps=3, steps_per_epoch=3, schedule="constant")
        result = sc.prune(
            network(), torch.zeros(1, 3, 16, 16), "l1", sc.Budget(macs=0.5), batches, recipe, progress=False
        )
        assert [line["step"] for line in result.history] == [3]

    def test_an_iterator_to_calibrate_on_is_read_once(self) -> None:
        x = torch.randn(64, 3, 16, 16)
        for model in (network(), Extra()):
            found = [
                sc.prune(model, x[:1], "l1", sc.Budget(macs=0.5), calibrate=given)
                for given in (iter(x.split(8)), list(x.split(8)))
            ]
            assert found[0].history == found[1].history != []
            pairs = zip(found[0].model.state_dict().items(), found[1].model.state_dict().values(), strict=True)
            assert all(torch.equal(v, w) for (name, v), w in pairs if name != "_extra_state")

    @pytest.mark.parametrize("data", [None, [torch.randn(32, 3, 16, 16)]])
    def test_a_network_with_state_that_is_no_tensor(self, data: Any) -> None:
        result = sc.prune(Extra(), torch.zeros(1, 3, 16, 16), "l1", sc.Budget(macs=0.5), data)
        assert len(result.history) == (data is not None)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_images_in_half_precision(self, dtype: torch.dtype) -> None:
        x = torch.randn(64, 3, 16, 16).to(dtype)
        result = sc.prune(Extra().to(dtype), x[:1], "l1", sc.Budget(macs=0.5), [x])
        assert result.history[0]["layers"] == ["b", "fc"]

    @pytest.mark.parametrize("recover", [None, sc.Reconstruct(), sc.Mimic(steps=1, function="mse", nodes=("fc",))])
    def test_outputs_without_logits(self, recover: Any) -> None:
        x = torch.randn(32, 3, 16, 16)
        result = sc.prune(Embeds(), x[:1], "l1", sc.Budget(macs=0.5), [x], recover, progress="silent")
        assert result.history[0]["layers"] == ["b", "fc"]

    def test_images_that_do_not_fit(self) -> None:
        for model in (network(), Extra()):  # with norms, and with biases only
            with pytest.raises(sc.DataError, match=r"Batch 0 of train does not fit the model"):
                sc.prune(
                    model, torch.zeros(1, 3, 16, 16), "l1", sc.Budget(macs=0.5), calibrate=[torch.zeros(4, 5, 16, 16)]
                )


class Extra(nn.Module):
    """Without norms, and with a state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 4)

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"version": 1}

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.a(x).relu()).relu().mean((2, 3)))


class Embeds(Extra):
    """Returns a dict without logits."""

    def forward(self, x: Tensor) -> Any:
        return {"embedding": super().forward(x)}


def child(folder: str) -> None:
    rank = int(os.environ["RANK"])
    wait_for_everyone("cpu")
    x = images(150)
    mine = [x[:40], x[40:100]] if rank == 0 else [x[100:]]  # uneven
    found = sc.calibrate(small(), mine)
    save_file(found.state_dict(), f"{folder}/{rank}.safetensors")
    labels = torch.zeros(len(x), dtype=torch.long)
    data = [(x[i : i + 30], labels[i : i + 30]) for i in range(0, 150, 30)]
    recipe = sc.Recover(steps=1, steps_per_epoch=1)
    result = sc.prune(network(), x[:1], "l1", sc.Budget(macs=0.5), data, recipe, progress=False)
    save_file(result.model.state_dict(), f"{folder}/pruned-{rank}.safetensors")


@pytest.mark.slow
def test_several_processes_pool_their_statistics(tmp_path: Path) -> None:
    launch(f"{__name__}:child", str(tmp_path))
    one, other = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    x = images(150)
    expected = sc.calibrate(small(), [x[:40], x[40:100], x[100:]]).state_dict()
    for name, value in expected.items():
        assert torch.equal(one[name], other[name])
        torch.testing.assert_close(one[name], value)
    one, other = (load_file(tmp_path / f"pruned-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
