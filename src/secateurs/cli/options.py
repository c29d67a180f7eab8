"""Options that several commands share, and their output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Parameter, Token
from cyclopts.validators import Number
from rich.console import Console

from secateurs.cli.spelling import option
from secateurs.errors import ConfigError, Message, fraction

if TYPE_CHECKING:
    from secateurs.runs import DataSpec, NetworkSpec


T = TypeVar("T")


def _folder(_type: type, tokens: Sequence[Token]) -> Path:
    if not tokens[0].value.strip():  # as a path it would be the working directory
        raise ValueError("it is empty, name a folder.")
    return Path(tokens[0].value)


Folder = Annotated[Path, Parameter(converter=_folder)]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
Seed = Annotated[int, Parameter(validator=Number(gte=0, lt=2**63))]
Flag = Annotated[bool, Parameter(negative="", show_default=False)]


@Parameter(name="*")
@dataclass(frozen=True)
class DataOptions:
    data: str | None = None
    """`digits` (the default), `folder:PATH` with train/CLASS/… and test/CLASS/… (or val/), for segmentation with
    train/images, train/masks, val/images and val/masks; `coco:PATH` with annotations/instances_train.json and
    annotations/instances_val.json; `hf:NAME_OR_PATH` or `wds:SHARDS,SHARDS`"""
    normalize: str | None = None
    """`imagenet` (the default), `cifar10`, `none`, or means/deviations: 0.5,0.5,0.5/0.2,0.2,0.2"""
    batch_size: Count | None = None
    """images per step, 128 by default, 16 for segmentation, 8 for detection"""
    image_size: Count | None = None
    """resize images to this side length; without it, all images must have the same size (classification)"""
    channels: Literal[1, 3] | None = None
    """1 reads images in grayscale, 3 in color (the default)"""
    skip_unreadable: Annotated[bool | None, Parameter(negative="", show_default=False)] = None
    """skip images that cannot be read, with a warning; without it, they are an error"""

    def spec(self) -> DataSpec:
        from secateurs.runs import DataSpec

        return DataSpec(**asdict(self))


@Parameter(name="*")
@dataclass(frozen=True)
class ModelOptions:
    weights: Path | None = None
    """trained weights: a .safetensors file, or a state dict that loads without pickle"""
    num_classes: Count | None = None
    """number of outputs; by default the number of classes in the data"""
    trust_code: Flag = False
    """import and run the code, and fetch the data, that an artifact's card names"""

    def network(self, spec: str) -> NetworkSpec:
        from secateurs.runs import NetworkSpec

        return NetworkSpec(spec, self.weights, self.num_classes, self.trust_code)


def _names(_type: type, tokens: Sequence[Token]) -> tuple[str, ...]:
    """Names that an option has, one each time that it is given."""
    values = tuple(token.value for token in tokens if token.implicit_value != [])  # an empty list, in a file
    if any("," in item and "[" not in item and not item.endswith(".json") for item in values):  # a pattern, a file
        raise ValueError("it has a comma")
    return values


Many = Annotated[tuple[str, ...], Parameter(negative="", show_default=False)]  # texts that may have commas
Names = Annotated[tuple[str, ...], Parameter(negative="", show_default=False, converter=_names)]


def again(option: str, items: Sequence[str]) -> str:
    """What to write where several values were given as one."""
    return f"give the option several times, {' '.join(f'{option} {item.strip()}' for item in items)}"


def pair(option: str, item: str, such_as: str) -> tuple[str, str]:
    """KEY=VALUE as the two."""
    from secateurs.grammar import joined

    key, equals, text = item.partition("=")
    if not equals or not key:
        raise ConfigError(f"--{option} {item}: write key=value, such as --{option} {such_as}.")
    if len(several := joined(item)) > 1:
        raise ConfigError(f"--{option} {item} has a comma: {again(f'--{option}', several)}.")
    return key, text


def once(given: Iterable[tuple[str, str, T]]) -> dict[str, T]:
    """Values by the settings that they are for. given: (where it was given, setting, value) of each. Raises ConfigError for a
    setting that is given twice."""
    found: dict[str, tuple[str, T]] = {}
    for where, key, item in given:
        if key in found:
            raise ConfigError(f"{found[key][0]} and {where} both set {key}: give one of them.")
        found[key] = where, item
    return {key: item for key, (_, item) in found.items()}


def pairs(option: str, items: Iterable[str], such_as: str) -> dict[str, Any]:
    """Several KEY=VALUE by key, values as they are read. Raises ConfigError for a key that is given twice."""
    from secateurs.grammar import value

    given = once((f"--{option} {item}", *pair(option, item, such_as)) for item in items)
    for key, text in given.items():
        if (number := fraction(text)) is not None:
            raise ConfigError(f"--{option} {key}={text}: write {key}={number}.")
    return {key: value(text) for key, text in given.items()}


class _Plain(Console):
    """Without a terminal, lines are as wide as their content."""

    def print(self, *objects: Any, **style: Any) -> None:
        with self.capture() as captured:
            super().print(*objects, **style)
        self.file.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def out() -> Console:
    """The console for results."""
    console = Console(highlight=False, markup=False)  # reasons and paths may hold brackets
    return console if console.is_terminal else _Plain(highlight=False, markup=False, width=1000)


def warn(console: Console, warnings: Iterable[str]) -> None:
    """Show what a trace or a cut did not follow, a sentence a line."""
    for sentence in warnings:
        console.print(f"warning: {sentence}", soft_wrap=True)


def first() -> bool:
    """Whether this process is the one that prints and writes."""
    from secateurs.training import processes

    return processes.first()


def spelled(line: str) -> str:
    """A line with the settings in it as the command line spells them."""
    return line.text(option) if isinstance(line, Message) else line


def log(line: str) -> None:
    """For progress, and everything else that is not a result."""
    if first():
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(spelled(line), markup=False)
