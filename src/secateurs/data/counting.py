"""Count the examples and classes of a shard from its headers and label column, without reading images."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from typing import Any

from secateurs.errors import DataError


def count(file: str, label: str, values: bool) -> tuple[int | None, set[Any] | None]:
    """Return the number of examples and the classes of a shard. Each is None if it cannot be found without reading images."""
    try:
        if file.endswith(".parquet"):
            return _count_parquet(file, label, values and "://" not in file)
        if file.endswith(".tar") and "://" not in file:
            return _count_tar(file, label)
    except (OSError, tarfile.TarError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    return None, None


def _count_parquet(file: str, label: str, values: bool) -> tuple[int, set[Any] | None]:
    import fsspec
    import pyarrow.parquet as pq

    with fsspec.open(file) as opened:
        table = pq.ParquetFile(opened)
        column = label.partition(".")[0]
        if not values or "." in label:
            return table.metadata.num_rows, None
        return table.metadata.num_rows, set(table.read(columns=[column]).column(column).unique().to_pylist())


_MEMBER = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")


def _count_tar(file: str, label: str) -> tuple[int, set[Any] | None]:
    """Count examples from the headers. Consecutive files with the same name except for the suffix are one example."""
    count, last = 0, None
    values: set[Any] | None = set()
    with tarfile.open(file, "r:") as archive:
        for member in archive:
            match = _MEMBER.match(member.name)
            if not member.isreg() or match is None or Path(member.name).name.startswith((".", "__")):
                continue
            key, ending = match.groups()
            if key != last:
                count, last = count + 1, key
            if ending == label and values is not None:
                text = archive.extractfile(member).read()  # type: ignore[union-attr]
                values.add(int(text) if ending in ("cls", "cls2") else text.decode().strip())
            elif ending == label.partition(".")[0]:
                values = None  # the label is inside a JSON file
            archive.members = []  # type: ignore[attr-defined]  # otherwise it keeps every member in memory
        if 0 < Path(file).stat().st_size - archive.offset < tarfile.BLOCKSIZE:
            raise ValueError("it ends in the middle of a file's header")
    return count, values
