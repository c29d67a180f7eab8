"""Every registered method passes every check."""

from __future__ import annotations

import pytest

import secateurs as sc
from tests import conformance


@pytest.mark.parametrize("check", conformance.CHECKS)
@pytest.mark.parametrize("method", sc.methods())
def test_method(method: str, check: str) -> None:
    conformance.CHECKS[check](method)
