"""Sphinx configuration; `make docs` builds the site into docs/_build/html."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "docs" / "_ext")]

from secateurs.version import __version__  # noqa: E402

project = "Secateurs"
author = "the Secateurs authors"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "plain_docstrings", "json_schemas"]
exclude_patterns = ["_build", "_ext"]

html_theme = "furo"
html_title = f"Secateurs {release}"
html_show_sourcelink = False
html_copy_source = False

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
highlight_language = "text"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["lightning", "pytorch_lightning", "transformers", "ultralytics"]
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# The method cards and CONTRIBUTING.md are included from where they are, and pages link to them there, so that links
# work in a checkout as well. Here they lead to the pages that include them.
OUTSIDE = {
    re.compile(r"\]\((?:\.\./)+src/secateurs/methods/(\w+)/README\.md"): r"](/methods/\1.md",
    re.compile(r"\]\((?:\.\./)+CONTRIBUTING\.md"): "](/contributing.md",
}


def links_to_pages(app, docname, source):
    for there, here in OUTSIDE.items():
        source[0] = there.sub(here, source[0])


def setup(app):
    app.connect("source-read", links_to_pages)
