"""Messages name settings, and whoever shows one spells them; the command line matches no message."""

from __future__ import annotations

import ast
import copy
import pickle
import re
from pathlib import Path

import pytest

import secateurs as sc
import secateurs.cli
from secateurs.budget import Budget
from secateurs.cli.spelling import option
from secateurs.deploy import Target
from secateurs.errors import (
    ArtifactError,
    BudgetError,
    ConfigError,
    Message,
    NonFiniteLossError,
    SecateursError,
    Setting,
    a_or_an,
    as_setting,
    nearest,
    one_of,
)
from secateurs.methods import EPruner, OneStep
from secateurs.recovery import Distil, Mimic, Recover

SPELLED = [
    (Setting("scope", "all"), "scope='all'", "--scope all"),
    (Setting("macs", 0.0042), "macs=0.0042", "--macs 0.0042"),
    (Setting("macs", 0.5, Budget), "Budget(macs=0.5)", "--macs 0.5"),
    (Setting("macs", -1.0), "macs=-1.0", "--macs -1"),
    (Setting("weights"), "weights=…", "--weights"),
    (Setting("allow_inexact", True), "allow_inexact=True", "--allow-inexact"),
    (Setting("overwrite", True), "overwrite=True", "--force"),
    (Setting("folder"), "folder=…", "--out"),
    (Setting("workers", "ray"), "workers='ray'", "--workers ray"),
    (Setting("num_gpus", 1.0), "num_gpus=1.0", "--gpus 1"),
    (Setting("recover", None), "recover=None", "--recover none"),
    (Setting("lr", 1.5, Recover), "Recover(lr=1.5)", "--lr 1.5"),
    (Setting("lr", 1.5, Mimic), "Mimic(lr=1.5)", "--mimic-lr 1.5"),
    (Setting("function", "mse", Mimic), "Mimic(function='mse')", "--mimic-function mse"),
    (Setting("nodes", ("a", "b"), Mimic), "Mimic(nodes=('a', 'b'))", "--nodes a,b"),
    (Setting("temperature", 2.0, Distil), "Distil(temperature=2.0)", "--temperature 2"),
    (Setting("beta", 0.5, EPruner), "EPruner(beta=0.5)", "--set beta=0.5"),
    (Setting("lr", of=EPruner), "EPruner(lr=…)", "--set lr=…"),
    (Setting("ranking", "best", EPruner), "EPruner(ranking='best')", "--ranking best"),
    (Setting("fold", True, OneStep), "OneStep(fold=True)", "--set fold=true"),
    (Setting("batch", 32, Target), "Target(batch=32)", "--target-set batch=32"),
    (Setting("pff.lr", 0.1), "pff.lr=0.1", "--set pff.lr=0.1"),
    (Setting("clip_norm", 1.0), "clip_norm=1.0", "clip_norm=1.0"),  # no option of the command line
]


@pytest.mark.parametrize(("setting", "python", "here"), SPELLED)
def test_a_setting_is_spelled_as_its_reader_writes_it(setting: Setting, python: str, here: str) -> None:
    error = ConfigError("that {is} ", setting, ", which…", hint=("Try ", setting, "."))
    assert str(error) == f"that {{is}} {python}, which… Try {python}."
    assert error.text(option) == f"that {{is}} {here}, which… Try {here}."
    message = Message("that is ", setting)
    assert (message, message.text(option)) == (f"that is {python}", f"that is {here}")


def test_suggestions_are_joined_as_a_sentence() -> None:
    assert nearest("conv", ["conv1", "conv2", "conv3"]) == "Did you mean conv3, conv2 or conv1?"
    assert [one_of(names) for names in ([], ["a"], ["a", "b"])] == ["", "a", "a or b"]


def test_an_error_is_put_in_terms_of_the_caller() -> None:
    error = BudgetError("bad ", Setting("lr", -1, Recover), hint="Try another.")
    renamed = error.renamed(as_setting("recover_lr"))
    assert (str(renamed), renamed.text(option)) == (
        "bad recover_lr=-1 Try another.",
        "bad --recover-lr -1 Try another.",
    )
    assert type(renamed) is BudgetError
    assert str(error.within("there: ")) == "there: bad Recover(lr=-1) Try another."
    assert str(error.advised()) == "bad Recover(lr=-1)"
    assert ConfigError(error, " twice").text(option) == "bad --lr -1 Try another. twice"
    assert str(error) == "bad Recover(lr=-1) Try another."


def test_fields_survive_what_is_done_to_an_error() -> None:
    error = NonFiniteLossError("The loss is ", Setting("x", 1), value=1.5, epoch=2, batch=3, checkpoint="c")
    for same in (error.within("a"), error.advised("b"), copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(same) is NonFiniteLossError
        assert (same.value, same.epoch, same.batch, same.checkpoint) == (1.5, 2, 3, "c")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_any_text_can_be_printed() -> None:
    for text in ("{", "{scope}", "%s", "caf\udce9 \ud800"):
        assert str(ArtifactError(text)).encode()
        assert Message(text, Setting("a", text)).encode()


def test_a_method_tells_which_setting_is_wrong() -> None:
    with pytest.raises(ConfigError) as found:
        EPruner(beta=-1)
    assert Setting("beta", -1, EPruner) in found.value.args
    assert found.value.text(option).startswith("--set beta=-1: must be greater than 0.")


def test_the_command_line_matches_no_message() -> None:
    """Neither regular expressions nor replacements: `re`, and text methods on what str(error) gives, are not used."""
    surgery = {"replace", "removeprefix", "removesuffix", "partition", "startswith", "split", "sub"}
    for path in sorted(Path(secateurs.cli.__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text())
        if path.name != "environment.py":  # it reads /proc/cpuinfo and what other packages raise
            imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
            assert "re" not in imported, path.name
            texts = [
                node for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and node.attr in surgery and "error" in ast.unparse(node.value)
            ]  # fmt: skip
            assert not texts, (path.name, [ast.unparse(node) for node in texts])


def test_the_base_takes_anything() -> None:
    assert str(SecateursError()) == ""
    assert str(SecateursError(3, " of ", None)) == "3 of None"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("OrderedDict", "an OrderedDict"), ("dict", "a dict"), ("int", "an int"), ("LSTM", "an LSTM"), ("Linear", "a Linear"),
        ("NPN", "an NPN"), ("UNet", "a UNet"), ("UserDict", "a UserDict"), ("UntypedStorage", "an UntypedStorage"),
        ("ndarray", "an ndarray"),
        ("Unicode", "a Unicode"), ("MSELoss", "an MSELoss"), ("SGD", "an SGD"), ("Sequential", "a Sequential"),
    ],
)  # fmt: skip
def test_a_or_an(name: str, text: str) -> None:
    assert a_or_an(name) == text


def test_no_message_puts_its_own_article_before_a_type() -> None:
    for path in Path(sc.__file__).parent.rglob("*.py"):
        found = re.findall(r"\b[Aa]n? \{type\(.*?\)\.__name__\}", path.read_text())
        assert not found, (path, found)
