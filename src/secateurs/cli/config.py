"""`--config FILE` and `--print-config`: the options of a command as a file, validated by a model that is made from the command.

The model's fields are the command's options, so that a new option is in the file, its schema and its errors at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from cyclopts import App, Parameter
from cyclopts.config import Dict

from secateurs.cli.options import Flag
from secateurs.errors import ConfigError, a_or_an, nearest, shown

if TYPE_CHECKING:
    from cyclopts.argument import Argument
    from pydantic import BaseModel

    from secateurs.presets import Fault

# What a command is to do now, and that its user trusts somebody's code: neither is a setting that a file may have.
ACTIONS = ("config", "print_config", "resume", "force", "json", "trust_code")
JOINED = ("milestones", "nodes", "recover", "criteria", "methods")  # several values with commas
PAIRS = ("set", "ratio", "min_channels", "max_cut")  # several NAME=VALUE
INSTEAD = {  # options that take the place of others: on the command line also of those in a file
    "recover": ("recover_epochs",), "recover_epochs": ("recover",), "milestones": ("lr_schedule",),
    "lr_schedule": ("milestones", "gamma"),
}  # fmt: skip
MISSING = "<missing>"  # in the place of what has to be given, where nothing is run


@Parameter(name="*")
@dataclass(frozen=True)
class ConfigOptions:
    config: Path | None = None
    """YAML, TOML or JSON file with options, which those on the command line override; paths in it are relative to the
    working directory, too"""
    print_config: Flag = False
    """print all options with their values as YAML for --config, and do nothing else"""


def named(tokens: Sequence[str]) -> Path | None:
    """The file that `--config` names on the command line."""
    for i, token in enumerate(_options(tokens)):
        name, equals, value = token.partition("=")
        if name == "--config" and (equals or i + 1 < len(tokens)):
            return Path(value if equals else tokens[i + 1])
    return None


def prints(tokens: Sequence[str]) -> bool:
    """Whether the command line has `--print-config`."""
    return "--print-config" in _options(tokens)


def _options(tokens: Sequence[str]) -> Sequence[str]:
    return tokens[: tokens.index("--")] if "--" in tokens else tokens


def source(app: App, command: str, file: Path | None, tokens: Sequence[str] = (), *, whole: bool = True) -> Dict:
    """A file's options, as cyclopts merges them with those on the command line, but for those that these take the place of.
    tokens: the command line. whole: False where options that have to be given may be missing, since nothing is run.

    Raises ConfigError, which names the file and the options, for a file that cannot be read, for options that do not exist, and
    for values that are not valid.
    """
    options = list(settings(app[command]))
    needed = {} if whole else {s.key: MISSING for s in options if s.argument.required}
    empty = {s.key for s in options if s.argument.field_info.default == ()}  # cyclopts 4 reads () as text of its own
    given = {token.partition("=")[0].lstrip("-").replace("-", "_") for token in _options(tokens) if token[:2] == "--"}
    replaced = {other for name in given for other in INSTEAD.get(name, ())} - given
    from_file = {} if file is None else read(app, command, file)
    left_out = replaced | {name for name in empty if not from_file.get(name)}
    values = {**needed, **{name: value for name, value in from_file.items() if name not in left_out}}
    return Dict({command: values}, source="" if file is None else shown(file))


def read(app: App, command: str, file: Path) -> dict[str, Any]:
    """The options in a file by name, validated; null stands for the default."""
    from pydantic import ValidationError

    from secateurs.presets import faults

    body = _parsed(file)
    if not isinstance(body, Mapping):
        raise ConfigError(
            f"{shown(file)} must hold options by name, such as `method: l1`, not {a_or_an(type(body).__name__)}."
        )
    given = {str(key).replace("-", "_"): value for key, value in body.items() if value is not None}
    model = schema(app, command)
    try:
        return model.model_validate(given).model_dump(exclude_unset=True)
    except ValidationError as error:
        wrong = (_sentence(fault, command, model.model_fields) for fault in faults(model, error, given))
        raise ConfigError(f"{shown(file)}: {' '.join(wrong)}") from None


def _sentence(fault: Fault, command: str, known: Iterable[str]) -> str:
    """What is wrong with an option, as a sentence."""
    from secateurs.files import brief

    if not fault.unknown:
        return f"{shown(fault.name)} {fault.text}, not {brief(fault.value)}."
    if fault.name in ACTIONS:
        return f"{fault.name} is given on the command line only."
    return f"{shown(fault.name)} is not an option of {command}. {nearest(fault.name, known)}"


def schema(app: App, command: str) -> type[BaseModel]:
    """The model of a file of a command's options."""
    from pydantic import ConfigDict, Field, create_model

    fields: dict[str, Any] = {}
    for setting in settings(app[command]):
        text = " ".join((setting.argument.parameter.help or "").split())
        bounds = _bounds(setting.argument)
        kind = Annotated[_type(setting), Field(**bounds)] if bounds else _type(setting)
        usual = setting.argument.field_info.default
        shown_default = {} if setting.argument.required else {"default": _plain(usual)}
        fields[setting.key] = (kind | None, Field(default=None, description=text, json_schema_extra=shown_default))
    name = "".join(word.title() for word in command.split("-"))
    return create_model(f"{name}Config", __config__=ConfigDict(extra="forbid", strict=True), **fields)


