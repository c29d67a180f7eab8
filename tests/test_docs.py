"""The documentation covers what there is: every public name, every method, every page."""

from __future__ import annotations

import re
import runpy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import secateurs as sc
from secateurs.testing import CHECKS

DOCS = Path(__file__).resolve().parents[1] / "docs"
API = "\n".join(page.read_text() for page in sorted((DOCS / "api").glob("*.md")))
DOCUMENTED = set(re.findall(r"^\.\. (?:auto\w+|py:data):: ([\w.]+)$", API, re.MULTILINE))


@pytest.mark.parametrize("package", ["secateurs", "secateurs.methods", "secateurs.graph", "secateurs.testing"])
def test_every_public_name_is_in_the_reference(package: str) -> None:
    short = {name.rpartition(".")[2] for name in DOCUMENTED}
    assert set(import_module(package).__all__) - short - {"__version__"} == set()


def test_every_method_is_on_the_page_of_methods() -> None:
    page = (DOCS / "methods.md").read_text()
    assert [name for name in sc.methods() if f"`{name}`" not in page] == []


def test_every_method_card_has_its_page() -> None:
    cards = {card.parent.name for card in (DOCS.parent / "src/secateurs/methods").glob("*/README.md")}
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} == cards


def test_every_check_is_described() -> None:
    page = (DOCS / "add-method.md").read_text()
    assert [name for name in CHECKS if f"`{name}`" not in page] == []


def test_the_case_that_is_shown_is_one_of_the_cases() -> None:
    (shown,) = re.findall(r"^```\n(@case.*?)```$", (DOCS / "add-architecture.md").read_text(), re.DOTALL | re.MULTILINE)
    cases = (DOCS.parent / "tests/networks.py").read_text()
    assert "".join(shown.split()) in "".join(cases.split())  # wherever lines are broken


def test_the_picture_of_the_layers_is_that_of_the_contract() -> None:
    """After a change of the contract: python docs/pictures/architecture.py"""
    script: dict[str, Any] = runpy.run_path(str(DOCS / "pictures" / "architecture.py"))
    assert (DOCS / "pictures" / "architecture.svg").read_text() == script["picture"]()


def test_the_citation_names_the_version_and_the_papers() -> None:
    citation = pytest.importorskip("yaml").safe_load((DOCS.parent / "CITATION.cff").read_text())
    assert citation["version"] == sc.__version__
    cited = " ".join(reference["notes"] for reference in citation["references"])
    cards = {card.parent.name for card in (DOCS.parent / "src/secateurs/methods").glob("*/README.md")}
    assert [name for name in cards if f"`{name}`" not in cited] == []
