from __future__ import annotations

from pathlib import Path

import pytest

from secateurs.data.spec import absolute, parse


def test_paths_are_made_absolute_and_names_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "here").mkdir()
    for spec, expected in (
        ("digits", "digits"),
        ("folder:here", f"folder:{tmp_path}/here"),
        ("folder:~/x", "folder:/home/me/x"),
        ("folder:/a/b", "folder:/a/b"),
        ("hf:cifar10?image=img", "hf:cifar10?image=img"),
        ("hf:here?image=img", f"hf:{tmp_path}/here?image=img"),
        ("wds:a-{0,1}.tar,http://x/b.tar", f"wds:{tmp_path}/a-{{0,1}}.tar,http://x/b.tar"),
        ("wds:a.tar?classes=3&val=none", f"wds:{tmp_path}/a.tar?classes=3&val=none"),
        ("folder:", "folder:"),
        ("no spec", "no spec"),
    ):
        assert absolute(spec) == expected
        assert absolute(expected) == expected
    _, options = parse(absolute("wds:a.tar?val=b+c.tar&classes=3").removeprefix("wds:"))
    assert (options.val, options.classes) == (f"{tmp_path}/b c.tar", "3")
