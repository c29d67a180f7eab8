from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import secateurs
from secateurs.cli import app

VERBS = ("demo", "methods", "inspect", "prune", "evaluate", "env")

# The CLI's own modules, with an empty package in the place of `secateurs`, whose import brings torch.
_ALONE = f"""
import sys, types
package = types.ModuleType("secateurs")
package.__path__ = [{str(Path(secateurs.__file__).parent)!r}]
sys.modules["secateurs"] = package
from secateurs.cli import main
for verb in {VERBS!r}:
    assert main([verb, "--help"]) == 0
slow = {{"torch", "numpy", "pydantic"}} & sys.modules.keys()
assert not slow, f"help waits for {{slow}}"
"""


def test_help_does_not_wait_for_torch():
    subprocess.run([sys.executable, "-c", _ALONE], check=True, capture_output=True)


def test_methods_do_not_wait_for_the_compiler():
    code = "import torch, sys; before = 'torch._dynamo' in sys.modules; import secateurs as sc; sc.methods(); "
    code += "sc.prune(sc.build('zoo:resnet20'), torch.randn(1, 3, 32, 32), 'l2', sc.Budget(macs=0.5)); "
    code += "assert before or 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_lists_the_verbs(run):
    ran = run("--help")
    assert ran.status == 0
    assert all(verb in ran.out for verb in VERBS)
    assert run("--version").out.strip() == secateurs.__version__


def test_methods_are_listed_with_their_sources(run):
    from secateurs.methods.registry import methods

    lines = {line.split()[0]: line for line in run("methods").out.splitlines()[2:]}
    assert lines.keys() == set(methods())
    for name in lines.keys() - {"random", "index"}:  # baselines
        assert re.search(r"\(.*\b(19|20)\d\d\b.*\)$", lines[name].rstrip()), lines[name]


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_shows_a_real_example(run, verb):
    ran = run(verb, "--help")
    assert ran.status == 0
    assert f"$ secateurs {verb}" in ran.out
    assert "EXAMPLE" not in ran.out


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("inspekt",), 'Did you mean "inspect"'),
        (("inspect",), "needs a MODEL"),
        (("prune", "--out", "x"), "needs a MODEL"),
        (("inspect", "zoo:resnet20", "--num-classes", "0"), "--num-classes"),
        (("inspect", "zoo:resnet20", "--num-classes", "-3"), "--num-classes"),
        (("prune", "zoo:resnet20", "--seed", 2**64, "--out", "x"), "--seed"),
        (("demo", "--seed", "-1"), "--seed"),
        (("inspect", "zoo:resnet20", "--jsn"), "--json"),
        (("prune", "zoo:resnet20", "--macs", "half", "--out", "x"), "--macs"),
        (("prune", "zoo:resnet20", "--macs", "0.5"), 'Command "prune" needs --out. See'),
        (("prune", "zoo:resnet20", "--ot", "x"), "needs --out. Did you mean --out instead of --ot?"),
        (("prune", "zoo:resnet20", "--out"), "--out requires an argument"),
        (("bench",), 'Command "bench" needs an ARTIFACT.'),
        (("prune", "zoo:resnet20", "--scope", "most", "--out", "x"), "internal"),
        (("prune", "zoo:resnet20", "--macs", "0.5", "--out", ""), "name a folder"),
        (("evaluate", ""), "name a folder"),
        (
            ("methods", "show", "pff"),
            'Command "methods" takes one argument, NAME, and not pff as well. Did you mean secateurs methods pff? '
            "See secateurs methods --help.",
        ),
        (
            ("inspect", "zoo:resnet20", "a b", "--json"),
            "takes one argument, MODEL, and not 'a b' as well. See secateurs inspect --help.",
        ),
        (("env", "x"), 'Command "env" takes options only, not x as well. See secateurs env --help.'),
        (("export", "runs/x", "--to", "onx"), 'Did you mean "onnx"? See secateurs export --help.'),
        (
            ("prune", "zoo:resnet20", "--maks", "0.5", "--out", "x"),
            "Unknown option: --maks. Did you mean --macs? See secateurs prune --help.",
        ),
        (("inspekt",), "See secateurs --help."),
    ],
)
def test_wrong_usage(run, tokens, message):
    ran = run(*tokens)
    assert ran.status == 2
    assert message in ran.err
    assert ran.out == ""


def test_an_unforeseen_failure_is_one_message_and_debug_shows_where(run, monkeypatch):
    def broken(*args, **options):
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(secateurs, "build", broken)
    ran = run("inspect", "zoo:resnet20")
    assert ran.status == 1
    assert ran.err == "secateurs: ZeroDivisionError: by nought (--debug shows where)\n"
    assert "Traceback" in run("inspect", "zoo:resnet20", "--debug").err


def test_interrupted(run, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(secateurs, "build", interrupt)
    ran = run("inspect", "zoo:resnet20")
    assert ran.status == 130
    assert ran.err == "Interrupted.\n"


def test_a_reader_that_leaves_early_is_no_failure_to_speak_of():
    script = f"{sys.executable} -m secateurs.cli inspect zoo:resnet20 | head -1"
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert "Traceback" not in ran.stderr


def test_the_app_is_named_after_its_command():
    assert app.name == ("secateurs",)


@pytest.mark.parametrize(
    "tokens",
    [
        ("prune", "zoo:small_cnn", "--macs", 0.5, "--seed", 1.7), ("prune", "zoo:small_cnn", "--rounds=2.5"),
        ("prune", "zoo:small_cnn", "--align", 8.7), ("prune", "zoo:small_cnn", "--batch-size", 33.6),
        ("bench", "zoo:small_cnn", "--batch", 1.5), ("demo", "--seed", ".5"), ("compare", "zoo:small_cnn", "--seeds", "-1.5"),
    ],
)  # fmt: skip
def test_integers_are_not_rounded(run, tokens):
    ran = run(*tokens)
    assert ran.status == 2
    assert re.fullmatch(r"secateurs: --[a-z-]+ -?\d*\.\d is not valid: it must be an integer\.\n", ran.err)


@pytest.mark.parametrize(
    ("token", "ours"),
    [
        ("--importance", "Pass --method l2: or another method."), ("--round-to", "Pass --align: widths are multiples of it."),
        ("--pruning-ratio", "Pass --macs: the share of the MACs that stays"), ("--ignored-layers", "Pass --exclude: "),
    ],
)  # fmt: skip
def test_options_of_other_tools(run, token, ours):
    ran = run("prune", "zoo:small_cnn", "--out", "x", token, "8")
    assert ran.status == 2
    assert f"{token} is not an option here. {ours}" in ran.err


@pytest.mark.parametrize("command", ["bench", "export", "evaluate"])
def test_options_of_other_tools_are_not_suggested_to_commands_without_ours(run, command):
    ran = run(command, "run", "--sparsity", "0.5")
    assert ran.status == 2
    assert "macs" not in ran.err
    assert "--sparsity" in ran.err
