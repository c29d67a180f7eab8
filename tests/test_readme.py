"""Every ```python block of README.md, docs/ and the methods' cards runs, those of a file one after another in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/secateurs/methods/*/README.md")))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text, namespace = page.read_text(), {"__name__": "__main__"}
    for match in BLOCK.finditer(text):
        above = text[: match.start(1)].count("\n")  # so that a failure names the line of the page
        exec(compile("\n" * above + match[1], str(page), "exec"), namespace)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page}: {target}"
