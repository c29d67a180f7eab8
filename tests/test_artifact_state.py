"""What an artifact holds beside parameters: extra state, non-persistent buffers, ties, and the chain of earlier cuts."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import secateurs as sc
from secateurs import artifact
from secateurs.artifact import CARD, MODEL
from secateurs.artifact.provenance import source_of
from tests.test_hostile_artifacts import VALUES, changed, fields, harmless


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Scale(nn.Module):
    """Keeps what it multiplies by in its extra state, and counts its calls in a plain attribute."""

    def __init__(self, state: Any = 1.0) -> None:
        super().__init__()
        self.state, self.calls = state, 0

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (self.state if isinstance(self.state, float) else 1.0)


class Seen(nn.Module):
    """Fills a buffer in its forward, and replaces another by one of the input's size."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", None)
        self.register_buffer("grid", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.first is None:
            self.first = x.detach().mean() * torch.ones(())
        if self.grid.shape != x.shape[2:]:
            self.grid = torch.ones(x.shape[2:]) * self.first
        return x + self.grid


class Net(nn.Module):
    def __init__(self, state: Any = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.scale, self.b = nn.Conv2d(3, 16, 3, padding=1), Scale(state), nn.Conv2d(16, 16, 3, padding=1)
        self.seen, self.fc = Seen(), nn.Linear(16, 4)
        self.register_buffer("gain", torch.linspace(1, 2, 16).view(1, 16, 1, 1), persistent=False)  # (1, C, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x)) * self.gain
        x = self.seen(torch.relu(self.b(self.scale(x))))
        return self.fc(x.mean((2, 3)))


def pruned(model: nn.Module, macs: float = 0.6) -> sc.Result:
    return sc.prune(model, image(), "l1", sc.Budget(macs=macs))


def assert_same(loaded: nn.Module, small: nn.Module) -> None:
    """Bit for bit: outputs, parameters and all buffers."""
    assert torch.equal(loaded(image()), small.eval()(image()))
    assert_holds_the_same(loaded, small)


def assert_holds_the_same(loaded: nn.Module, small: nn.Module) -> None:
    for kind in ("named_parameters", "named_buffers"):
        one, other = (dict(getattr(m, kind)(remove_duplicate=False)) for m in (loaded, small))
        assert one.keys() == other.keys()
        for name, x in one.items():
            assert torch.equal(x, other[name]), name


class TestState:
    def test_everything_that_changed_since_it_was_made(self, tmp_path: Path) -> None:
        model = Net(3.5)
        model.gain.mul_(1.5)
        model(image())
        result = pruned(model)
        loaded: Any = sc.load(result.save(tmp_path / "run"), model=Net())
        assert_same(loaded, result.model)
        assert loaded.scale.state == 3.5
        assert loaded.gain.shape[1] < 16
        assert "gain" not in loaded.state_dict()

    def test_a_weights_file_may_have_non_persistent_buffers(self, tmp_path: Path) -> None:
        model = nn.BatchNorm2d(3)
        model.register_buffer("gain", torch.ones(3), persistent=False)
        save_file({**model.state_dict(), "gain": torch.arange(3.0)}, tmp_path / "w.safetensors")
        from secateurs.zoo.weights import load_into

        load_into(model, tmp_path / "w.safetensors", "BatchNorm")
        assert torch.equal(model.gain, torch.arange(3.0))
        save_file(model.state_dict(), tmp_path / "w.safetensors")  # nor must it have them
        load_into(model, tmp_path / "w.safetensors", "BatchNorm")

    @pytest.mark.parametrize(
        "state",
        [
            None, True, 7, -2.5, [math.inf], "text", [1, [2.0, None]], (1, ("a", False)), {},
            {"scale": 2.0, 3: {"x": (1, 2)}, (0, 1): []}, OrderedDict(b=1, a=2),
        ],
        ids=repr,
    )  # fmt: skip
    def test_values(self, state: Any, tmp_path: Path) -> None:
        result = pruned(Net(state))
        loaded: Any = sc.load(result.save(tmp_path / "run"), model=Net())
        assert loaded.scale.state == state
        assert type(loaded.scale.state) is type(state)
        assert_same(loaded, result.model)

    def test_not_a_number(self, tmp_path: Path) -> None:
        loaded: Any = sc.load(pruned(Net({"best": math.nan})).save(tmp_path / "run"), model=Net())
        assert math.isnan(loaded.scale.state["best"])

    def test_tensors_in_it(self, tmp_path: Path) -> None:
        own = torch.arange(6.0)
        state = {"whole": own, "view": own[2:4], "half": torch.ones(2, 2).half().t(), "bytes": torch.arange(9).byte()}
        for given in (state, own, [own, own]):
            result = pruned(Net(given))
            loaded: Any = sc.load(result.save(tmp_path / "run", overwrite=True), model=Net())
            torch.testing.assert_close(loaded.scale.state, given, rtol=0, atol=0)

    @pytest.mark.parametrize(
        "state",
        [
            object(), {"f": print}, [b"bytes"], {1, 2}, torch.float32, torch.eye(2).to_sparse(),
            torch.frombuffer(bytearray(pickle.dumps({})), dtype=torch.uint8),
        ],
        ids=lambda x: type(x).__name__,
    )  # fmt: skip
    def test_what_only_pickle_could_hold_is_refused(self, state: Any, tmp_path: Path) -> None:
        result = pruned(Net(state))
        with pytest.raises(sc.ArtifactError, match=r"cannot be saved: .*scale"):
            result.save(tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_run_refuses_it_before_any_work(self, tmp_path: Path) -> None:
        data = sc.Data([(image(), torch.tensor([0, 1]))], [(image(), torch.tensor([0, 1]))])
        run = sc.PruneRun(Net(object()), data, tmp_path / "run", method="l1", budget=sc.Budget(macs=0.6))
        with pytest.raises(
            sc.ArtifactError, match=r"extra state of module scale holds an object of type builtins\.object"
        ):
            run.check()

    def test_nested_deeply(self, tmp_path: Path) -> None:
        state: Any = 0
        for _ in range(12):
            state = OrderedDict(x=state)  # what takes most levels of JSON
        loaded: Any = sc.load(pruned(Net(state)).save(tmp_path / "run"), Net())
        assert loaded.scale.state == state
        with pytest.raises(sc.ArtifactError, match="more than 12 levels of lists and dicts"):
            pruned(Net([state])).save(tmp_path / "other")

    def test_a_module_that_does_not_take_its_state(self, tmp_path: Path) -> None:
        class Strict(Scale):
            def set_extra_state(self, state: Any) -> None:
                raise ValueError("no such scale")

        fresh = Net()
        fresh.scale = Strict()
        folder = pruned(Net(2.0)).save(tmp_path / "run")
        with pytest.raises(
            sc.ArtifactError, match=r"scale \(Strict\) does not take its extra state: ValueError: no such"
        ):
            sc.load(folder, model=fresh)
        fresh.scale = nn.Identity()
        with pytest.raises(sc.ArtifactError, match=r"state of module scale, which this model does not have"):
            sc.load(folder, model=fresh)

    def test_a_model_whose_state_the_artifact_lacks(self, tmp_path: Path) -> None:
        plain = Net()
        plain.scale = nn.Identity()
        with pytest.raises(sc.ArtifactError, match="it has no state of module scale"):
            sc.load(pruned(plain).save(tmp_path / "run"), model=Net())


def two(tied: bool, change: Callable[[Any], None] = lambda net: None) -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
    )
    if tied:
        net[2].weight = net[1].weight
    change(net)
    return net


class TestTies:
    def test_one_tensor_under_several_names_is_stored_once(self, tmp_path: Path) -> None:
        result = sc.prune(two(True), image(), "l1", sc.Budget(macs=0.6), scope="all")
        folder = result.save(tmp_path / "run")
        assert not {"1.weight", "2.weight"} <= load_file(folder / MODEL).keys()
        loaded: Any = sc.load(folder, model=two(True))
        assert loaded[1].weight is loaded[2].weight
        assert_same(loaded, result.model)

    @pytest.mark.parametrize("scope", ["internal", "all"])
    def test_a_model_without_the_tie_is_refused(self, tmp_path: Path, scope: Any) -> None:
        folder = sc.prune(two(True), image(), "l1", sc.Budget(macs=0.9), scope=scope).save(tmp_path / "run")
        with pytest.raises(
            sc.ArtifactError, match=r"1\.weight and 2\.weight are one tensor.* Tie them first: model\.2\.weight"
        ):
            sc.load(folder, model=two(False))

    def test_a_model_that_ties_what_is_not_is_refused(self, tmp_path: Path) -> None:
        result = sc.prune(two(False), image(), "index", sc.Budget(macs=0.99), only=["3"])
        with pytest.raises(sc.ArtifactError, match=r"1\.weight and 2\.weight are one tensor in the model and differ"):
            sc.load(result.save(tmp_path / "run"), model=two(True))

    def test_views_of_one_memory(self, tmp_path: Path) -> None:
        """Parameters that overlap: each is stored whole, though none covers the memory."""

        def share(net: Any) -> None:
            memory = torch.randn(8 * 8 * 9 + 8, generator=torch.Generator().manual_seed(0))
            net[1].weight.data = memory[4:-4].view(8, 8, 3, 3)
            net[2].bias.data = memory[2:10]

        result = sc.prune(two(False, share), image(), "index", sc.Budget(macs=0.99), only=["3"])
        assert_same(sc.load(result.save(tmp_path / "run"), model=two(False, share)), result.model)

    def test_complex_and_channels_last(self, tmp_path: Path) -> None:
        class Waves(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
                self.filter = nn.Parameter(torch.randn(6, 4, dtype=torch.complex64))

            def forward(self, x: Tensor) -> Tensor:
                return self.b(torch.fft.irfft2(torch.fft.rfft2(self.a(x)) * self.filter))

        result = pruned(Waves().to(memory_format=torch.channels_last))
        assert_holds_the_same(sc.load(result.save(tmp_path / "run"), model=Waves()), result.model)


class TestChain:
    @pytest.mark.parametrize("rounds", [2, 3])
    def test_from_a_fresh_one_or_any_on_the_way(self, tmp_path: Path, rounds: int) -> None:
        on_the_way: list[nn.Module] = [Net()]
        for _ in range(rounds):
            result = pruned(on_the_way[-1], 0.8)
            on_the_way.append(result.model)
        folder = result.save(tmp_path / "run")
        for model in on_the_way[:-1]:
            assert_same(sc.load(folder, model=model), result.model)
        with pytest.raises(sc.PlanError, match=rf"plan\.json does not fit.*holds {rounds - 1} earlier cut"):
            sc.load(folder, model=result.model)

    def test_through_training_copies_calibration_and_files(self, tmp_path: Path) -> None:
        first = pruned(Net(), 0.8)
        first.save(tmp_path / "first")
        loaded = copy.deepcopy(sc.load(tmp_path / "first", model=Net()))
        with torch.no_grad():
            for p in loaded.parameters():
                p.add_(0.01)
        loaded = sc.calibrate(loaded.to(torch.float64).float(), [image()])
        result = pruned(loaded, 0.8)
        assert_same(sc.load(result.save(tmp_path / "run"), model=Net()), result.model)

    def test_a_network_that_was_widened(self, tmp_path: Path) -> None:
        def net() -> nn.Module:
            torch.manual_seed(0)
            return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))

        result = pruned(pruned(sc.widen(net(), image(), 1.5), 0.8).model, 0.8)
        assert_same(sc.load(result.save(tmp_path / "run"), model=net()), result.model)

    def test_a_network_of_build_that_was_edited_keeps_its_cuts(self, tmp_path: Path) -> None:
        def edited(model: nn.Module) -> Any:
            model.register_forward_hook(lambda module, args, out: 2 * out)
            model.temperature = 2.0
            return model

        first = sc.prune(sc.build("zoo:small_cnn"), image(), "l1", sc.Budget(macs=0.8)).model
        result = sc.prune(edited(first), image(), "l1", sc.Budget(macs=0.8))
        folder = result.save(tmp_path / "run")
        with pytest.raises(sc.ArtifactError, match="does not record how to build"):
            sc.load(folder)
        loaded = sc.load(folder, model=edited(sc.build("zoo:small_cnn")))
        assert torch.equal(loaded(image()), result.model.eval()(image()))

    def test_other_parameters_end_it(self) -> None:
        small = pruned(Net()).model
        assert source_of(small) is not None
        small.fc = nn.Linear(small.fc.in_features, 7)
        assert source_of(small) is None

    def test_stages_need_a_spec(self, tmp_path: Path) -> None:
        data = sc.Data([(image(), torch.tensor([0, 1]))])
        run = sc.PruneRun(
            pruned(Net()).model, data, tmp_path / "run", method="l1", budget=sc.Budget(macs=0.6),
            then=[sc.Stage(sc.L1(), 0.3)],
        )  # fmt: skip
        with pytest.raises(sc.ConfigError, match=r"was not made by sc\.build"):
            run.check()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = {"t": torch.arange(3.0), 1: (2, [math.inf])}
    return pruned(Net(state)).save(tmp_path_factory.mktemp("state") / "run")


class TestHostile:
    @pytest.mark.parametrize("value", VALUES)
    def test_every_field_of_the_state(self, whole: Path, value: str) -> None:
        text = (whole / CARD).read_text()
        card = json.loads(text)
        said = 0
        try:
            for path in [p for p in fields(card) if p[0] == "state"]:
                (whole / CARD).write_text(json.dumps(changed(card, path, VALUES[value])))
                said += harmless(lambda: sc.load(whole, model=Net()), whole, str(whole)) is not None
        finally:
            (whole / CARD).write_text(text)
        assert said > 3

    @pytest.mark.parametrize(
        "state",
        [
            {"tensor": "nowhere"},
            {"tensor": "a.weight", "x": 1},
            {"call": "print"},
            {"float": "1"},
            {"dict": [[[1], 2]]},
        ],
    )
    def test_other_kinds(self, whole: Path, state: Any) -> None:
        text = (whole / CARD).read_text()
        try:
            values = {"scale._extra_state": state}
            (whole / CARD).write_text(json.dumps({**json.loads(text), "state": {"values": values}}))
            with pytest.raises(sc.ArtifactError, match=r"card\.json is not valid: the state of module scale"):
                sc.load(whole, model=Net())
        finally:
            (whole / CARD).write_text(text)

    def test_a_pickle_in_place_of_a_tensor_is_not_passed_on(self, tmp_path: Path) -> None:
        result = pruned(Net({"t": torch.zeros(4, dtype=torch.uint8)}))
        folder = result.save(tmp_path / "run")
        tensors = load_file(folder / MODEL)
        key = next(k for k in tensors if "_extra_state" in k)
        save_file({**tensors, key: torch.frombuffer(bytearray(pickle.dumps({})), dtype=torch.uint8)}, folder / MODEL)
        card = json.loads((folder / CARD).read_text())
        card["files"][MODEL] = artifact.digest(folder / MODEL)
        (folder / CARD).write_text(json.dumps(card))
        with pytest.raises(sc.ArtifactError, match="it holds a pickle"):
            sc.load(folder, model=Net())
