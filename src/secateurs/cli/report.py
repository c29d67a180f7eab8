"""`secateurs report`: runs as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from secateurs.cli import options
from secateurs.cli.options import Flag, Folder
from secateurs.errors import ConfigError, shown


def report(
    *runs: Folder,
    out: Annotated[Path | None, Parameter(negative="")] = None,
    force: Flag = False,
) -> None:
    """Write a report of runs: one HTML page that needs no other file and no network.

    For each run the page shows the figures at each stage, the verified error and what it means, the widths before and after,
    what the method recorded (AOFP's moves, NPN's gates, EPruner's exemplars, PFF's filter shapes, one-step pruning's layer
    scores), the training, and the command that reproduces it. For several runs it adds a table that can be sorted, and plots
    of accuracy against cost.

    ```
    $ secateurs report runs/digits
    runs/digits/report.html: 1 run, 38 kB
    $ secateurs report runs/aofp runs/npn runs/l1 --out compared.html
    compared.html: 3 runs, 121 kB
    ```

    Parameters
    ----------
    runs
        folders of pruned networks, or hf:USER/NAME on the hub; `secateurs bench --save` adds their times. Or the folder of a
        comparison, alone
    out
        the file to write; by default report.html, of one run in its folder, of several in the working directory; of a
        comparison comparison.html in its folder
    force
        replace an existing file
    """
    if not runs:
        raise ConfigError("Name the folder of a run, or of several: secateurs report RUN….")
    from secateurs.artifact import on_hub
    from secateurs.cli.reproduce import command
    from secateurs.report import count, page
    from secateurs.runs import pages

    if len(runs) == 1 and pages.is_comparison(folder := pages.folder_of(runs[0])):
        _compared(folder, out, force)
        return
    kept = pages.distinct(runs)
    one = kept[0] if len(kept) == 1 and not on_hub(runs[0]) else None
    path = out or (one / page.NAME if isinstance(one, Path) else Path(page.NAME))
    if one is None or out is not None:
        page.check(path, overwrite=force)
    found = pages.read(runs, command)
    written = page.write(found, path, overwrite=force)
    for run in found:
        for note in run.notes:
            options.log(f"{run.name}: {note}")
    _say(written, count(len(found), "run"))


def _compared(folder: Path, out: Path | None, force: bool) -> None:
    from secateurs.report import count
    from secateurs.studies import read_comparison
    from secateurs.studies.comparison import page

    found = read_comparison(folder)
    # The comparison has written the page in its folder.
    _say(found.report(out or folder / page.NAME, overwrite=force or out is None), count(len(found.cells), "cell"))


def _say(written: Path, what: str) -> None:
    size = written.stat().st_size
    options.out().print(f"{shown(written)}: {what}, {max(1, round(size / 1000)):,} kB", soft_wrap=True)
