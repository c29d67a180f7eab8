"""Output for people: formatted numbers, and the tables that the commands share."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from secateurs.report import modelcard
from secateurs.report.figures import count, duration, error, formatted, heading, percent, share, short
from secateurs.report.tables import as_text, columns, listing, outcome, signature, stripes, stripes_line, table, timed

__all__ = [
    "as_text",
    "columns",
    "count",
    "duration",
    "error",
    "formatted",
    "heading",
    "listing",
    "modelcard",
    "outcome",
    "percent",
    "share",
    "short",
    "signature",
    "stripes",
    "stripes_line",
    "table",
    "timed",
]


class _Callable(ModuleType):
    """A package that can be called, like `secateurs.methods` and for the same reason: importing it binds `sc.report` to it. The
    function that it calls is in a higher layer, so it is imported by name, like everything in `secateurs`."""

    def __call__(self, runs: Any, path: str | Path = "report.html", *, overwrite: bool = False) -> Path:
        written: Path = import_module("secateurs.runs.pages").report(runs, path, overwrite=overwrite)
        return written


sys.modules[__name__].__class__ = _Callable
