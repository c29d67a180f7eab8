"""All file access: every file that is read is opened here, and every file is written atomically.

Files may come from untrusted sources, killed processes and full disks. So a reader opens regular files only (a FIFO
would block), reads at most a given number of bytes, never runs code, and raises an error
that says which file and field are wrong, what was expected and what to do.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import reprlib
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError

from secateurs.errors import ArtifactError, complaint
from secateurs.errors import shown as shown  # the form of a path in messages

if TYPE_CHECKING:
    from torch import Tensor

JSON_BYTES = 256 << 20  # more than the plan of any network needs
DEPTH = 64  # of nested lists and objects; files of ours have about ten levels
Model = TypeVar("Model", bound=BaseModel)
StrPath = str | os.PathLike[str]


def opened(path: StrPath) -> BinaryIO:
    """Open a regular file, or a link to one, for reading.

    Raises OSError, with the reason as its text, for anything else: a path that does not exist, a folder, a FIFO, a socket, a
    device, a broken link, or a file without read permission.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO without a writer would never return.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise OSError(_reason(path, error)) from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise OSError(f"it is {kind(mode)}, not a regular file")
    return os.fdopen(handle, "rb")


def open_regular(path: StrPath, advice: object = "") -> BinaryIO:
    """`opened`, but raises ArtifactError, which names the file and the reason, and ends with the advice, which is about a file
    that is there."""
    try:
        return opened(path)
    except OSError as error:
        hint = advice if os.path.lexists(path) else ""
        raise ArtifactError(f"{shown(path)} cannot be read: {error}.", hint=hint) from None


def read_bytes(path: StrPath, limit: int | None = None, advice: object = "") -> bytes:
    """The content of a regular file, of at most `limit` bytes. Raises ArtifactError."""
    with open_regular(path, advice) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            what = f"is too large: {size:,} bytes, where at most {limit:,} are expected"
            raise ArtifactError(f"{shown(path)} {what}.", hint=advice)
        try:
            return file.read(-1 if limit is None else limit)
        except OSError as error:
            raise ArtifactError(f"{shown(path)} cannot be read: {error.strerror or error}.", hint=advice) from None
        except MemoryError:
            what = f"does not fit in memory: it has {size:,} bytes"
            raise ArtifactError(f"{shown(path)} {what}.", hint=advice) from None


def read_json(path: StrPath, schema: type[Model], limit: int = JSON_BYTES, advice: object = "") -> Model:
    """A JSON file as an object of this schema.

    advice: what to do about an invalid file; the last sentence of every error.

    Raises ArtifactError for a file that does not exist, is not JSON (truncated, nested too deeply, not UTF-8), or does not
    match the schema; the message then names the fields.
    """
    return parse_json(read_bytes(path, limit, advice), schema, path, advice)


def parse_json(data: bytes | str, schema: type[Model], source: StrPath, advice: object = "") -> Model:
    """`read_json` for text that has already been read; `source` is where it comes from."""
    try:
        tree = json.loads(data, parse_constant=_refuse)
    except RecursionError:
        raise ArtifactError(f"{shown(source)} is not valid: it is nested too deeply.", hint=advice) from None
    except (ValueError, UnicodeDecodeError) as error:
        what = "empty" if not data.strip() else f"not valid JSON ({error})"
        raise ArtifactError(f"{shown(source)} is {what}.", hint=advice) from None
    if _deeper(tree, DEPTH):
        raise ArtifactError(f"{shown(source)} is not valid: it is nested too deeply.", hint=advice)
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise ArtifactError(f"{shown(source)} is not valid: {faults(error)}.", hint=advice) from None


def check_format(body: Any, name: str, newest: int, what: str) -> None:
    """Raise ValueError, as validators of a schema do, for JSON that is not of this format, or of a newer version."""
    if not isinstance(body, dict) or body.get("format") != name:
        raise ValueError(f"it is not {what}")
    version = body.get("version")
    if type(version) is not int or version > newest:
        raise ValueError(
            f"it has version {shown(str(version)[:20])}, but this Secateurs reads versions up to {newest}: upgrade Secateurs"
        )


