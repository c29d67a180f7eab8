"""Map labels in the data to class indices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from secateurs.data import spec as S
from secateurs.errors import DataError
from secateurs.files import shown


@dataclass(frozen=True)
class Labels:
    """Maps labels in the data to class indices. own: a split's own list of classes, which its numbers refer to."""

    names: tuple[str, ...]
    index: dict[Any, int]
    what: str
    own: tuple[str, ...] | None = None

    @classmethod
    def of(cls, what: str, feature: Any, options: S.Options, seen: set[Any] | None) -> Labels:
        """Take the classes from the data set's own list, else from the spec, else from the values in the training data."""
        names = getattr(feature, "names", None)
        if names is not None:
            by_name = {n.strip(): i for i, n in enumerate(names)}
            return cls(tuple(map(shown, names)), {i: i for i in range(len(names))} | by_name, what)
        if options.names is not None:
            given = options.names
            index: dict[Any, int] = {name: i for i, name in enumerate(given)}
            return cls(given, index | {i: i for i in range(len(given))}, what)
        if seen is None:
            raise DataError(
                f"{what} does not list its classes, and finding them would require reading all of it: "
                "set ?classes=1000, or their names, ?classes=cat,dog."
            )
        values = sorted({_plain(v) for v in seen if not _missing(v)}, key=lambda v: (isinstance(v, str), v))
        return cls(tuple(map(str, values)), {v: i for i, v in enumerate(values)}, what)

    def like(self, feature: Any) -> Labels:
        """Return the same classes for another split, which may list them in another order, or only some of them."""
        own = getattr(feature, "names", None)
        if own is None or not any(n.strip() in self.index for n in own):
            return self
        return replace(self, own=tuple(own))

    def __call__(self, value: Any, where: str = "") -> int:
        if self.own is not None and isinstance(value, int) and 0 <= value < len(self.own):
            value = self.own[value]
        found = self.index.get(_plain(value))
        if found is None and isinstance(value, str) and value.strip().isdecimal():
            found = self.index.get(int(value))
        if found is None:
            hint = " Class -1 means unlabeled: choose another split." if value == -1 else ""
            if _missing(value):
                hint = " This example has no class: leave it out of the data set."
            raise DataError(f"{self.what}{where}: {value!r} is not one of the {len(self.names)} classes.{hint}")
        return found

    def compare(
        self, other: Labels, train: set[Any] | None, val: set[Any] | None, splits: tuple[str, str | None]
    ) -> None:
        """Raise DataError if validation has fewer classes than training. other: the classes of validation."""
        if train is None or val is None:
            return
        got = [
            {labels(v, f", {split}") for v in values}
            for labels, split, values in zip((self, other), splits, (train, val), strict=True)
        ]
        if absent := sorted(got[0] - got[1]):
            some = ", ".join(self.names[i] for i in absent[:5]) + ("…" if len(absent) > 5 else "")
            raise DataError(
                f"{self.what}: {splits[1]} lacks classes of {splits[0]}: {some}. Choose another split with ?val=…."
            )


def _plain(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _missing(value: Any) -> bool:
    return value is None or value != value  # NaN: a missing number
