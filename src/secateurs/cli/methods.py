"""`secateurs methods`: list the methods; and parse methods on the command line, including `--then`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from secateurs.cli import options
from secateurs.cli.options import once, pair
from secateurs.cli.spelling import as_text
from secateurs.errors import ConfigError, Setting

if TYPE_CHECKING:
    from secateurs.deploy import Target
    from secateurs.grammar import Term
    from secateurs.methods import Method
    from secateurs.runs import Stage


def methods(name: str | None = None) -> None:
    """List the methods and their presets, or the settings of one.

    A preset is a set of settings under a name: `secateurs prune … --method onestep --preset cifar`.

    ```
    $ secateurs methods onestep
    Importance vectors, one factor |β| for each channel, learned on a frozen
    network (Wang et al., 2019)

    setting   default  paper   cifar   imagenet
    ...
    lam       null     1.0     1.0     0.1       λ of eq. 3; by default
                                                 `strength` times the mean
                                                 |∂loss/∂β| at the start
    strength  3.0                                λ as a multiple of the
                                                 gradient's size, if lam is not
                                                 set
    ...
    epochs    1        15      15      10        epochs of learning β
    ...
    ```

    Parameters
    ----------
    name
        show the settings and presets of this method
    """
    from secateurs.grammar import word
    from secateurs.methods import methods, resolve
    from secateurs.methods.registry import about
    from secateurs.report import table

    console = options.out()
    if name is None:
        rows = table("method", "presets", "", left=3)
        for known in methods():
            found = type(resolve(known))
            rows.add_row(known, ", ".join(found.presets) or "-", about(found))
        console.print(rows)
        return
    found = type(resolve(name))
    rows = table("setting", "default", *found.presets, "", left=3 + len(found.presets))
    for key, setting in found.model_fields.items():
        values = [word(preset[key]) if key in preset else "" for preset in found.presets.values()]
        rows.add_row(key, word(setting.get_default(call_default_factory=True)), *values, setting.description or "")
    console.print(about(found))
    console.print()
    console.print(rows)


def configured(method: str, settings: Sequence[str], ranking: str | None = None, preset: Sequence[str] = ()) -> Method:
    """The method that a text names, with the settings of the text and those of options. Raises ConfigError for settings that
    are not valid, and for one that is given twice."""
    from secateurs.methods.text import read

    return _made(read(method), f"--method {shlex.quote(method)}", settings, ranking, preset)


def _made(
    term: Term, text: str, settings: Sequence[str], ranking: str | None, preset: Sequence[str], prefix: str = ""
) -> Method:
    """text: where the term was given. prefix: what stood before the settings and presets of options."""
    from secateurs.methods.text import made

    given = [(text, key, own) for key, own in term.settings.items()]
    given += [] if ranking is None else [(f"--ranking {ranking}", "ranking", ranking)]
    given += [(f"--preset {prefix}{name}", "preset", name) for name in preset]
    for item in settings:
        key, own = pair("set", f"{prefix}{item}", f"{prefix}beta=0.7")
        given.append((f"--set {prefix}{item}", key.removeprefix(prefix), own))
    values = once(given)
    try:
        return made(replace(term, settings=values))
    except ConfigError as error:
        raise error.renamed(_as_given(term, prefix)) from None


def _as_given(term: Term, prefix: str) -> Callable[[Setting], Setting | str]:
    def rename(setting: Setting) -> Setting | str:
        if setting.name in term.settings:
            return as_text(setting)
        if setting.name == "preset":
            return Setting("preset", f"{prefix}{setting.value}")
        return Setting(f"{prefix}{setting.name}", setting.value, setting.of)

    return rename


def stages(
    then: Sequence[str],
    settings: Sequence[str],
    preset: Sequence[str],
    align: int | Literal["auto"],
    target: Target | str | None = None,
) -> list[Stage]:
    """The stages that `--then METHOD:MACS` names, with those of the settings that say `METHOD.key=value` and of the presets
    that say `METHOD.NAME`. Raises ConfigError for invalid settings."""
    from secateurs.runs import Stage

    found = []
    for text in then:
        term, macs = _stage(text)
        prefix = f"{term.name}."
        its, named = (
            [item.removeprefix(prefix) for item in given if item.startswith(prefix)] for given in (settings, preset)
        )
        method = _made(term, f"--then {shlex.quote(text)}", its, None, named, prefix)
        found.append(Stage(method, macs, align, text, target))
    return found


def own(settings: Sequence[str], then: Sequence[str]) -> list[str]:
    """The settings or presets of the first method: those without a method's name."""
    others = tuple(f"{_stage(text)[0].name}." for text in then)
    return [item for item in settings if not (others and item.startswith(others))]


def _stage(text: str) -> tuple[Term, float | None]:
    """`pff:0.3 cost=0.25` as the method with its settings, and the MACs."""
    from secateurs.methods.text import read

    term = read(text, several="then")
    name, colon, figure = term.name.rpartition(":")
    macs = _number(figure) if colon else None
    if macs is None and not _misplaced(term):
        return term, None  # a method with a knob of its own
    if macs is None or not name.strip() or not 0 < macs < math.inf:
        raise ConfigError(
            Setting("then", text), ": write METHOD:MACS (pff:0.3), with the MACs to keep: a fraction up to 1 or an absolute "
            "number, and settings after it (pff:0.3 epochs=2).",
        )  # fmt: skip
    return replace(term, name=name.strip()), macs


def _misplaced(term: Term) -> bool:
    """Whether the MACs stand elsewhere than after the method's name and a colon, or are no number."""
    from secateurs.methods.registry import MODULE

    figures = [term.name.split()[-1], *(own.rpartition(":")[2] for own in term.settings.values() if ":" in own)]
    cut_off = ":" in term.name and not term.name.startswith(MODULE)  # the name of a class has colons
    return cut_off or any(_number(figure) is not None for figure in figures)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
