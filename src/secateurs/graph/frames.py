"""Find whose code is running: the user's, or that of PyTorch and this package."""

from __future__ import annotations

import os
import sys
from collections.abc import Container
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

import torch

_TORCH = torch.__path__[0] + os.sep
_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_NETWORKS = tuple(f"{_PACKAGE}{name}{os.sep}" for name in ("zoo", "testing"))  # their code is like the user's


def caller() -> str:
    """Return the line of the user's code that is running: the innermost frame outside torch and this package. Empty if there
    is none."""
    frame: Any = sys._getframe(2)
    while frame is not None and not (frame.f_code.co_name == "_pass" and frame.f_code.co_filename.startswith(_PACKAGE)):
        if short := _users(frame):
            return f"{short}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def running(code: CodeType, known: Container[int], within: bool = False) -> Any:
    """Return `self` of the innermost running call of this function whose `self` has a known id; None if there is none.
    within: only consider calls that the user's line (see `caller`) made."""
    frame: Any = sys._getframe(2)
    while frame is not None and not (within and _users(frame)):
        if frame.f_code is code and id(me := frame.f_locals.get("self")) in known:
            return me
        frame = frame.f_back
    return None


def raised_at(trace: TracebackType | None) -> str:
    """Return the line of the user's code that raised an error, or that called what did: the innermost on the traceback. Empty
    if there is none."""
    found = ""
    while trace is not None:
        if short := _users(trace.tb_frame):
            found = f"{short}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def of_the_user(depth: int) -> bool:
    """Whether the frame that is `depth` frames above the caller runs the user's code."""
    return bool(_users(sys._getframe(depth + 1)))


def _users(frame: Any) -> str:
    """Return the name of the file that a frame is in, if it is the user's; empty in torch and this package."""
    file = frame.f_code.co_filename
    short = _SHORT.get(file)
    if short is None:
        ours = file.startswith((_TORCH, _PACKAGE)) and not file.startswith(_NETWORKS)
        short = _SHORT[file] = "" if ours else file.replace("\\", "/").rpartition("/")[2]
    return short


_SHORT: dict[str, str] = {}  # the file names of paths, empty for torch's and this package's own
