"""The options of the command line that say what a network is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from secateurs.cli.options import Many, pairs
from secateurs.errors import ConfigError, shown

if TYPE_CHECKING:
    from secateurs.artifact import Card
    from secateurs.files import StrPath
    from secateurs.tasks import VisionTask


@Parameter(name="*")
@dataclass(frozen=True)
class TaskOptions:
    task: str | None = None
    """`classification` (the default), `segmentation` or `detection`: how data is read, the network built, trained and
    measured"""
    task_set: Many = ()
    """a setting of the task, key=value, such as dice=1 for segmentation or min_size=320 for detection; may be given several
    times"""

    def chosen(self) -> VisionTask | None:
        """The task, if one was named. Raises ConfigError for one that there is not, and for settings that are not its."""
        from secateurs.tasks import resolve

        settings = pairs("task-set", self.task_set, "dice=1")
        if settings and self.task is None:
            raise ConfigError("--task-set is for settings of a task: give --task.")
        return None if self.task is None else resolve(self.task, **settings)


def recorded(card: Card | None, folder: StrPath) -> VisionTask:
    """The task that an artifact's card names, or classification."""
    from secateurs.tasks import resolve

    settings: dict[str, Any] = {} if card is None or card.task is None else card.task.model_dump()
    try:
        return resolve(settings.pop("name", None), **settings)
    except ConfigError as error:
        raise error.within(f"The card of {shown(folder)}: ") from None


def no_network(artifact: StrPath) -> ConfigError:
    """The error for a card of a network that no spec builds."""
    return ConfigError(
        f"The card of {shown(artifact)} does not say how to build its network: give --model, such as "
        "--model python:package.module:Net."
    )
