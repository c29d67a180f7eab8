from __future__ import annotations

import re

import pytest

import secateurs as sc
from secateurs.cli.demo import CHEAPER, _methods
from secateurs.methods.criteria import L1

QUICK = ("--epochs", 1, "--recover-epochs", 1)


@pytest.fixture(autouse=True)
def cheap(few_digits, monkeypatch):
    monkeypatch.setitem(CHEAPER, "oracle", {"examples": 8})


def _figures(out: str) -> str:
    """Without the times, and the width of their column."""
    return " ".join(re.sub(r"─+|\d+\.?\d* m?s\b", "", out).split())


def test_every_method_has_a_row(run):
    ran = run("demo", *QUICK)
    assert ran.status == 0, ran.err
    rows = [line.split()[0] for line in ran.out.splitlines() if re.search(r"%.*e[-+]\d\d", line)]
    assert rows == list(sc.methods())


def test_same_seed_same_table(run):
    once, again = (run("demo", "--methods", "l1,epruner", *QUICK) for _ in range(2))
    assert once.status == 0
    assert _figures(once.out) == _figures(again.out)
    assert _figures(run("demo", "--methods", "l1,epruner", *QUICK, "--seed", 1).out) != _figures(once.out)


def test_an_unknown_method(run):
    ran = run("demo", "--methods", "l1,eprunr")
    assert ran.status == 2
    assert "Did you mean epruner" in ran.err


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("--methods", ""), "--methods names none. Known: "),
        (("--methods", "l2,,npn"), "'l2,,npn' has a comma or a + too many: write 'l2, npn'."),
        (("--methods", " ,"), "--methods names none. Known: "),
        (("--macs", 0), "--macs 0 is not a valid budget"),
        (("--macs", 0.0001), "The lowest budget that can be met is --macs 0.0"),
        (("--epochs", -1), "--epochs -1: the number of epochs"),
        (("--recover-epochs", "nan"), "--recover-epochs nan: the number of epochs"),
    ],
)
def test_refused_before_any_work(run, tokens, message):
    ran = run("demo", *tokens)
    assert ran.status == 2
    assert message in ran.err
    assert "training" not in ran.err
    assert len(ran.err.splitlines()) == 1
    assert "--scope" not in ran.err


def test_a_preset_takes_the_place_of_what_is_cheaper(monkeypatch):
    monkeypatch.setitem(CHEAPER, "npn", {"epochs": 1})
    found = _methods("npn, npn preset=paper")
    assert list(found.values()) == [sc.NPN(epochs=1), sc.NPN(preset="paper")]


def test_a_method_that_fails_does_not_stop_the_others(run, monkeypatch):
    def scores(self, task):
        raise sc.ConfigError("no scores today")

    monkeypatch.setattr(L1, "scores", scores)
    ran = run("demo", "--methods", "l1,l2", *QUICK)
    assert ran.status == 1
    assert "l1: no scores today" in ran.err
    assert "failed" in ran.out
    assert "l2" in ran.out
