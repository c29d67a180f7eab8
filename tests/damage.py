"""What may happen to a file: every way in which it may be damaged, or be something else altogether."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path


def tree(folder: Path) -> dict[str, tuple[int, bytes | str]]:
    """Everything below a folder: kind and content of each entry, links and FIFOs unopened."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for root, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(root) / name
            mode = path.lstat().st_mode
            content: bytes | str = os.readlink(path) if path.is_symlink() else ""
            if path.is_file():
                content = path.read_bytes() if path.stat().st_size < 1 << 24 else str(path.stat().st_size)
            found[os.fsencode(path.relative_to(folder)).hex()] = (mode, content)
    return found


def _instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def bound(path: Path) -> None:
    """A socket at the path."""
    where = os.getcwd()
    os.chdir(path.parent)  # the address of a socket may be short only
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(where)


class _Code:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, ("touch /tmp/secateurs-was-here",)


def _huge(path: Path) -> None:
    with open(path, "ab") as file:
        file.truncate(1 << 40)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]) and None,
    "emptied": lambda path: path.write_bytes(b"") and None,
    "binary": lambda path: path.write_bytes(bytes(range(256))) and None,
    "not UTF-8": lambda path: path.write_bytes(b'{"caf\xe9": 1}\n') and None,
    "mistyped": lambda path: path.write_bytes(b"[3]\n") and None,
    "deep": lambda path: path.write_bytes(b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n") and None,
    "pickle": lambda path: path.write_bytes(pickle.dumps(_Code())) and None,
    "huge": _huge,
    "gone": Path.unlink,
    "FIFO": _instead(os.mkfifo),
    "folder": _instead(Path.mkdir),
    "loop": _instead(lambda path: path.symlink_to(path.name)),
    "link that leads nowhere": _instead(lambda path: path.symlink_to("nowhere")),
    "device": _instead(lambda path: path.symlink_to("/dev/zero")),
}
