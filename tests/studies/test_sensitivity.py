"""Each group cut alone: the figures of real cuts, a file that resumes, and ratios that `prune` takes."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateurs as sc
from secateurs import training
from secateurs.artifact import Figures
from secateurs.methods.limits import Limits
from secateurs.proposed import Exactly
from secateurs.studies.fingerprint import fingerprint
from secateurs.studies.sensitivity.result import Cut, Group, _tolerated
from secateurs.testing.networks import data, images, network

measure = import_module("secateurs.studies.sensitivity.measure")
GROUPS = {"residual": 2, "small_cnn": 3, "depthwise": 3}


def study(model: nn.Module | None = None, source: sc.Data | None = None, **options: Any) -> sc.Sensitivity:
    options = {"images": 10, "shares": (0.25, 0.5), "progress": "silent", **options}
    return sc.sensitivity(model or network("residual"), images(1), data=source or data(), **options)


def loss_of(model: nn.Module, source: sc.Data) -> float | None:
    return training.evaluate(model, source.val).loss


@pytest.mark.parametrize("name", GROUPS)
def test_the_figures_are_those_of_cuts(name: str) -> None:
    """Masked ones and calibrated ones are what `prune` measures of one cut."""
    model, source = network(name), data()
    found = study(model, source, images=10_000)
    graph = sc.trace(model, images(1))
    assert [g.name for g in found.groups] == [g.name for g in graph.groups if g.prunable and g.internal]
    assert len(found.groups) == GROUPS[name]
    assert found.base.loss == pytest.approx(loss_of(model, source), rel=1e-5)
    for group in found.groups:
        for share, cut in zip(found.shares, group.cuts, strict=True):
            assert cut.kept == math.ceil(group.size * (1 - share))
            once = sc.prune(model, images(1), "l2", data=source, ratios={Exactly(group.name): cut.kept / group.size})
            for ours, theirs in ((cut.cut, once.cut), (cut.calibrated, once.calibrated)):
                assert ours is not None
                assert (ours.macs, ours.params) == (theirs.macs, theirs.params)
                assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
                assert ours.top1 == pytest.approx(theirs.top1)


def test_the_criterion_chooses() -> None:
    losses = {}
    for method in ("l2", "random", sc.Taylor(examples=8)):
        found = study(method=method, calibrate=False)
        assert found.calibrated_on == 0
        assert all(cut.calibrated is None for group in found.groups for cut in group.cuts)
        losses[found.method["name"]] = [cut.cut.loss for group in found.groups for cut in group.cuts]
    assert losses["l2"] != losses["random"] != losses["taylor"]


def test_the_model_and_the_generators_are_unchanged() -> None:
    model = network("residual").train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    state = torch.get_rng_state()
    study(model)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_layers_before_a_group_run_once_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, source = network("residual"), data()
    calls: dict[str, int] = {}
    original = measure.copied

    def counted(given: nn.Module) -> nn.Module:
        copy = original(given)
        for name, module in copy.named_modules():
            if isinstance(module, nn.Conv2d):
                inner = module._conv_forward
                module._conv_forward = lambda *a, n=name, f=inner: (calls.__setitem__(n, calls.get(n, 0) + 1), f(*a))[1]
        return copy

    monkeypatch.setattr(measure, "copied", counted)
    shares = (0.1, 0.3, 0.5, 0.7, 0.9)
    study(model, source, only="blocks.1.0", calibrate=False, shares=shares)
    assert calls["blocks.1.3"] - calls["blocks.0.0"] >= len(shares) - 1  # reads the group, for each share


def test_metrics_of_ones_own() -> None:
    def error(outputs: Any, targets: Any) -> float:
        return float((outputs.argmax(1) != targets).float().mean())

    error.higher_is_better = False  # type: ignore[attr-defined]
    found = study(metrics={"error": error})
    assert (found.metric, found.higher_is_better) == ("error", False)
    for group, drops in zip(found.groups, found.drops(calibrated=False).values(), strict=True):
        for cut, drop in zip(group.cuts, drops, strict=True):
            assert drop == pytest.approx(cut.cut.metrics["error"] - found.base.metrics["error"])
            assert cut.cut.metrics["error"] == pytest.approx(1 - cut.cut.top1 / 100)
    assert study(metrics={"error": error}, metric="loss").metric == "loss"
    with pytest.raises(sc.ConfigError, match=r"metric='top2' is not measured\. Did you mean top"):
        study(metric="top2")


def test_any_batch_and_no_labels_of_classes() -> None:
    model, source = network("residual"), data()
    whole = sc.Data([{"x": x, "y": y} for x, y in source.train], [{"x": x, "y": y} for x, y in source.val])

    def forward(net: nn.Module, batch: Any) -> tuple[Any, Any]:
        return net(batch["x"]), batch["x"].mean((2, 3))[:, :1].expand(-1, 4)

    found = study(
        model, whole, forward=forward, loss=lambda outputs, targets: (outputs - targets).square().mean(), shares=[0.5]
    )
    assert (found.metric, found.higher_is_better, found.base.top1) == ("loss", False, None)
    assert all(math.isfinite(found.value(cut.calibrated)) for group in found.groups for cut in group.cuts)


# -- what is done with it ----------------------------------------------------------------------------------------------


def made(
    *drops: float, shares: tuple[float, ...] = (0.25, 0.5, 0.75), size: int = 16, **options: Any
) -> sc.Sensitivity:
    def figures(drop: float) -> Figures:
        return Figures(1, 1, top1=90.0 - drop, top5=99.0, loss=1.0)

    kept = [math.ceil(size * (1 - share) - 1e-9) for share in shares]
    pairs = zip(kept, drops, strict=True)
    cuts = tuple(Cut(kept=width, cut=figures(2 * drop), calibrated=figures(drop)) for width, drop in pairs)
    group = Group(name="conv", size=size, cuts=cuts)
    given = {"model": "net", "method": {"name": "l2"}, "metric": "top1", "images": 10, "calibrated_on": 10, **options}
    return sc.Sensitivity(shares=shares, base=figures(0), groups=(group,), **given)


@pytest.mark.parametrize(("drop", "kept"), [(0.0, 16), (0.5, 12), (1.0, 11), (2.5, 8), (6.25, 6), (10.0, 4), (80.0, 4)])
def test_ratios_interpolate_and_never_cut_more_than_was_measured(drop: float, kept: int) -> None:
    found = made(0.5, 2.5, 10.0)
    (ratio,) = found.ratios(drop).values()
    assert math.ceil(16 * ratio - 1e-9) == kept
    (twice,) = found.ratios(drop, calibrated=False).values()
    assert twice >= ratio


def test_a_network_may_gain_by_a_cut() -> None:
    assert made(-1.0, -0.5, 0.5).ratios(0.0)["conv"] == pytest.approx(6 / 16)
    assert _tolerated([0.25, 0.5], [math.inf, 0.0], 1.0) == 0.0  # what can't be computed is not tolerated


@pytest.mark.parametrize("size", [3, 7, 30, 64, 1000])
def test_ratios_keep_whole_channels(size: int) -> None:
    for width in range(1, size + 1, max(1, size // 50)):
        found = made(0.0, shares=(1 - width / size,) if width < size else (1e-9,), size=size)
        assert math.ceil(size * found.ratios(1.0)["conv"] - 1e-9) == width


def test_ratios_and_the_study_itself_are_for_prune() -> None:
    model, source = network("residual"), data()
    found = study(model, source)
    kept = {name: math.ceil(16 * keep - 1e-9) for name, keep in found.ratios().items()}
    for given in (found, found.ratios()):
        result = sc.prune(model, images(1), "l2", data=source, ratios=given)
        assert {name: len(kept) for name, kept in result.plan.groups.items()} == {
            n: k for n, k in kept.items() if k < 16
        }
        assert result.limits is None or result.limits["ratios"].keys() == kept.keys()
    assert Limits(ratios=found) == Limits(ratios=found.ratios())


def test_a_ratio_is_for_the_group_of_its_name_only() -> None:
    """A module with weights of its own may make several groups, of which the name of the first is that of the module."""

    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Parameter(torch.ones(8, 3)), nn.Parameter(torch.ones(6, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(F.linear(x, self.one).relu(), self.two).relu()

    graph = sc.trace(nn.Sequential(OrderedDict(several=Several(), fc=nn.Linear(6, 4))), torch.zeros(1, 3))
    assert [g.name for g in graph.groups if g.prunable] == ["several", "several#2"]

    def kept(**ratios: float) -> dict[str, int]:
        return {name: bound.most for name, bound in Limits(ratios=ratios).on(graph).items()}

    assert kept(several=0.5) == {"several": 4, "several#2": 3}
    exact = Limits(ratios={Exactly("several#2"): 0.5, Exactly("several"): 0.25}).on(graph)
    assert {name: bound.most for name, bound in exact.items()} == {"several": 2, "several#2": 3}


def test_the_table_and_the_notebook_show_names_as_they_are() -> None:
    group = Group(name="<b>[red]conv", size=4, cuts=(Cut(kept=2, cut=Figures(1, 1, top1=50.0)),))
    found = made(0.0, shares=(0.5,)).model_copy(update={"groups": (group,), "calibrated_on": 0, "model": "<i>"})
    assert "<b>" not in found._repr_html_()
    assert "<i>" not in found._repr_html_()
    assert "&lt;b&gt;" in found._repr_html_()
    table = found.table()
    assert [column.header for column in table.columns] == ["group", "channels", "50% cut", "keep"]
    assert list(table.columns[2].cells) == ["50.00"]
    assert "\n<b>[red]conv" in str(found)
    assert "keep: the fraction" in str(found)
    assert "\n" not in repr(found)


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = made(0.5, 2.5, 10.0)
    assert found.plot(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    text = found.plot(tmp_path / "a.svg").read_text()
    assert "calibrated" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "a.svg"]
    assert found.plot(tmp_path / "new" / "a.png").exists()
    with pytest.raises(sc.ArtifactError, match="could not be written"):
        found.plot(tmp_path / "a.png" / "a.png")
    with pytest.raises(sc.ConfigError, match=r"a\.mov: a picture cannot be saved as \.mov"):
        found.plot(tmp_path / "a.mov")


# -- the file ----------------------------------------------------------------------------------------------------------


def test_the_file_loads_to_the_same(tmp_path: Path) -> None:
    found = study(folder=tmp_path / "r")
    loaded = sc.Sensitivity.load(tmp_path / "r" / "sensitivity.json")
    assert loaded == found
    assert found.save(tmp_path / "b.json").exists()
    assert sc.Sensitivity.load(tmp_path / "b.json") == found


def test_a_killed_study_resumes_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, measured = study(), []
    original = measure._Study._group

    def once(self: Any, group: Any, order: Any) -> Any:
        if measured:
            raise KeyboardInterrupt
        measured.append(group.name)
        return original(self, group, order)

    monkeypatch.setattr(measure._Study, "_group", once)
    with pytest.raises(
        KeyboardInterrupt, match=r"keeps what is done so far: the same study with resume=True continues"
    ):
        study(folder=tmp_path)
    half = json.loads((tmp_path / "sensitivity.json").read_text())
    assert (half["finished"], len(half["groups"])) == (False, 1)
    with pytest.raises(sc.ArtifactError, match=r"is not finished: it has 1 group\."):
        sc.Sensitivity.load(tmp_path / "sensitivity.json")
    with pytest.raises(sc.ConfigError, match="resume=True continues it, overwrite=True replaces it"):
        study(folder=tmp_path)
    with pytest.raises(sc.ConfigError, match="another study: it differs in seed"):
        study(folder=tmp_path, resume=True, seed=1)
    with pytest.raises(sc.ConfigError, match="another study: it differs in functions"):
        study(folder=tmp_path, resume=True, loss=F.cross_entropy)
    monkeypatch.setattr(measure._Study, "_group", original)
    monkeypatch.setattr(measure._Study, "base", None)  # it is in the file
    done = study(folder=tmp_path, resume=True)
    assert (done.groups, done.base) == (whole.groups, whole.base)
    monkeypatch.setattr(measure, "traced", None)
    said: list[str] = []
    assert study(folder=tmp_path, resume=True, report=said.append) == done
    assert said == [f"{tmp_path / 'sensitivity.json'} is finished already: nothing to do."]


def test_a_study_of_other_data_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study(folder=tmp_path)
    assert study(folder=tmp_path, resume=True).finished  # the same batches, made again
    given = data()
    changed = [(inputs + 1e-3, targets) for inputs, targets in given.val]
    with pytest.raises(
        sc.ConfigError,
        match=r"another study: it differs in data\.val\.sha256 .*Otherwise, choose another folder=…, or replace it with",
    ):
        study(source=sc.Data(given.train, changed), folder=tmp_path, resume=True)
    with pytest.raises(sc.ConfigError, match=r"it differs in data\.val\.batches"):
        study(source=sc.Data(given.train, 2 * list(given.val)), folder=tmp_path, resume=True)


def test_data_that_is_drawn_is_the_same_data() -> None:
    """Augmentation and order are not what tells data apart, and nobody's generator is moved on."""
    generator = torch.Generator().manual_seed(0)

    class Drawn(torch.utils.data.Dataset[Any]):
        def __init__(self, own: bool = False) -> None:
            self.own = own

        def __len__(self) -> int:
            return 8

        def __getitem__(self, i: int) -> Any:
            return torch.full((3, 4, 4), float(i)) + torch.rand(1, generator=generator if self.own else None), i % 2

    def loader(own: bool = False) -> Any:
        return torch.utils.data.DataLoader(Drawn(own), batch_size=4, shuffle=True, generator=generator)

    before, states = torch.get_rng_state(), generator.get_state()
    one, two = fingerprint(sc.Data(loader(), loader())), fingerprint(sc.Data(loader(), loader()))
    assert one == two
    assert one["val"]["sha256"] is not None
    assert (one["train"]["batches"], one["train"]["examples"], one["train"]["shapes"]) == (2, 8, [[1, 3, 4, 4], [1]])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(generator.get_state(), states)
    assert fingerprint(sc.Data(loader(own=True)))["train"]["sha256"] is None  # drawn anew each time
    assert fingerprint(sc.Data(iter(data().train))) == {}


