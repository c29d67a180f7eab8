"""`sc.report`: one page of several runs and results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from secateurs import artifact
from secateurs.calls import call, label
from secateurs.errors import ArtifactError, ConfigError, Message, Setting
from secateurs.files import shown
from secateurs.report import page
from secateurs.report.page.run import Run, names
from secateurs.result import Result
from secateurs.runs.command import command
from secateurs.runs.names import COMPARISON, RUN, SENSITIVITY

Given = str | os.PathLike[str] | Result
OTHERS = {  # what else may be in a folder, by its file
    RUN: Message("The run is not finished: ", Setting("resume", True), " continues it."),
    SENSITIVITY: Message("It is a sensitivity study, whose picture is sensitivity.png."),
}


def report(runs: Given | Sequence[Given], path: str | Path = page.NAME, *, overwrite: bool = False) -> Path:
    """Write a report of several runs, or of one: an HTML page that needs no other file and no network, with a table that can be
    sorted, plots of accuracy against cost, and for each run what `Result.report` shows. Returns its path.

    >>> sc.report(["runs/aofp", "runs/npn", result], "compared.html")

    runs: folders of saved networks, `hf:USER/NAME` on the hub, and results. path: by default report.html in the working
        directory. overwrite: replace a file.

    Raises ConfigError without jinja2, for a file that exists or does not end in .html, and for anything that is not a run;
    ArtifactError for a folder that holds none, or a damaged one, and for a page that cannot be written.
    """
    page.check(path, overwrite=overwrite)
    one = isinstance(runs, str | os.PathLike | Result)
    return page.write(read([runs] if one else runs), path, overwrite=overwrite)  # type: ignore[arg-type, list-item]


def read(runs: Sequence[Given], *, commands: bool = False) -> list[Run]:
    """The runs, each of them once. commands: with the command that repeats a run, if there is one; else it is the call in
    Python. Raises what `report` does."""
    kept = distinct(runs)
    named = iter(names([one for one in kept if not isinstance(one, Result)]))
    found = []
    for i, one in enumerate(kept, start=1):
        if isinstance(one, Result):
            name = type(one.model).__name__
            run = Run.of(name if len(kept) == 1 else f"{name}, {i}", one.plan, one.card())
        else:
            run = _read(one, next(named))
            run.command = command(one) or "" if commands else ""
        run.command, run.label = run.command or call(run.card), label(run.card)
        found.append(run)
    if len(kept) < len(runs):
        found[0].tell(f"{len(runs)} runs were given, some of them more than once: each is shown once.")
    return found


def distinct(runs: Sequence[Given]) -> list[Path | Result]:
    """Each run once, files of a run as its folder. Raises ConfigError for what is neither a folder nor a result, and for a
    comparison."""
    if not isinstance(runs, Sequence) or not runs:
        raise ConfigError("There is no run to report on: pass a list of folders of saved networks, or of results.")
    kept: dict[object, Path | Result] = {}
    for one in runs:
        if isinstance(one, Result):
            kept.setdefault(id(one), one)
            continue
        if not isinstance(one, str | os.PathLike):
            raise ConfigError(
                f"{one!r:.100} is not a run: pass the folder of a saved network, or what sc.prune returned."
            )
        folder = folder_of(one)
        if is_comparison(folder):
            raise ConfigError(
                f"{shown(folder)} is a comparison, which has a page of its own: `secateurs report {shown(folder)}` writes it, "
                "without others."
            )
        kept.setdefault(os.path.realpath(folder), folder)
    return list(kept.values())


def folder_of(given: str | os.PathLike[str]) -> Path:
    """The folder of a run or a comparison, of which a file may be given."""
    path = Path(given)
    ours = (COMPARISON, artifact.CARD, artifact.PLAN, artifact.MODEL, *OTHERS)
    return path.parent if path.name in ours and path.is_file() else path


def is_comparison(folder: Path) -> bool:
    return (folder / COMPARISON).is_file() and not artifact.exists(folder)


def _read(folder: Path, name: str) -> Run:
    try:
        return Run.read(folder, name)
    except ArtifactError as error:
        what = next((said for file, said in OTHERS.items() if (folder / file).is_file()), None)
        holds = any(error.hint) or (folder / artifact.CARD).exists()  # a redesign's folder holds two artifacts
        raise error if what is None or holds else error.advised(what) from None
