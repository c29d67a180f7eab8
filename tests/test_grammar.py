"""Methods and recoveries as text: what is read, and that what is written is read as the same."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

import secateurs as sc
from secateurs import grammar
from secateurs.cli.methods import configured
from secateurs.cli.recipes import RecoverOptions
from secateurs.grammar import Term, terms
from secateurs.methods import resolve
from secateurs.recovery import KINDS
from secateurs.runs.command import _recovery
from secateurs.runs.cut import recorded
from secateurs.studies.comparison.contestants import Contestant, recoveries

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)


@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), VALUES, max_size=4), st.sampled_from([", ", " + "])
)
def test_what_is_written_is_read_as_the_same(values: dict[str, Any], separator: str) -> None:
    text = " ".join(["l2", *grammar.written(values)])
    for found in terms(text, ["l2"]), terms(separator.join([text, text]), ["l2"]):
        for term in found:
            assert term.name == "l2"
            assert {key: grammar.value(own) for key, own in term.settings.items()} == values


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = terms(text, ["finetune", "mimic"])
    except sc.ConfigError:
        return
    assert terms(", ".join(map(str, found)), ["finetune", "mimic"]) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("reconstruct,finetune:10", [("reconstruct", {}), ("finetune:10", {})]),
        ("reconstruct + finetune lr=0.05", [("reconstruct", {}), ("finetune", {"lr": "0.05"})]),
        ("mimic nodes=a,b,finetune", [("mimic", {"nodes": "a,b"}), ("finetune", {})]),
        ("mimic nodes=a,b, finetune:2 lr=1e+0", [("mimic", {"nodes": "a,b"}), ("finetune:2", {"lr": "1e+0"})]),
        ('mimic nodes=["a, b", "finetune"]+finetune', [("mimic", {"nodes": '["a, b", "finetune"]'}), ("finetune", {})]),
        ("finetune lr=1,finetuned", [("finetune", {"lr": "1,finetuned"})]),
        ("reconstruct,finetun:3", [("reconstruct", {}), ("finetun:3", {})]),
        ("finetune 10", [("finetune 10", {})]),
        ("finetune:1e+2+mimic:1E+0", [("finetune:1e+2", {}), ("mimic:1E+0", {})]),
        ('mimic nodes="a,b=1",c', [("mimic", {"nodes": '"a,b=1",c'})]),
        ("", [("", {})]),
    ],
)
def test_where_phases_are_separated(text: str, found: list[tuple[str, dict[str, str]]]) -> None:
    assert terms(text, KINDS) == [Term(*one) for one in found]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("l2 a=1 b", "'b' is not a setting"),
        ("l2 a=1 a=2", "a is given twice"),
        ("aofp,theta=0.2", "separated by spaces: write 'aofp theta=0.2'"),
        ("finetune a=1, b=2 c=3, mimic", "separated by spaces: write 'finetune a=1 b=2 c=3, mimic'"),
        ("l2 a=0.5,b=layer c=1", "separated by spaces: write 'l2 a=0.5 b=layer c=1'"),
        ("l2,,npn", "'l2,,npn' has a comma or a \\+ too many: write 'l2, npn'"),
        ("finetune a=1,", "too many: write 'finetune a=1'"),
        ("+ l2", "too many: write 'l2'"),
        ("a=1, l2", "'a=1, l2' has no name before its settings: write NAME a=1"),
    ],
)
def test_what_is_not_read(text: str, says: str) -> None:
    with pytest.raises(sc.ConfigError, match=says):
        terms(text, ())


class Fields(BaseModel):
    name: str = ""
    other: str | None = None
    names: tuple[str, ...] | None = None
    either: int | tuple[str, ...] | None = None
    numbers: tuple[float, ...] = ()
    flag: bool | Literal["auto"] = "auto"
    share: float | None = None


@pytest.mark.parametrize(
    ("field", "text", "found"),
    [
        *(("name", text, text) for text in ("1", "0.50", "true", "True", "null", "50%", "a,b")),
        ("name", '"1"', "1"),
        ("other", "1", "1"),
        ("other", "null", None),
        ("names", "a,b", ["a", "b"]),
        ("names", '"a,b"', ["a,b"]),
        ("names", '"a b",c', ["a b", "c"]),
        ("names", "0,1.10,null", ["0", "1.10", "null"]),
        ("names", "null", None),
        ("names", '["a,b","c"]', ["a,b", "c"]),
        ("either", '"a,b"', ["a,b"]),
        ("either", "3", 3),
        ("numbers", "1.5,2", [1.5, 2]),
        ("flag", "yes", True),
    ],
)
def test_values_are_as_the_field_takes_them(field: str, text: str, found: object) -> None:
    assert grammar.typed(Fields, {field: text}) == {field: found}


def test_a_percentage_is_no_fraction() -> None:
    with pytest.raises(sc.ConfigError, match=r"share='50%'\): write Fields\(share=0\.5\)"):
        grammar.typed(Fields, {"share": "50%"})


def test_names_that_look_like_numbers_are_names() -> None:
    (mimic,) = RecoverOptions(recover="mimic:2 nodes=0,1.10").recipes()
    assert isinstance(mimic, sc.Mimic)
    assert mimic.nodes == ("0", "1.10")
    (one,) = RecoverOptions(recover="mimic:2 function=mse nodes=1.10 schedule=step milestones=1").recipes()
    assert (one.nodes, one.milestones) == (("1.10",), (1.0,))  # type: ignore[attr-defined]


TRAINED = st.fixed_dictionaries({}, optional={
    "lr": st.floats(1e-6, 10), "optimizer": st.sampled_from(["sgd", "adam", "adamw"]), "ema": st.floats(0, 0.999),
    "clip_norm": st.none() | st.floats(0.1, 10), "compile": st.sampled_from(["auto", True, False]),
    "weight_decay": st.floats(0, 1), "schedule": st.sampled_from(["cosine", "constant"]),
})  # fmt: skip
NODES = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=3, unique=True).map(tuple)
RECOVERIES = st.lists(
    st.builds(lambda n, s: sc.Recover(epochs=n, **s), st.floats(0.1, 100), TRAINED)
    | st.builds(lambda n, s: sc.Recover(steps=n, **s), st.integers(1, 1000), TRAINED)
    | st.builds(
        lambda n, s, nodes: sc.Mimic(epochs=n, nodes=nodes, **s), st.floats(0.1, 100), TRAINED, NODES | st.none()
    )
    | st.builds(lambda n, r: sc.Reconstruct(images=n, ridge=r), st.integers(2, 5000), st.floats(1e-6, 1)),
    max_size=3,
)


@given(RECOVERIES)
def test_a_record_is_written_as_text_that_makes_the_same_recovery(recover: list[Any]) -> None:
    record = json.loads(json.dumps(recorded(recover)))
    ((flag, text),) = _recovery(record)
    assert flag == "--recover"
    assert json.loads(json.dumps(recorded(RecoverOptions(recover=text).recipes()))) == record


METHODS = (
    st.builds(
        sc.AOFP, theta=st.floats(1e-6, 1), epochs=st.floats(0.1, 20), compile=st.sampled_from(["auto", True, False])
    )
    | st.builds(sc.OneStep, crucial=st.lists(st.text(min_size=1), max_size=3).map(tuple))
    | st.builds(sc.L2, ranking=st.sampled_from(["global", "layer"]), cost=st.none() | st.floats(0, 1))
)


@given(METHODS)
def test_the_label_of_a_method_makes_the_same_method(method: sc.Method) -> None:
    label = Contestant.of(method).label
    assert Contestant.of(label).method == method
    assert Contestant.of(label).label == label
    assert configured(label, []) == method


def test_prune_and_compare_read_the_same() -> None:
    for text in ("l2 ranking=layer", "pff preset=paper", "aofp theta=0.02 compile=off", "onestep crucial=conv1,conv2"):
        assert configured(text, []) == Contestant.of(text).method
    for text in (
        "reconstruct images=64, finetune lr=0.05 share=0",
        "reconstruct:64 + finetune lr=0.05 share=0",
        "none",
    ):
        assert RecoverOptions(recover=text).recipes() == recoveries(text)


def test_text_and_options_hold_together() -> None:
    assert configured("l2 cost=0.5", [], "layer") == sc.L2(cost=0.5, ranking="layer")
    assert configured("pff preset=paper", ["lr=0.5"]) == sc.PFF(preset="paper", lr=0.5)
    mimic, tune = RecoverOptions(recover="mimic:2 lr=0.01 nodes=a,b, finetune:3 share=0.5", lr=0.2, ema=0.9).recipes()
    assert mimic == sc.Mimic(epochs=2, lr=0.01, nodes=("a", "b"), ema=0.9)
    assert tune == sc.Recover(epochs=3, share=0.5, lr=0.2, ema=0.9)
    (stepped,) = RecoverOptions(recover="finetune:9 schedule=step milestones=[3,6]", gamma=0.5).recipes()
    assert stepped == sc.Recover(epochs=9, schedule="step", milestones=(3, 6), gamma=0.5)
    assert RecoverOptions(recover="finetune:0").recipes() == RecoverOptions(recover="none").recipes() == []


@pytest.mark.parametrize("text", ["network slimming", "geometric median"])
def test_what_others_call_a_method_is_found(text: str) -> None:
    with pytest.raises(sc.ConfigError, match=r"There is no method .*Did you mean"):
        configured(text, [])
    with pytest.raises(sc.ConfigError, match="is 'l2', and its settings"):
        resolve("l2 ranking=layer")