def test_calibrated_cuts_are_compared_with_the_calibrated_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics that are off, which calibration alone mends, are no gain of any cut."""
    model, source = network("residual"), data()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.mul_(9.0)
    found = study(model, source, images=10_000, metric="loss")
    assert found.base_calibrated is not None
    assert found.base.loss == pytest.approx(loss_of(model, source), rel=1e-5)
    again = sc.calibrate(model, [inputs for inputs, _ in source.train])
    assert found.whole_calibrated == pytest.approx(loss_of(again, source), rel=1e-4)
    assert found.whole_calibrated != pytest.approx(found.whole, rel=0.01)
    (name, drops), cut = next(iter(found.drops().items())), found.groups[0].cuts[0]
    assert cut.calibrated is not None
    assert drops[0] == pytest.approx(cut.calibrated.loss - found.whole_calibrated)
    assert found.drops(calibrated=False)[name][0] == pytest.approx(cut.cut.loss - found.whole)
    assert " → " in found.summary()[0]
    older = found.model_copy(update={"base_calibrated": None})  # of a file without it
    assert older.drops()[name][0] == pytest.approx(cut.calibrated.loss - found.whole)


def test_an_early_end_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "traced", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study(folder=tmp_path / "runs" / "s")
    assert not list(tmp_path.iterdir())


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sensitivity.json").write_text('{"mine": 1}')
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(sc.ArtifactError, match="move it, or choose another folder"):
            study(folder=tmp_path, **options)
    assert (tmp_path / "sensitivity.json").read_text() == '{"mine": 1}'
    (tmp_path / "sensitivity.json").unlink()
    (tmp_path / "sensitivity.png").write_text("mine")
    with pytest.raises(sc.ConfigError, match="was not written by a sensitivity study"):
        study(folder=tmp_path, overwrite=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["groups"][0]["cuts"].pop(),
        lambda body: body["groups"][0].update(size=1),
        lambda body: body.update(version=2),
        lambda body: body["groups"][0].update(name="a\x1b[31m"),
        lambda body: body["shares"].append(7),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: Any) -> None:
    path = made(0.5, 2.5, 10.0).save(tmp_path / "s.json")
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    with pytest.raises(sc.ArtifactError, match=r"s\.json is not valid"):
        sc.Sensitivity.load(path)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "epruner"}, r"method='epruner' does not score channels.* needs a criterion: .*l2"),
        ({"shares": [1.0]}, r"shares=1\.0 is not valid: give fractions"),
        ({"shares": []}, r"shares=\(\) is empty"),
        ({"shares": None}, "shares=None is not valid: give fractions"),
        ({"images": 0}, "images=0 is not valid"),
        ({"source": sc.Data(data().train)}, "measures on validation data"),
        ({"only": "nothing"}, "nothing' matches no layer"),
    ],
)
def test_what_is_refused_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(sc.ConfigError, match=message):
        study(**options)


def test_no_group_to_cut() -> None:
    with pytest.raises(sc.BudgetError, match="no channel group to cut"):
        study(exclude="*")
    with pytest.raises(sc.ConfigError, match=r"drop=-1 is not valid"):
        made(0.5, 2.5, 10.0).ratios(-1)
