"""Options of data specs, `NAME?key=value&…`, and patterns for many files."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path, PurePath
from urllib.parse import quote, unquote_plus

from secateurs.errors import DataError, SpecError, nearest
from secateurs.files import shown


@dataclass(frozen=True)
class Options:
    """The options after the `?` of `hf:`, `wds:` and `coco:` specs."""

    image: str | None = None  # the column of images
    label: str | None = None  # the column of classes
    config: str | None = None  # which of several data sets of that name
    train: str | None = None  # split to train on (wds: shards, coco: file)
    val: str | None = None  # split to validate on (wds: shards, coco: file), or `none`
    stream: str | None = None  # true or false: stream, or read from a copy on disk
    classes: str | None = None  # their number, or comma-separated names, if the data does not define them
    train_size: str | None = None  # number of images, if the data does not define it
    val_size: str | None = None

    @property
    def streamed(self) -> bool | None:
        if self.stream not in (None, "true", "false"):
            raise SpecError(f"stream={self.stream} is not valid: write stream=true or stream=false.")
        return None if self.stream is None else self.stream == "true"

    def size(self, split: str) -> int | None:
        text = self.train_size if split == "train" else self.val_size
        if text is not None and (not text.isdecimal() or not int(text)):
            raise SpecError(f"{split}_size={text} is not valid: write the number of images.")
        return None if text is None else int(text)

    @property
    def names(self) -> tuple[str, ...] | None:
        """The given classes: their number, or their names."""
        if self.classes is None:
            return None
        if self.classes.isdecimal():
            return tuple(map(str, range(int(self.classes))))
        return tuple(self.classes.split(","))


def parse(rest: str) -> tuple[str, Options]:
    """Return the name and the options after the last question mark. Raises SpecError for an unknown option."""
    name, mark, query = rest.rpartition("?")
    known = [f.name for f in fields(Options)]
    if not mark or ("=" not in query):
        return rest, Options()
    found: dict[str, str] = {}
    for item in query.split("&"):
        key, _, value = item.partition("=")
        if key not in known or not value:
            raise SpecError(
                f"…?{query}: {key!r} is not an option of a data spec. {nearest(key, known)}"
                if key not in known
                else f"…?{query}: {key} has no value."
            )
        found[key] = unquote_plus(value)
    return name, Options(**found)


def absolute(spec: str) -> str:
    """Return a data spec with absolute paths, so that it means the same in any working directory.

    `folder:cifar10` → `folder:/data/cifar10`; names on the Hub and URLs are unchanged.
    """
    family, _, rest = spec.partition(":")
    if family == "folder" and rest:
        return f"folder:{_absolute(rest)}"
    if family == "coco" and rest:
        name, _ = parse(rest)
        return f"coco:{_absolute(name)}{rest[len(name) :]}"
    if family not in ("hf", "wds") or not rest:
        return spec
    name, options = parse(rest)
    query = rest[len(name) :]
    if family == "hf":
        return f"hf:{_absolute(name)}{query}" if Path(name).expanduser().exists() else spec
    if options.val not in (None, "none"):  # shards, too
        query = re.sub(r"(?<=[?&])val=[^&]*", lambda _: f"val={quote(_absolute(str(options.val)), safe='/:')}", query)
    return f"wds:{','.join(map(_absolute, parts(name)))}{query}"


def shareable(spec: str) -> str:
    """Return a data spec to share. Paths and URLs are private and may hold secrets, so only their last part is kept.

    `folder:/home/me/cifar10` → `folder:PATH/cifar10`; names on the Hub are unchanged.
    """
    family, _, rest = spec.partition(":")
    name, options = parse(rest)
    if not rest or on_hub(spec) or family not in ("folder", "coco", "hf", "wds"):
        return spec
    given = {f.name: value for f in fields(Options) if (value := getattr(options, f.name)) is not None}
    if "/" in str(options.val):
        given["val"] = _last(str(options.val))
    if "/" in str(options.train):
        given["train"] = _last(str(options.train))
    query = "&".join(f"{key}={quote(value, safe='/:,{}')}" for key, value in given.items())
    return f"{family}:{','.join(map(_last, parts(name)))}{'?' * bool(query)}{query}"


def on_hub(spec: str) -> bool:
    """Whether this names data on the Hub. A local folder or file of that name takes precedence, as it does when the data is
    read."""
    family, _, rest = spec.partition(":")
    name = rest.partition("?")[0]
    plain = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII)
    return family == "hf" and plain is not None and not os.path.lexists(name)


def _last(path: str) -> str:
    return f"PATH/{PurePath(path.partition('?')[0]).name}"


def remote(spec: str) -> bool:
    """Whether reading this data may use the network: a name on the Hub, or a URL."""
    family, _, rest = spec.partition(":")
    if family == "hf":
        return "://" in rest or not Path(parse(rest)[0]).expanduser().exists()
    return family == "wds" and "://" in rest


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().absolute())


def parts(text: str) -> list[str]:
    """Split at commas outside braces."""
    return re.split(r",(?![^{]*\})", text)


def shards(pattern: str) -> list[str]:
    """Return the files of `train-{000..123}.tar`, `{a,b}.tar`, `train-*.tar`, in order. URLs are not checked.

    Raises DataError for a file that does not exist.
    """
    found: list[str] = []
    for name in _braces(pattern):
        if "://" in name:
            found.append(name)
            continue
        path = str(Path(name).expanduser())
        matches = sorted(glob.glob(path)) if any(c in path for c in "*?[") and not Path(path).exists() else [path]
        found += [m for m in matches if Path(m).is_file()]
        if not matches or any(not Path(m).is_file() for m in matches):
            whole = f" (of {shown(pattern)})" if name != pattern else ""
            raise DataError(f"There is no {'regular ' * os.path.lexists(path)}file {shown(name)}{whole}.")
    return found


def _braces(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span is not None:
        low, high = span.groups()
        values = [str(i).zfill(len(low)) for i in range(int(low), int(high) + 1)]
        if not values:
            raise SpecError(f"{{{match[1]}}} in {pattern} is not a valid range: it is descending.")
    else:
        values = match[1].split(",")
    return [name for value in values for name in _braces(pattern[: match.start()] + value + pattern[match.end() :])]