def effective(app: App, command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a command with their values, as a file has them. arguments: what the command is called with."""
    found: dict[str, Any] = {}
    for setting in settings(app[command]):
        value: Any = arguments
        for name in setting.path:
            value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
            if value is None:
                value = setting.argument.field_info.default if setting.path[0] not in arguments else None
                break
        found[setting.key] = _plain(float(value) if setting.kind is float and value not in (None, MISSING) else value)
    return found


def as_yaml(values: Mapping[str, Any]) -> str:
    """Options as the text of a file that `read` reads to the same."""
    import yaml

    text: str = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=120)
    return text


@dataclass(frozen=True)
class Option:
    """An option of a command that a file may have: its name, and where its value is among the arguments of the call."""

    key: str
    path: tuple[str, ...]
    argument: Argument

    @property
    def kinds(self) -> list[Any]:
        """Its types, without None."""
        from secateurs.grammar import kinds

        return kinds(self.argument.hint)

    @property
    def kind(self) -> Any:
        """The first of them."""
        return self.kinds[0]


def settings(command: App) -> Iterator[Option]:
    """The options of a command that a file may have."""
    group = ""
    for argument in command.assemble_argument_collection(parse_docstring=True):
        if argument.name == "*":  # a class of options, which follow
            group = argument.field_info.names[0]
            continue
        key = argument.name.lstrip("-").replace("-", "_")
        path = (group, *argument.keys) if argument.keys else (argument.field_info.names[0],)
        if key not in ACTIONS:
            yield Option(key, path, argument)


# -- values ------------------------------------------------------------------------------------------------------------


def _type(setting: Option) -> Any:
    """The type of an option in a file."""
    from pydantic import BeforeValidator, WithJsonSchema

    key, kind = setting.key, setting.kind
    text, several = {"type": "string"}, {"type": "array", "items": {"type": ["string", "number"]}}
    if get_origin(kind) is tuple and float in get_args(kind):
        number = {"type": "number"}
        one_or_several = WithJsonSchema({"anyOf": [number, {"type": "array", "items": number}]})
        return Annotated[list[float], BeforeValidator(_numbers), one_or_several]
    if get_origin(kind) is tuple:
        either = [text, several, *([{"type": "object"}, {"type": "number"}] if key in PAIRS else [])]
        return Annotated[
            list[str], BeforeValidator(_pairs if key in PAIRS else _several), WithJsonSchema({"anyOf": either})
        ]
    if key in JOINED:
        return Annotated[str, BeforeValidator(_joined), WithJsonSchema({"anyOf": [text, several, {"type": "number"}]})]
    if len(setting.kinds) > 1:  # a count, or a word
        words = [word for other in setting.kinds if get_origin(other) is Literal for word in get_args(other)]
        schema = {"anyOf": [{"type": "integer", "minimum": 1}, {"enum": words}]}
        return Annotated[int | str, BeforeValidator(partial(_count_or, words)), WithJsonSchema(schema)]
    if kind is float:
        return Annotated[float, BeforeValidator(_number)]
    return str if kind is Path else kind


def _bounds(argument: Argument) -> dict[str, Any]:
    """The bounds of a number, as pydantic calls them."""
    validators: Any = argument.parameter.validator  # a tuple, whatever was given
    found = {ours: getattr(validator, name, None) for validator in validators for name, ours in _BOUNDS.items()}
    return {ours: bound for ours, bound in found.items() if bound is not None}


_BOUNDS = {"gte": "ge", "gt": "gt", "lte": "le", "lt": "lt"}


def _number(value: Any) -> Any:
    """A number; YAML takes 1e-3, without a point, for text."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError("must be a number") from None


def _count_or(words: Sequence[str], value: Any) -> Any:
    """A whole number of at least 1, or one of these words."""
    if value in words:
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be a whole number or {' or '.join(map(repr, words))}")
    if value < 1:
        raise ValueError("must be greater than or equal to 1")
    return value


def _numbers(value: Any) -> Any:
    """One or several numbers, as a list of them."""
    return [_number(item) for item in (value if isinstance(value, list) else [value])]


def _several(value: Any) -> Any:
    """One or several texts, as a list of them."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in values):
        raise ValueError("must be text, or a list of texts")
    return values


def _pairs(value: Any) -> Any:
    """NAME=VALUE, in text or as a mapping, or a number for all."""
    if isinstance(value, Mapping):
        return [f"{name}={_text(item)}" for name, item in value.items()]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [str(value)]
    try:
        return _several(value)
    except ValueError:
        raise ValueError("must be a mapping, or NAME=VALUE or a list of those") from None


def _text(value: Any) -> str:
    """A value as `--set` reads it."""
    from secateurs.grammar import word

    try:
        json.dumps(value)
    except TypeError:
        raise ValueError("must have values that JSON has, too") from None
    return word(value)


def _joined(value: Any) -> Any:
    """Several values with commas, or a list of them."""
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(item, bool) or not isinstance(item, str | int | float) for item in values):
        raise ValueError("must be values with commas, or a list of them")
    return ",".join(map(str, values))


def _plain(value: Any) -> Any:
    """A value as YAML has it."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        value = str(value)
    return None if value == MISSING else value


# -- files -------------------------------------------------------------------------------------------------------------


def _parsed(file: Path) -> Any:
    """The content of a file: TOML by its name, else YAML, which JSON is, too. Raises ConfigError if it cannot be read."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses keys that are given twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value]
            if twice := [key for key in keys if keys.count(key) > 1]:
                raise yaml.MarkedYAMLError(problem=f"{twice[0]} is given twice", problem_mark=node.start_mark)
            return super().construct_mapping(node, deep)

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ConfigError(f"--config {shown(file)} cannot be read: {reason}.") from None
    if file.suffix.lower() == ".toml":
        if sys.version_info < (3, 11):
            raise ConfigError(f"--config {shown(file)}: TOML requires Python 3.11. Write the options as YAML.")
        import tomllib

        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{shown(file)} is not valid TOML: {shown(str(error))}.") from None
    try:
        found = yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise ConfigError(f"{shown(file)} is not valid YAML: {where}{shown(error.problem or '')}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{shown(file)} is not valid YAML: {shown(str(error))[:200]}.") from None
    return {} if found is None else found
