"""Settings without effect are named, and really have none."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

import secateurs as sc
from secateurs.cli import main
from secateurs.methods import Method, Task
from secateurs.testing.networks import images, network
from secateurs.testing.state import assert_equal_states

HALF = sc.Budget(macs=0.5)
SHORT = {"epochs": 2, "steps_per_epoch": 4, "distil": 0}
DATA = [(images(8, i), torch.arange(8) % 4) for i in range(4)]


def pruned(kind: type[Method], settings: dict[str, Any], budget: sc.Budget | None) -> sc.Result:
    short = {k: v for k, v in SHORT.items() if k in kind.model_fields}
    return sc.prune(
        network(), images(1), kind(**{**short, **settings}), budget, DATA, progress="silent", check_speed=False
    )


@pytest.mark.parametrize(
    ("kind", "settings", "idle", "budget"),
    [
        (sc.AOFP, {"theta": 0.5}, {"theta_growth": 8.0}, None),
        (sc.AOFP, {}, {"patience": 3}, HALF),
        (sc.NPN, {"gates": "sample"}, {"pruner_images": 0.5}, HALF),
        (sc.NPN, {}, {"schedule": "ramp", "calibration": 8, "threshold": 0.9, "scale": 10.0}, HALF),
        (sc.PFF, {"alpha": 1e-3}, {"cost": 1.0, "limit": 1.0, "arrive": 0.5, "fixed": 0.1, "gamma": 0.5}, HALF),
        (sc.PFF, {"alpha": 1e-3}, {"hold": False}, HALF),
        (sc.PFF, {"prior": "none"}, {"cost": 1.0}, HALF),
        (sc.PFF, {"penalty": "group-lasso"}, {"skeleton_lr": 0.5, "skeleton_decay": 0.1, "prior": "none"}, HALF),
        (sc.EPruner, {}, {"late": 2.0, "late_from": 0.2}, HALF),
        (sc.EPruner, {"beta": 0.7}, {"late_from": 0.2}, None),
        (sc.EPruner, {"init": "l1"}, {"similarity": "distance", "damping": 0.9, "diagonal": False}, HALF),
        (sc.OneStep, {"rate": 2.0}, {"cost": 1.0, "ranking": "global"}, None),
        (sc.OneStep, {"lam": 0.1}, {"strength": 9.0}, HALF),
        (sc.L2Stripes, {"ranking": "layer"}, {"cost": 1.0}, HALF),
        (sc.Oracle, {"rescore": False, "examples": 8}, {"granularity": 3}, HALF),
    ],
)
def test_what_has_no_effect_is_said(
    kind: type[Method],
    settings: dict[str, Any],
    idle: dict[str, Any],
    budget: sc.Budget | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "secateurs"):
        plain = pruned(kind, settings, budget)
        assert not caplog.messages
        found = pruned(kind, {**settings, **idle}, budget)
    assert found.plan == plain.plan
    assert_equal_states(found.model, plain.model, f"with {idle}")
    for name, value in idle.items():
        assert any(f"{kind.name}: {kind.__name__}({name}={value!r}) has no effect: " in m for m in caplog.messages)


@pytest.mark.parametrize("name", sc.methods())
def test_nothing_is_said_of_defaults_and_presets(name: str) -> None:
    from secateurs.methods.registry import resolve

    kind, model = type(resolve(name)), network()
    graph = sc.trace(model, images(1))
    for task in (Task(model, graph, HALF), Task(model, graph, None)):
        for method in (kind(), *(kind.preset(p) for p in kind.presets), *(kind(preset=p) for p in kind.presets)):
            assert not task.unused(method)


def test_settings_beside_a_preset_are_the_users() -> None:
    model = network()
    task = Task(model, sc.trace(model, images(1)), None)
    (line,) = task.unused(sc.PFF.preset("long", arrive=0.5))
    assert "arrive=0.5" in str(line)
    assert "arrive=0.5" in "".join(map(str, task.unused(sc.PFF(preset="long", arrive=0.5).before(3))))


def test_in_a_loop_of_ones_own(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "secateurs"):
        sc.attach(network(), images(1), sc.AOFP(patience=2), HALF, steps=2, epoch_steps=2, data=DATA)
    assert [m for m in caplog.messages if m.startswith("aofp: AOFP(patience=2) has no effect: with a budget")]


def test_on_the_command_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, root.handlers = root.handlers, []  # as in a process of its own
    try:
        arguments = [
            "zoo:small_cnn",
            "--data",
            "digits",
            "--pretrain-epochs",
            "0",
            "--method",
            "epruner",
            "--macs",
            "0.5",
            "--recover",
            "none",
        ]
        assert main(["prune", *arguments, "--set", "late=1.5", "--out", str(tmp_path / "run"), "--no-calibrate"]) == 0
    finally:
        root.handlers = before
    said = capsys.readouterr().err
    assert "epruner: --set late=1.5 has no effect: --set widths=uniform keeps the same share of every layer" in said
