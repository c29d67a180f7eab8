"""Benchmarks are run by hand; what they import has to be there all the same."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_import(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    try:
        runpy.run_path(str(path), run_name="imported")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("secateurs") or (FOLDER / f"{error.name}.py").exists():
            raise
        pytest.skip(f"{error.name} is not installed")  # a peer, to be measured against
