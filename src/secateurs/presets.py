"""Settings under a name: those of a paper, for example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel

from secateurs.errors import ConfigError, Setting, nearest

P = TypeVar("P", bound="Presets")


class Presets(BaseModel):
    """Base class of settings objects that have presets.

    presets: name → the settings that it stands for; the others keep their defaults.

    >>> class Mine(sc.Method):
    ...     strength: float = 0.5
    ...     presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"strength": 0.9}}
    >>> Mine.preset("paper")        # on the command line: --preset paper
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def preset(cls: type[P], name: str, /, **settings: Any) -> P:
        """An object with the settings of a preset. settings: override those of the preset.

        Raises ConfigError for an unknown name, and for invalid settings.
        """
        if name not in cls.presets:
            what = getattr(cls, "name", "") or cls.__name__
            known = nearest(name, cls.presets) if cls.presets else f"{what} has no presets."
            raise ConfigError(Setting("preset", name), f" is not a preset of {what}. {known}")
        return cls(**{**cls.presets[name], **settings})
