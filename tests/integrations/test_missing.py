"""A missing package is named, with how to get it."""

from __future__ import annotations

import importlib
import sys

import pytest

import secateurs as sc


@pytest.mark.parametrize(
    ("extra", "packages"),
    [
        ("lightning", ["lightning.pytorch", "pytorch_lightning"]),
        ("transformers", ["transformers"]),
        ("ultralytics", ["ultralytics", "ultralytics.engine.model"]),
    ],
)
def test_clear_error(extra: str, packages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in packages:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"secateurs.integrations.{extra}", raising=False)
    with pytest.raises(sc.ConfigError, match=rf"pip install 'secateurs\[{extra}\]'"):
        importlib.import_module(f"secateurs.integrations.{extra}")
