"""Settings objects: validated as they are made, and under a name, such as those of a paper."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, StrictBool, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from secateurs.errors import ConfigError, Setting, complaint, nearest, one_of
from secateurs.grammar import kinds, written

P = TypeVar("P", bound="Presets")
Auto = Literal["auto"] | StrictBool  # strict: 'yes' and 1 are neither


class Called(BaseModel):
    """Base class of settings that are shown as the call that makes them, with those that are not the usual ones."""

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        usual = {name: field.get_default(call_default_factory=True) for name, field in type(self).model_fields.items()}
        return ((name, value) for name, value in super().__repr_args__() if name not in usual or value != usual[name])

    def __str__(self) -> str:
        return repr(self)


class Settings(Called):
    """Base class of frozen settings. Raises ConfigError for invalid ones, with every setting that is wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(*_explained(type(self), faults(type(self), error, values))) from None


class Fault(NamedTuple):
    """What is wrong with a setting, or, without a name, with all of them together. unknown: there is no such setting."""

    name: str
    value: Any
    text: str
    unknown: bool


def faults(kind: type[BaseModel], error: ValidationError, given: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with each setting that was given: one text, which names all that is valid."""
    found: dict[str, list[Any]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(str(item["loc"][0]) if item["loc"] else "", []).append(item)
    return [
        Fault(
            name, given.get(name, items[0]["input"]), _text(kind.model_fields.get(name), items),
            items[0]["type"] == "extra_forbidden",
        )
        for name, items in found.items()
    ]  # fmt: skip


def _text(field: FieldInfo | None, items: list[Any]) -> str:
    first = items[0]
    if field is not None and len(kinds(field.annotation)) > 1:
        wrong = {item["loc"][1]: item for item in reversed(items) if len(item["loc"]) > 1}
        valid = [noun for kind in reversed(wrong) for noun in _nouns(wrong[kind])]
        if valid:
            return f"must be {one_of(valid)}"
    return complaint(first) if len(first["loc"]) < 2 else f"{first['input']!r} {complaint(first)}"


def _nouns(item: Mapping[str, Any]) -> list[str]:
    """What one of the types of a union takes."""
    if len(item["loc"]) > 2:  # it is wrong inside
        return [f"a {item['loc'][1]}"]
    if item["type"].startswith("bool"):
        return ["True", "False"]
    noun = complaint(item).removeprefix("must be ")
    return [noun if item["type"] == "literal_error" else noun.partition(", ")[0]]  # without why it is none


def changed(
    kind: type[BaseModel], settings: Mapping[str, Any], usual: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The settings, given as JSON types, that are not the default ones. usual: values that take the place of defaults."""
    found = {}
    for key, field in kind.model_fields.items():
        default = (usual or {}).get(key, field.get_default(call_default_factory=True))
        value = settings.get(key, default)
        value = tuple(value) if isinstance(value, list) else value
        if (value != default and default is not PydanticUndefined) or (
            default is PydanticUndefined and key in settings
        ):
            found[key] = value
    return found


def spelled(kind: type[Presets], settings: Mapping[str, Any]) -> list[str]:
    """The settings that are not the default ones as text, by the preset that leaves the fewest to say, or by none:
    `preset=paper`, `epochs=40`."""
    forms = [changed(kind, settings)]
    forms += [{"preset": name, **changed(kind, settings, usual)} for name, usual in kind.presets.items()]
    return written(min(forms, key=len))


def _explained(kind: type[BaseModel], found: list[Fault]) -> list[object]:
    """What is wrong with each setting, as the parts of a message."""
    parts: list[object] = []
    for fault in found:
        field = kind.model_fields.get(fault.name)
        what = f" ({field.description})" if field is not None and field.description else ""
        parts += ["; "] if parts else []
        if not fault.name:
            parts += [f"{kind.__name__}: {fault.text}"]
        elif fault.unknown:
            parts += [
                f"{kind.__name__}: '{fault.name}' is not a valid setting. {nearest(fault.name, kind.model_fields)}"
            ]
        else:
            parts += [Setting(fault.name, fault.value, kind), f": {fault.text}{what}"]
    return parts


class Presets(Called):
    """Base class of settings objects that have presets.

    presets: name → the settings that it stands for; the others keep their defaults.

    >>> class Mine(sc.Method):
    ...     strength: float = 0.5
    ...     presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"strength": 0.9}}
    >>> Mine.preset("paper")        # or Mine(preset="paper"); on the command line: --preset paper
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self, **settings: Any) -> None:
        preset: Mapping[str, Any] = {}
        if "preset" in settings and "preset" not in type(self).model_fields:
            preset = self._settings_of(settings.pop("preset"))
        super().__init__(**{**preset, **settings})
        self._remember(preset, settings)

    @property
    def fields_of_preset(self) -> frozenset[str]:
        """The settings that a preset gave, and nobody overrode."""
        return frozenset(vars(self).get("_of_preset", ()))

    def model_copy(self: P, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> P:
        copy = super().model_copy(update=update, deep=deep)
        copy._remember(self.fields_of_preset, update or {})
        return copy

    def _remember(self, preset: Collection[str], settings: Mapping[str, Any]) -> None:
        # Not a private attribute of pydantic's: these count when objects are compared.
        vars(self)["_of_preset"] = set(preset) - settings.keys()

    @classmethod
    def preset(cls: type[P], name: str, /, **settings: Any) -> P:
        """An object with the settings of a preset. settings: override those of the preset.

        Raises ConfigError for an unknown name, and for invalid settings.
        """
        preset = cls._settings_of(name)
        found = cls(**{**preset, **settings})  # not cls(preset=name): a method may have a setting of that name
        found._remember(preset, settings)
        return found

    @classmethod
    def _settings_of(cls, name: str) -> Mapping[str, Any]:
        if not isinstance(name, str) or name not in cls.presets:
            what = getattr(cls, "name", "") or cls.__name__
            known = nearest(str(name), cls.presets) if cls.presets else f"{what} has no presets."
            raise ConfigError(Setting("preset", name), f" is not a preset of {what}. {known}")
        return cls.presets[name]
