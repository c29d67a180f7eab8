"""What a study is for: limits of `prune`, with errors that name the study, and what it says of its own chance and time."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import secateurs as sc
from secateurs.methods.limits import Limits
from secateurs.proposed import Exactly, Study, study_of
from secateurs.testing.networks import data, images, network
from tests.studies.test_sensitivity import made, study

measure = import_module("secateurs.studies.sensitivity.measure")


@pytest.fixture(scope="module")
def everywhere() -> sc.Sensitivity:
    return study(scope="all")


def prune(budget: float | None = None, **options: Any) -> sc.Result:
    limit = None if budget is None else sc.Budget(macs=budget)
    return sc.prune(
        network("residual"), images(1), "l2", limit, data=data(), calibrate=False, check_speed=False, **options
    )


def widths(result: sc.Result) -> dict[str, int]:
    return {name: len(kept) for name, kept in result.plan.groups.items()}


# -- bounds for a budget -----------------------------------------------------------------------------------------------


def test_a_study_bounds_what_the_budget_decides() -> None:
    found = study()
    kept = {name: math.ceil(16 * keep - 1e-9) for name, keep in found.ratios(100).items()}
    assert kept == {"blocks.0.0": 8, "blocks.1.0": 8}
    assert found.max_cut(100) == {"blocks.0.0": 0.5, "blocks.1.0": 0.5}
    result = prune(0.7, max_cut=found.max_cut(100))
    assert 0.65 < result.after.macs / result.before.macs <= 0.7
    assert all(8 <= width < 16 for width in widths(result).values())
    assert Limits(max_cut=found) == Limits(max_cut=found.max_cut())
    with pytest.raises(sc.BudgetError):
        prune(0.5, max_cut=found.max_cut(100))


@pytest.mark.parametrize("size", [3, 7, 30, 64, 1000])
def test_bounds_are_the_widths_of_ratios(size: int) -> None:
    graph = SimpleNamespace(size=size, least=1)
    for width in range(1, size + 1, max(1, size // 50)):
        found = made(0.0, shares=(1 - width / size,) if width < size else (1e-9,), size=size)
        cut = found.max_cut(1.0)["conv"]
        assert import_module("secateurs.methods.limits")._whole(graph, 1 - cut) == width


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "ratios",
            r"ratios=<study of Residual, drop=2> limits what may be cut\. Ratios fix how much is kept: with "
            r"max_cut=<study of Residual, drop=…> the budget decides, and a drop above 2 allows more, up to the largest share",
        ),
        (
            "max_cut",
            r"max_cut=<study of Residual, drop=2> limits what may be cut\. max_cut=<study of Residual, drop=…>: a drop above 2 "
            r"allows more",
        ),
    ],
)
def test_a_budget_that_a_study_does_not_allow(setting: str, said: str) -> None:
    found = study()
    with pytest.raises(sc.BudgetError, match=said):
        prune(0.3, **{setting: getattr(found, setting)(2.0)})


def test_what_names_the_study_survives_copies() -> None:
    name = Exactly("conv", Study("net", "all", 1.0), 0.5)
    for other in (copy.deepcopy(name), pickle.loads(pickle.dumps(name))):
        assert (other, other.study, other.value) == (name, name.study, name.value)


@pytest.mark.parametrize("setting", ["ratios", "max_cut"])
def test_a_value_of_the_users_own_is_not_the_studys(setting: str) -> None:
    proposed = getattr(study(), setting)(2.0)
    name = str(next(iter(proposed)))
    own = dict(Limits(**{setting: {**proposed, name: 0.123}}).__dict__[setting])
    assert [study_of(which) is None for which in own] == [which == name for which in own]


# -- a study of another scope, or network ------------------------------------------------------------------------------


def test_the_scope_that_it_was_measured_with(everywhere: sc.Sensitivity) -> None:
    assert (everywhere.scope, study().scope, made(0.5, 2.5, 10.0).scope) == ("all", "internal", None)
    said = (
        r"ratios=<study of Residual, drop=100> cuts conv1, but it is on a shortcut, and only scope='all' cuts those\. "
        r"The study was measured with scope='all': add it here, too\."
    )
    with pytest.raises(sc.ConfigError, match=said):
        prune(ratios=everywhere.ratios(100))
    assert widths(prune(ratios=everywhere.ratios(100), scope="all"))["conv1"] == 6
    assert "conv1" not in widths(prune(0.7, max_cut=everywhere.max_cut(100)))  # bounds are none of another scope


def test_the_file_knows_its_scope(tmp_path: Any, everywhere: sc.Sensitivity) -> None:
    assert sc.Sensitivity.load(everywhere.save(tmp_path / "a.json")).scope == "all"
    study(folder=tmp_path / "b", scope="all")
    assert sc.Sensitivity.load(tmp_path / "b" / "sensitivity.json").scope == "all"


def test_the_user_may_hold_some_of_its_groups(everywhere: sc.Sensitivity) -> None:
    kept = widths(prune(ratios=everywhere.ratios(100), scope="all", exclude="conv1"))
    assert kept == {"blocks.0.0": 8, "blocks.1.0": 8}


def test_a_study_of_another_network() -> None:
    with pytest.raises(
        sc.ConfigError, match=r"ratios=<study of net, drop=1> is of another network: .* no channel group conv\."
    ):
        prune(ratios=made(0.5, 2.5, 10.0))


# -- chance ------------------------------------------------------------------------------------------------------------


def test_how_much_chance_there_is_in_an_accuracy() -> None:
    few = made(0.5, 2.5, 10.0, images=100)  # 90% of 100 images
    assert few.summary()[2:4] == [
        "noise: one standard error of top-1 is 3.00 points, one image is 1.00",
        "warning: a drop of 1 point is within the noise: raise images=… or drop=…, or take metric='loss'.",
    ]
    assert few.summary()[2] in str(few)
    assert not [line for line in few.summary(3.5) if "warning" in line]
    many = made(0.5, 2.5, 10.0, images=10_000)
    assert "standard error of top-1 is 0.30 points" in many.summary()[2]
    assert not [line for line in many.summary() if "warning" in line]


def test_an_accuracy_without_errors_is_known_to_an_image() -> None:
    found = made(0.5, 2.5, 10.0, images=64)
    right = found.model_copy(update={"base": replace(found.base, top1=100.0)})
    assert "one standard error of top-1 is 0.00 points, one image is 1.56" in right.summary()[2]
    assert "a drop of 1 point is within the noise" in right.summary()[3]


def test_no_other_figure_has_a_standard_error() -> None:
    assert not [line for line in made(0.5, 2.5, 10.0, metric="loss").summary() if "noise" in line or "warning" in line]


# -- time --------------------------------------------------------------------------------------------------------------


def timed(monkeypatch: pytest.MonkeyPatch, base: float, calibrated: float, group: float = 0.0) -> None:
    """Let these parts of a study take so many seconds."""
    now = [0.0]
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slower(original: Any, seconds: float) -> Any:
        def slow(self: Any, *given: Any) -> Any:
            now[0] += seconds
            return original(self, *given)

        return slow

    for name, seconds in (("base", base), ("base_calibrated", calibrated), ("_group", group)):
        monkeypatch.setattr(measure._Study, name, slower(getattr(measure._Study, name), seconds))


@pytest.mark.parametrize(
    ("base", "calibrated", "options", "said"),
    [
        (3.0, 5.0, {}, "about 32 s for 2 groups"),
        (60.0, 5.0, {}, "about 40 s for 2 groups"),  # its first run waited for the device
        (60.0, 5.0, {"calibrate": False}, "about 4:00 for 2 groups"),
        (0.5, 1.0, {}, None),
    ],
)
def test_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, base: float, calibrated: float, options: dict[str, Any], said: str | None
) -> None:
    lines: list[str] = []
    timed(monkeypatch, base, calibrated)
    study(report=lines.append, **options)
    assert [line for line in lines if line.startswith("about")] == ([] if said is None else [said])


def test_how_long_a_resumed_study_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    timed(monkeypatch, 1.0, 1.0, 50.0)
    with monkeypatch.context() as patch:
        slow, seen = measure._Study._group, []

        def once(self: Any, *given: Any) -> Any:
            if seen:
                raise KeyboardInterrupt
            seen.append(given)
            return slow(self, *given)

        patch.setattr(measure._Study, "_group", once)
        with pytest.raises(KeyboardInterrupt):
            study(folder=tmp_path)
    lines: list[str] = []
    study(folder=tmp_path, resume=True, report=lines.append)
    assert "about 52 s for 1 group" in lines


def test_other_images_to_calibrate_on_are_another_study(tmp_path: Path) -> None:
    mine = data().train
    study(folder=tmp_path, calibrate=mine)
    assert study(folder=tmp_path, calibrate=data().train, resume=True).finished
    with pytest.raises(sc.ConfigError, match=r"it differs in calibrate\.sha256"):
        study(folder=tmp_path, calibrate=[(inputs + 1, targets) for inputs, targets in mine], resume=True)
    with pytest.raises(sc.ConfigError, match="it differs in calibrate "):
        study(folder=tmp_path, resume=True)
