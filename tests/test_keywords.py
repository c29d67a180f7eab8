"""Arguments that a constructor does not have, or that are missing: errors of ours, with the names that there are."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import secateurs as sc
from secateurs.cli.spelling import option
from secateurs.errors import BudgetError, ConfigError, DataError, SecateursError
from secateurs.foreign import KEYWORDS, suggestion


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: sc.Budget(flops=0.5), BudgetError, r"Budget has no flops\. FLOPs are two for each MAC: pass macs=…"),  # type: ignore[call-arg]
        (lambda: sc.Budget(mac=0.5), BudgetError, r"Budget has no mac\. Did you mean macs\?"),  # type: ignore[call-arg]
        (
            lambda: sc.Budget(round_to=8),
            BudgetError,
            r"Budget has no round_to\. Pass align=…: widths are multiples of it\.",
        ),  # type: ignore[call-arg]
        (lambda: sc.Budget(pruning_ratio=0.5), BudgetError, r"Pass macs=…: the share of the MACs that stays"),  # type: ignore[call-arg]
        (lambda: sc.Limits(ignored_layers=[]), ConfigError, r"Limits has no ignored_layers\. Pass exclude=…"),  # type: ignore[call-arg]
        (lambda: sc.Limits(round_to=8), ConfigError, r"Limits has no round_to\. Known: exclude, "),  # type: ignore[call-arg]
        (lambda: sc.Budget(time=0.5), BudgetError, "Budget has no time"),  # type: ignore[call-arg]
        (lambda: sc.Budget(0.5, 0.5, 1, 2), BudgetError, "too many positional arguments"),  # type: ignore[call-arg]
        (lambda: sc.Data(val=[1]), DataError, "Data: missing a required argument: 'train'"),  # type: ignore[call-arg]
        (lambda: sc.Data([1], test=[1]), DataError, "Data has no test. Pass val=…"),  # type: ignore[call-arg]
        (lambda: sc.Limits(excluded="a"), ConfigError, r"Limits has no excluded\. Did you mean exclude\?"),  # type: ignore[call-arg]
        (lambda: sc.Stage(), ConfigError, "missing a required argument: 'method'"),  # type: ignore[call-arg]
        (lambda: sc.DataSpec(batchsize=3), ConfigError, "Did you mean batch_size"),  # type: ignore[call-arg]
        (lambda: sc.PruneRun("zoo:resnet20", "digits", "x", round=3), ConfigError, "Did you mean rounds"),  # type: ignore[call-arg]
    ],
)
def test_what_is_wrong_is_named(call: Callable[[], Any], kind: type[SecateursError], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_right_arguments_are_left_alone() -> None:
    assert list(inspect.signature(sc.Budget).parameters) == ["macs", "params", "align", "latency", "ms", "target"]
    budget = sc.Budget(0.5, align=8)
    assert dataclasses.replace(budget, macs=0.25) == sc.Budget(macs=0.25, align=8)
    assert pickle.loads(pickle.dumps(budget)) == budget


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "pruning_ratio",
            0.5,
            r"Pass budget=sc\.Budget\(macs=…\): the share of the MACs that stays, in place of what goes\.$",
        ),
        ("amount", 0.5, r"Pass budget=sc\.Budget\(macs=…\)"),
        ("pruning_ratio_dict", {}, "Pass ratios=…: for each layer the share of its channels that stays"),
        ("importance", None, "Pass method='l2': or another method"),
        ("round_to", 8, r"Pass budget=sc\.Budget\(…, align=…\)"),
        ("iterative_steps", 3, "Pass rounds=…"),
        ("ignored_layers", [], "Pass exclude=…"),
        ("root_module_types", [], "Pass only=…"),
        ("global_pruning", True, r"Pass method=sc\.L2\(ranking='global'\)"),
        ("epochs", 3, "Pass recover=…: the training after the cut, with its own length"),
        ("train_loader", [], "Pass data=…: the training batches"),
        ("criterion", None, r"Pass loss=…: a function \(outputs, targets\)"),
        ("unwrapped_parameters", [], "Leave it out: the trace finds"),
        ("align", 8, r"align is a setting of the budget: pass budget=sc\.Budget\(align=8\)"),
    ],
)
def test_arguments_of_other_libraries_lead_to_ours(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sc.prune(sc.build("zoo:small_cnn"), torch.randn(1, 3, 32, 32), "l2", **{name: value})


def test_what_is_suggested_for_other_libraries_exists() -> None:
    known = {*inspect.signature(sc.prune).parameters, *inspect.signature(sc.Budget).parameters, *sc.L2.model_fields}
    assert {found[0].name for found in KEYWORDS.values() if not isinstance(found, str)} <= known
    assert not known & KEYWORDS.keys()
    assert suggestion("--pruning-ratio", option) == (
        "Pass --macs: the share of the MACs that stays, in place of what goes."
    )
    assert suggestion("unheard_of") is None


def test_studies_name_the_options_that_there_are() -> None:
    model, x = sc.build("zoo:small_cnn"), torch.randn(1, 3, 32, 32)
    with pytest.raises(ConfigError, match=r"^compare has no option 'epoch'\. Did you mean epochs, .* Options: allow"):
        sc.compare(model, x, epoch=3)
    with pytest.raises(ConfigError, match=r"^compare has no option 'ignored_layers'\. Pass exclude=…"):
        sc.compare(model, x, ignored_layers=[])
    with pytest.raises(ConfigError, match=r"^sensitivity has no option 'imges'\. Did you mean images"):
        sc.sensitivity(model, x, imges=3)