def faults(error: ValidationError) -> str:
    """The first invalid fields, each with the reason."""
    found = error.errors(include_url=False)
    parts = []
    for item in found[:3]:
        field = shown(".".join(map(str, item["loc"])))
        field = field if len(field) <= 120 else field[:119] + "…"
        message = complaint(item).rstrip(".")
        # Our own validators already say what they got.
        got = "" if item["type"] in ("missing", "value_error") else f", got {brief(item['input'])}"
        parts.append(f"{f'field {field!r}: ' if field else ''}{message}{got}")
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return "; ".join(parts) + more


def brief(value: object) -> str:
    """A value read from a file, shortened for a message to about 60 printable characters."""
    text = reprlib.repr(value)  # bounded, however large the value is
    return text if len(text) <= 60 else text[:57] + "…"


def read_tensors(path: StrPath, advice: str = "Copy it again, or save it again.") -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises ArtifactError for a file that is not valid."""
    from safetensors.torch import load_file  # imports torch, which the command line's help does not need

    with open_regular(path, advice) as file:
        size = os.fstat(file.fileno()).st_size
        if size < 8 or int.from_bytes(file.read(8), "little") > size - 8:
            raise ArtifactError(f"{shown(path)} is not a complete safetensors file (it has {size:,} bytes). {advice}")
        try:
            return load_file(utf8(path, file.fileno()))
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            why = f"is not a readable safetensors file ({shown(str(error))})"
            raise ArtifactError(f"{shown(path)} {why}. {advice}") from None


def utf8(path: StrPath, handle: int) -> StrPath:
    """The path of an open file or folder in UTF-8, as safetensors requires."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return f"/proc/self/fd/{handle}"  # available on Linux, where file names may be other than UTF-8
    return path


def parse_tensors(data: bytes, source: StrPath, advice: str = "Copy it again, or save it again.") -> dict[str, Tensor]:
    """`read_tensors` for bytes that have already been read; `source` is where they come from."""
    from safetensors.torch import load

    end = f" {advice}" if advice else ""

    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise ArtifactError(f"{shown(source)} is not a readable safetensors file ({error}).{end}") from None


def write_whole(path: StrPath, content: bytes | str) -> None:
    """Write a file atomically and durably: after a crash it is complete or not there. Raises OSError.

    It is written to the same folder first, under a name derived from its own: what a killed process left there is
    replaced by the next write. Only one process may write.
    """
    path = Path(path)
    temporary = staged(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def check_writable(folder: StrPath) -> None:
    """Raise ArtifactError if a folder takes no files, or cannot be made. One that is not there is not made: whatever ends
    before there is something to write leaves no empty folder."""
    path = Path(folder)
    if os.path.lexists(path) and not path.is_dir():
        raise ArtifactError(f"{shown(path)} is a file: give a folder to write to.")
    there = path.absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ArtifactError(f"{shown(path)} cannot be written to: {error.strerror or error}.") from error


def staged(path: Path) -> Path:
    """Where `write_whole` writes a file before renaming it."""
    return path.with_name(f".{path.name}.tmp")


def dump_json(tree: Any, indent: int | None = None) -> str:
    """Strict JSON: numbers that are not finite become null, since JSON cannot represent them."""
    return json.dumps(_finite(tree), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sync_folder(path: StrPath) -> None:
    """Make renames in a folder durable, where the system supports it (not on Windows)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _deeper(tree: object, levels: int) -> bool:
    """Whether lists and objects are nested more than this many levels deep."""
    level = [tree]
    for _ in range(levels):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")


def _reason(path: StrPath, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is a broken link" if os.path.islink(path) else "there is no such file"
    return str(getattr(error, "strerror", None) or error)


def kind(mode: int) -> str:
    """The kind of a file that is not a regular file, from its mode."""
    kinds = (
        (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
    )  # fmt: skip
    return next((name for test, name in kinds if test(mode)), "something else")


def is_archive(head: bytes) -> bool:
    """Whether what begins with these four bytes is a zip archive, as `torch.save` writes."""
    return head[:4] == b"PK\x03\x04"


def is_pickle(head: bytes) -> bool:
    """Whether what begins with these bytes is a pickle, of a protocol of the last twenty years."""
    return len(head) > 1 and head[0] == 0x80 and head[1] <= 5
