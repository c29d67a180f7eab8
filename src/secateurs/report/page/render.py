"""Render runs to an HTML page, and write it to a file."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateurs.errors import ArtifactError, ConfigError, Setting, printable
from secateurs.files import check_writable, shown, write_whole
from secateurs.markup import Markup
from secateurs.report.page.originals import caution
from secateurs.report.page.panels import cards, panels
from secateurs.report.page.run import Run
from secateurs.report.page.several import appearance, common_measure, frontiers, legend, table
from secateurs.report.page.svg import symbol
from secateurs.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

NAME = "report.html"  # the default file name of a report
SUFFIXES = (".html", ".htm")


def can_render() -> bool:
    """Whether jinja2 is installed."""
    return find_spec("jinja2") is not None


def check(path: str | Path, *, overwrite: bool = False) -> None:
    """Check, before any work, that a page can be written. Raises ConfigError if jinja2 is not installed, if the file exists,
    or if it is not an HTML file, and ArtifactError if the folder is not writable."""
    if not can_render():
        raise ConfigError("Reports need jinja2: pip install 'secateurs[report]'.")
    if os.path.isdir(path):
        raise ConfigError(f"{shown(path)} is a folder: name a file, such as {shown(Path(path, NAME))}.")
    if Path(path).suffix.lower() not in SUFFIXES:
        page = Path(path).with_suffix(SUFFIXES[0])
        raise ConfigError(
            f"{shown(path)} is not the name of an HTML page, which a report is: name a file that ends in .html, such as "
            f"{shown(page)}. To get a PDF, print the page from a browser."
        )
    if os.path.lexists(path) and not overwrite:
        raise ConfigError(
            f"{shown(path)} already exists: ", Setting("overwrite", True), " replaces it; or name another file."
        )
    check_writable(Path(path).parent)


def write(runs: Sequence[Run], path: str | Path, *, overwrite: bool = False) -> Path:
    """Write the page of these runs. Raises what `check` does."""
    check(path, overwrite=overwrite)
    return save(html(runs), path)


def save(page: str, path: str | Path) -> Path:
    """Write a page to a file. Raises ArtifactError if it cannot be written."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, page)
    except OSError as error:
        raise ArtifactError(f"{shown(path)} cannot be written: {error.strerror or error}.") from error
    return Path(path)


def html(runs: Sequence[Run]) -> str:
    """Return the page of these runs, as HTML that needs no other file."""
    several = len(runs) > 1
    return rendered(
        "runs.html",
        f"{len(runs)} pruned networks" if several else title(runs[0]),
        "the artifacts" if several else "the artifact",
        runs=[{"run": run, "cards": cards(run), "panels": panels(run)} for run in runs],
        titles=[title(run) for run in runs],
        table=table(runs) if several else None,
        caution=caution(runs),
        frontiers=frontiers(runs) if several else [],
        measure=measure.name if (measure := common_measure(runs)) else "",
        looks={name: symbol(*look) for name, look in appearance(legend(runs)).items()},
    )


def rendered(template: str, title: str, made_from: str, **context: Any) -> str:
    """Render a template to a page that includes its style and script."""
    script = _source("page.js")
    page = _environment().get_template(template).render(
        title=title,
        made_from=made_from,
        style=_source("page.css"),
        script=script,
        # Only this script can run, whatever else is on the page.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
        **context,
    )  # fmt: skip
    return printable(page)  # paths may not be UTF-8


def title(run: Run) -> str:
    """Return the title of a run: 'zoo:resnet20 pruned by aofp to 49.9% of its MACs'."""
    spec = None if run.card.source is None else run.card.source.spec
    networks = run.networks
    before, after = networks[0][1].macs, networks[-1][1].macs
    left = f" to {after / before:.1%} of its MACs" if before else ""
    return f"{spec or 'Network'} pruned by {run.methods}{left}"


def _source(name: str) -> Markup:
    """Return one of our own files without escaping it."""
    return Markup(files("secateurs.report.page").joinpath("templates", name).read_text(encoding="utf-8"))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("secateurs.report.page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
