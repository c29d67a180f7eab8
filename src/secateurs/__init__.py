"""Structured pruning of trained CNNs: remove filters, channels and stripes, and verify the result."""

import random
from importlib import import_module
from typing import TYPE_CHECKING, Any

from secateurs.errors import (
    ArtifactError,
    BudgetError,
    ConfigError,
    DataError,
    ExportError,
    NonFiniteLossError,
    PlanError,
    SecateursError,
    SpecError,
    TraceError,
    TrainingError,
    VerificationError,
)
from secateurs.version import __version__

if TYPE_CHECKING:
    from secateurs import adapters, tasks
    from secateurs.api import attach, prune, widen
    from secateurs.budget import Budget
    from secateurs.calibration import calibrate
    from secateurs.data import Data, Preprocess
    from secateurs.deploy import Target, bench, export
    from secateurs.graph import ChannelGraph, ChannelGroup, Cost, count, register_rule
    from secateurs.masking import mask
    from secateurs.methods import (
        AOFP,
        CORING,
        FPGM,
        L1,
        L2,
        LAMP,
        NPN,
        PFF,
        APoZ,
        BNScale,
        Criterion,
        Damage,
        EPruner,
        Fisher,
        GroupL1,
        GroupL2,
        GroupTaylor,
        Index,
        L2Stripes,
        Limits,
        Method,
        OneStep,
        Oracle,
        Random,
        Taylor,
        TrainingMethod,
        Variance,
        methods,
        register,
    )
    from secateurs.models import build, card, load
    from secateurs.plans import Plan, trace
    from secateurs.recovery import Distil, Mimic, Reconstruct, Recover
    from secateurs.result import Figures, Latency, Result
    from secateurs.runs import DataSpec, PruneRun, RedesignRun, RedesignTraining, Stage
    from secateurs.runs.pages import report
    from secateurs.stripes import StripeConv, StripeConv1d, StripeConv2d, StripeConv3d, tune
    from secateurs.studies.comparison import Comparison, compare
    from secateurs.studies.sensitivity import Sensitivity, sensitivity
    from secateurs.surgery import apply, cut_, reinitialize, verify

__all__ = [
    "AOFP",
    "CORING",
    "FPGM",
    "L1",
    "L2",
    "LAMP",
    "NPN",
    "PFF",
    "APoZ",
    "ArtifactError",
    "BNScale",
    "Budget",
    "BudgetError",
    "ChannelGraph",
    "ChannelGroup",
    "Comparison",
    "ConfigError",
    "Cost",
    "Criterion",
    "Damage",
    "Data",
    "DataError",
    "DataSpec",
    "Distil",
    "EPruner",
    "ExportError",
    "Figures",
    "Fisher",
    "GroupL1",
    "GroupL2",
    "GroupTaylor",
    "Index",
    "L2Stripes",
    "Latency",
    "Limits",
    "Method",
    "Mimic",
    "NonFiniteLossError",
    "OneStep",
    "Oracle",
    "Plan",
    "PlanError",
    "Preprocess",
    "PruneRun",
    "Random",
    "Reconstruct",
    "Recover",
    "RedesignRun",
    "RedesignTraining",
    "Result",
    "SecateursError",
    "Sensitivity",
    "SpecError",
    "Stage",
    "StripeConv",
    "StripeConv1d",
    "StripeConv2d",
    "StripeConv3d",
    "Target",
    "Taylor",
    "TraceError",
    "TrainingError",
    "TrainingMethod",
    "Variance",
    "VerificationError",
    "__version__",
    "adapters",
    "apply",
    "attach",
    "bench",
    "build",
    "calibrate",
    "card",
    "compare",
    "count",
    "cut_",
    "export",
    "load",
    "mask",
    "methods",
    "prune",
    "register",
    "register_rule",
    "reinitialize",
    "report",
    "sensitivity",
    "tasks",
    "trace",
    "tune",
    "verify",
    "widen",
]

_HOMES = {
    "secateurs.adapters": "adapters",
    "secateurs.api": "attach prune widen",
    "secateurs.budget": "Budget",
    "secateurs.calibration": "calibrate",
    "secateurs.data": "Data Preprocess",
    "secateurs.deploy": "Target bench export",
    "secateurs.graph": "ChannelGraph ChannelGroup Cost count register_rule",
    "secateurs.masking": "mask",
    "secateurs.methods": (
        "AOFP CORING FPGM L1 L2 LAMP NPN PFF APoZ BNScale Criterion Damage EPruner Fisher GroupL1 GroupL2 GroupTaylor Index "
        "L2Stripes Limits Method OneStep Oracle Random Taylor TrainingMethod Variance methods register"
    ),
    "secateurs.models": "build card load",
    "secateurs.plans": "Plan trace",
    "secateurs.recovery": "Distil Mimic Reconstruct Recover",
    "secateurs.report": "report",
    "secateurs.result": "Figures Latency Result",
    "secateurs.runs": "DataSpec PruneRun RedesignRun RedesignTraining Stage",
    "secateurs.stripes": "StripeConv StripeConv1d StripeConv2d StripeConv3d tune",
    "secateurs.studies.comparison": "Comparison compare",
    "secateurs.studies.sensitivity": "Sensitivity sensitivity",
    "secateurs.surgery": "apply cut_ reinitialize verify",
    "secateurs.tasks": "tasks",
}
_PACKAGES = ("adapters", "methods", "report", "tasks")  # those of methods and reports can be called
_FORMER = {"reinitialise": "reinitialize"}  # earlier names
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import names lazily: importing torch takes a second, which help and error messages should not wait for."""
    name = _FORMER.get(name, name)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    state = random.getstate()
    try:
        home = import_module(_HOME[name])  # libraries may draw random numbers when they are imported
    finally:
        random.setstate(state)
    found = home if name in _PACKAGES else getattr(home, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
