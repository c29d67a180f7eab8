"""What is said of supported versions is what is tested, and the wheel holds all that is needed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="Python 3.10 has no tomllib")

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def constraints(name: str) -> dict[str, str]:
    text = (ROOT / "constraints" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.MULTILINE))


def test_lower_bounds_are_those_that_are_tested() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    needed = [
        *PROJECT["project"]["dependencies"],
        *(x for e in ("vision", "data", "demo", "report") for x in extras[e]),
    ]
    oldest = constraints("oldest")
    for requirement in needed:
        name, bound = requirement.split(">=")
        assert f"{oldest[name]}.".startswith(f"{bound}."), f"{requirement}, tested with {oldest[name]}"


def test_the_readme_names_the_range_that_is_tested() -> None:
    oldest, newest = (".".join(constraints(name)["torch"].split(".")[:2]) for name in ("oldest", "newest"))
    assert f"PyTorch {oldest} to {newest} " in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["oldest", "pinned", "newest"])
def test_torchvision_is_the_companion_of_torch(name: str) -> None:
    """0.N+15 belongs to 2.N."""
    found = constraints(name)
    assert int(found["torchvision"].split(".")[1]) == int(found["torch"].split(".")[1]) + 15


def test_the_package_holds_every_file_that_is_no_python() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["secateurs"]
    package = ROOT / "src/secateurs"
    held = {file for pattern in patterns for file in package.glob(pattern)}
    others = {f for f in package.rglob("*") if f.is_file() and f.suffix != ".py" and "__pycache__" not in f.parts}
    assert others
    assert others <= held
