"""Every ```python block of README.md, docs/ and the methods' cards runs, those of a file one after another in one namespace.

A block below `<!-- needs: package … -->` is skipped if one of these packages is not installed; warnings of theirs are no
errors.
"""

from __future__ import annotations

import re
import warnings
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from secateurs.errors import SpecError
from secateurs.methods import registry
from secateurs.zoo import vision

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in ROOT.glob("docs/**/*.md") if "_build" not in page.parts),
    *ROOT.glob("src/secateurs/methods/*/README.md"),
))  # fmt: skip
BLOCK = re.compile(r"^(?:<!-- needs: (?P<needs>.*?) -->\n)?```python\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
IN_CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)")


@pytest.fixture
def known_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that a page registers are known to that page alone."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


@pytest.fixture
def torchvision_first() -> None:
    """Other packages import torchvision, and not every build of it can be imported directly."""
    with suppress(SpecError):
        vision.torchvision()


@pytest.mark.usefixtures("known_methods", "torchvision_first")
@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text, namespace = page.read_text(), {"__name__": "__main__"}
    for match in BLOCK.finditer(text):
        if all(find_spec(name) for name in (match["needs"] or "").split()):
            above = text[: match.start("code")].count("\n")  # so that a failure names the line of the page
            with warnings.catch_warnings():
                if match["needs"]:
                    warnings.simplefilter("ignore")
                exec(compile("\n" * above + match["code"], str(page), "exec"), namespace)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_links_lead_somewhere() -> None:
    wrong = []
    for page in PAGES:
        for target, anchor in LINK.findall(IN_CODE.sub("code", page.read_text())):
            goal = page.parent / target if target else page
            if "://" in target or target.startswith("mailto:"):
                continue
            if not goal.exists() or (anchor and goal.suffix == ".md" and anchor not in anchors(goal)):
                wrong.append(f"{page.relative_to(ROOT)}: {target}#{anchor}")
    assert not wrong
