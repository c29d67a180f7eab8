"""Cut whole filters, channels and stripes out of trained CNNs, and prove that nothing else changed."""

from secateurs.api import Figures, Result, attach, build, load, prune
from secateurs.budget import Budget
from secateurs.channels import ChannelGraph, ChannelGroup, Cost, count, register_rule
from secateurs.data import Data
from secateurs.errors import (
    ArtifactError,
    BudgetError,
    ConfigError,
    DataError,
    PlanError,
    SecateursError,
    SpecError,
    TraceError,
    TrainingError,
    VerificationError,
)
from secateurs.methods import L1, L2, NPN, BNScale, EPruner, Index, Method, Random, methods
from secateurs.surgery import Plan, apply, cut_, mask, trace, verify
from secateurs.training import Recover
from secateurs.version import __version__

__all__ = [
    "L1",
    "L2",
    "NPN",
    "ArtifactError",
    "BNScale",
    "Budget",
    "BudgetError",
    "ChannelGraph",
    "ChannelGroup",
    "ConfigError",
    "Cost",
    "Data",
    "DataError",
    "EPruner",
    "Figures",
    "Index",
    "Method",
    "Plan",
    "PlanError",
    "Random",
    "Recover",
    "Result",
    "SecateursError",
    "SpecError",
    "TraceError",
    "TrainingError",
    "VerificationError",
    "__version__",
    "apply",
    "attach",
    "build",
    "count",
    "cut_",
    "load",
    "mask",
    "methods",
    "prune",
    "register_rule",
    "trace",
    "verify",
]
