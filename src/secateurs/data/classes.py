"""Map labels in the data to class indices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateurs.data import spec as S
from secateurs.errors import DataError
from secateurs.files import shown


@dataclass(frozen=True)
class Labels:
    """Maps labels in the data to class indices."""

    names: tuple[str, ...]
    index: dict[Any, int]
    what: str

    @classmethod
    def of(cls, what: str, feature: Any, options: S.Options, seen: set[Any] | None) -> Labels:
        """Take the classes from the data set's own list, else from the spec, else from the values in the training data."""
        names = getattr(feature, "names", None)
        if names is not None:
            return cls(
                tuple(map(shown, names)), {i: i for i in range(len(names))} | {n: i for i, n in enumerate(names)}, what
            )
        if options.names is not None:
            given = options.names
            index: dict[Any, int] = {name: i for i, name in enumerate(given)}
            return cls(given, index | {i: i for i in range(len(given))}, what)
        if seen is None:
            raise DataError(
                f"{what} does not list its classes, and finding them would require reading all of it: "
                "set ?classes=1000, or their names, ?classes=cat,dog."
            )
        values = sorted(seen, key=lambda v: (isinstance(v, str), v))
        return cls(tuple(map(str, values)), {v: i for i, v in enumerate(values)}, what)

    def __call__(self, value: Any, where: str = "") -> int:
        found = self.index.get(value.strip() if isinstance(value, str) else value)
        if found is None and isinstance(value, str) and value.strip().isdecimal():
            found = self.index.get(int(value))
        if found is None:
            hint = " Class -1 means unlabeled: choose another split." if value == -1 else ""
            raise DataError(f"{self.what}{where}: {value!r} is not one of the {len(self.names)} classes.{hint}")
        return found

    def compare(self, train: set[Any] | None, val: set[Any] | None, splits: tuple[str, str | None]) -> None:
        """Raise DataError if validation has fewer classes than training."""
        if train is None or val is None:
            return
        got = [{self(v, f", {split}") for v in values} for split, values in zip(splits, (train, val), strict=True)]
        if absent := sorted(got[0] - got[1]):
            some = ", ".join(self.names[i] for i in absent[:5]) + ("…" if len(absent) > 5 else "")
            raise DataError(
                f"{self.what}: {splits[1]} lacks classes of {splits[0]}: {some}. Choose another split with ?val=…."
            )
