"""Settings objects: validated as they are made, and under a name, such as those of a paper."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from secateurs.errors import ConfigError, Setting, complaint, nearest

P = TypeVar("P", bound="Presets")


class Settings(BaseModel):
    """Base class of frozen settings. Raises ConfigError for invalid ones, with every setting that is wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(*_explained(type(self), error)) from None


def _explained(cls: type[BaseModel], error: ValidationError) -> list[object]:
    """What is wrong with each setting, as the parts of a message."""
    found: list[list[object]] = []
    for item in error.errors(include_url=False):
        name = str(item["loc"][0]) if item["loc"] else ""
        if not name:
            parts: list[object] = [f"{cls.__name__}: ", complaint(item)]
        elif item["type"] == "extra_forbidden":
            parts = [f"{cls.__name__}: '{name}' is not a valid setting. {nearest(name, cls.model_fields)}"]
        else:
            field = cls.model_fields.get(name)
            what = f" ({field.description})" if field and field.description else ""
            parts = [Setting(name, item["input"], cls), f": {complaint(item)}{what}"]
        if parts not in found:
            found.append(parts)
    return [part for i, parts in enumerate(found) for part in ("; " if i else "", *parts)]


class Presets(BaseModel):
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
        if name not in cls.presets:
            what = getattr(cls, "name", "") or cls.__name__
            known = nearest(str(name), cls.presets) if cls.presets else f"{what} has no presets."
            raise ConfigError(Setting("preset", name), f" is not a preset of {what}. {known}")
        return cls.presets[name]
