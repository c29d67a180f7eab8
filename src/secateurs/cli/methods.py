"""`secateurs methods`: list the methods; and parse methods on the command line, including `--then`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from secateurs.cli import options
from secateurs.cli.options import pair
from secateurs.errors import ConfigError, Setting

if TYPE_CHECKING:
    from secateurs.deploy import Target
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
        values = [_json(preset[key]) if key in preset else "" for preset in found.presets.values()]
        rows.add_row(key, _json(setting.get_default(call_default_factory=True)), *values, setting.description or "")
    console.print(about(found))
    console.print()
    console.print(rows)


def _json(value: Any) -> str:
    """A value as `--set` reads it."""
    return value if isinstance(value, str) else json.dumps(value)


def configured(
    method: str, settings: Sequence[str], ranking: str | None = None, preset: Sequence[str] = (), prefix: str = ""
) -> Method:
    """The method with its settings; values are parsed as JSON if they are valid JSON (0.7, true, null).

    preset: the name of one of its presets, which the settings override, or nothing. prefix: what stood before each of them.
    """
    if len(preset) > 1:
        raise ConfigError(f"--preset is given twice for {method}: {' and '.join(preset)}. Give one of them.")
    from secateurs.methods import resolve
    from secateurs.presets import typed

    values: dict[str, Any] = {} if ranking is None else {"ranking": ranking}
    for item in settings:
        key, value = pair("set", item, "beta=0.7")
        if key in values and key == "ranking" and ranking is not None:
            if value == ranking:
                continue
            raise ConfigError(f"--ranking {ranking} and --set {item} contradict each other: give one of them.")
        if key in values:
            raise ConfigError(f"--set {prefix}{key} is given twice: give one of them.")
        values[key] = value
    found = resolve(method)
    values = typed(type(found), values)
    try:
        return type(found).preset(preset[0], **values) if preset else resolve(found, **values)
    except ConfigError as error:
        raise error.renamed(_prefixed(prefix)) from None


def _prefixed(prefix: str) -> Callable[[Setting], Setting]:
    def rename(setting: Setting) -> Setting:
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
        name, _, figure = text.partition(":")
        name = name.strip()
        macs = _figure(text, figure)
        its, named = (
            [item.removeprefix(f"{name}.") for item in given if item.startswith(f"{name}.")]
            for given in (settings, preset)
        )
        found.append(Stage(configured(name, its, preset=named, prefix=f"{name}."), macs, align, text, target))
    return found


def own(settings: Sequence[str], then: Sequence[str]) -> list[str]:
    """The settings or presets of the first method: those without a method's name."""
    others = tuple(f"{text.partition(':')[0].strip()}." for text in then)
    return [item for item in settings if not (others and item.startswith(others))]


def _figure(text: str, figure: str) -> float | None:
    if not figure and ":" not in text:
        return None  # a method with a knob of its own
    try:
        value = float(figure)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(
            f"--then {text}: write METHOD:MACS (pff:0.3), with the MACs to keep: a fraction up to 1 or an absolute number."
        )
    return value
