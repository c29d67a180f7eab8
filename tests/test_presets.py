"""Settings under a name: of methods and recipes, in Python and on the command line."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

import secateurs as sc
from secateurs.cli import main
from secateurs.cli.budget import target
from secateurs.cli.methods import configured, stages
from secateurs.cli.spelling import option
from secateurs.methods.registry import resolve
from secateurs.studies.comparison.contestants import Contestant, recipes

PLAIN: dict[str, Any] = {"ranking": "global", "prior": 0, "cost": 0, "distil": 0}  # of one-step: |β| alone, from labels


def test_a_preset_is_settings_that_others_override() -> None:
    found = sc.OneStep.preset("cifar", epochs=2)
    assert found == sc.OneStep(lam=1.0, lr=1e-5, epochs=2, **PLAIN)


@pytest.mark.parametrize("kind", [sc.OneStep, sc.NPN, sc.EPruner, sc.PFF, sc.AOFP, sc.Mimic])
def test_presets_are_arguments_as_well(kind: Any) -> None:
    for name in kind.presets:
        assert kind(preset=name) == kind.preset(name) != kind()
    with pytest.raises(sc.ConfigError, match="'papr' is not a preset of"):
        kind(preset="papr")


def test_a_preset_as_an_argument_is_overridden_as_well() -> None:
    assert sc.Mimic(epochs=2, preset="paper") == sc.Mimic.preset("paper", epochs=2)
    assert Contestant.of("npn preset=paper lr=0.5").method == sc.NPN.preset("paper", lr=0.5)


@pytest.mark.parametrize("name", sc.methods())
def test_every_preset_of_every_method_is_valid(name: str) -> None:
    method = type(resolve(name))
    for preset, settings in method.presets.items():
        assert type(method.preset(preset)).model_fields.keys() >= settings.keys()


def test_what_a_preset_gave_is_known_until_it_is_overridden() -> None:
    given = sc.EPruner.preset("vgg16", cost=0)
    assert given.fields_of_preset == {"similarity", "widths", "init", "inner", "late", "late_from"}
    assert given.model_copy(update={"late": 3.0}).fields_of_preset == given.fields_of_preset - {"late"}
    assert sc.EPruner(preset="vgg16", late=1.5).fields_of_preset == given.fields_of_preset - {"late"}
    assert pickle.loads(pickle.dumps(given)).fields_of_preset == given.fields_of_preset
    assert given == sc.EPruner(**given.model_dump())


def test_a_method_of_your_own_has_presets_without_further_words() -> None:
    class Mine(sc.L1):
        strength: float = 0.5
        presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"strength": 0.9}}

    assert (Mine.preset("paper").strength, sc.L1.presets) == (0.9, {})


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        (sc.OneStep, "cifra", "preset='cifra' is not a preset of onestep. Did you mean cifar?"),
        (sc.L1, "paper", "preset='paper' is not a preset of l1. l1 has no presets."),
        (sc.Mimic, "best", "preset='best' is not a preset of Mimic. Known: paper."),
    ],
)
def test_unknown_presets(kind: Any, name: str, says: str) -> None:
    with pytest.raises(sc.ConfigError) as error:
        kind.preset(name)
    assert str(error.value) == says


def test_on_the_command_line() -> None:
    assert configured("onestep", ["epochs=2"], preset=["cifar"]) == sc.OneStep(lam=1.0, lr=1e-5, epochs=2, **PLAIN)
    (stage,) = stages(["onestep:0.3"], ["onestep.epochs=2"], ["paper", "onestep.imagenet"], 1)
    assert stage.method == sc.OneStep(lam=0.1, lr=1e-4, epochs=2, **PLAIN)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--preset", "cifra"), "--preset cifra is not a preset of onestep. Did you mean cifar?"),
        (("--then", "pff:0.3", "--preset", "pff.nothing"), "--preset pff.nothing is not a preset of pff."),
        (
            ("--preset", "cifar", "--preset", "imagenet"),
            "--preset cifar and --preset imagenet both set preset: give one",
        ),
        (("--preset", "cifar", "--set", "lam=-1"), "--set lam=-1: must be greater than 0"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(
    options: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["prune", "zoo:small_cnn", "--method", "onestep", *options, "--out", str(tmp_path / "run")])
    assert (status, capsys.readouterr().err.startswith(f"secateurs: {says}")) == (2, True)
    assert not (tmp_path / "run").exists()


def test_the_list_of_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines.keys() >= set(sc.methods())
    assert "paper, cifar, imagenet" in lines["onestep"]
    assert main(["methods", "onestep"]) == 0
    (row,) = (line.split()[:4] for line in capsys.readouterr().out.splitlines() if line.startswith("lam "))
    assert (row[0], *map(json.loads, row[1:])) == ("lam", None, 1.0, 1.0)
    assert main(["methods", "onestpe"]) == 2
    assert "Did you mean onestep" in capsys.readouterr().err


class TestFaults:
    @pytest.mark.parametrize("value", ["nope", "yes", 1, None, ""])
    @pytest.mark.parametrize(
        ("kind", "name"), [(sc.Recover, "compile"), (sc.Mimic, "channels_last"), (sc.PFF, "compile")]
    )
    def test_a_union_is_refused_once_with_all_that_is_valid(self, kind: Any, name: str, value: Any) -> None:
        with pytest.raises(sc.ConfigError) as error:
            kind(**{name: value})
        text = str(error.value)
        assert text.startswith(f"{kind.__name__}({name}={value!r}): must be 'auto', True or False")
        assert text.count("must be") == 1

    @pytest.mark.parametrize("value", ["auto", True, False])
    def test_what_a_union_takes(self, value: Any) -> None:
        assert sc.Recover(compile=value, channels_last=value).compile is value
        assert sc.PFF(compile=value).compile is value

    @pytest.mark.parametrize(
        ("value", "valid"),
        [("x", "a valid integer or a valid tuple"), ((1, 2), r"a valid integer or a tuple\[str, \.\.\.\]")],
    )
    def test_a_union_of_a_number_and_names(self, value: Any, valid: str) -> None:
        with pytest.raises(
            sc.ConfigError, match=rf"^OneStep\(crucial={re.escape(repr(value))}\): must be {valid}\. onestep's"
        ):
            sc.OneStep(crucial=value)

    def test_one_of_several_values(self) -> None:
        with pytest.raises(
            sc.ConfigError, match=r"^Recover\(milestones=\(1, 'a', 'b'\)\): 'a' must be a valid number"
        ) as error:
            sc.Recover(schedule="step", milestones=(1, "a", "b"))  # type: ignore[arg-type]
        assert str(error.value).count("must be") == 1

    def test_of_all_settings_together(self) -> None:
        with pytest.raises(sc.ConfigError, match=r"^onestep: crucial must be at least 1"):
            sc.OneStep(crucial=-1)

    @pytest.mark.parametrize("text", ["true", "True", "yes", "on"])
    def test_words_of_the_command_line(self, text: str) -> None:
        assert configured("pff", [f"compile={text}"]) == sc.PFF(compile=True)
        assert configured("npn", [f"hold={text}"]) == sc.NPN(hold=True)
        assert Contestant.of(f"pff compile={text}").method == sc.PFF(compile=True)
        assert recipes(f"finetune compile={text}") == [sc.Recover(compile=True)]

    def test_flags_as_messages_spell_them(self) -> None:
        assert target("torch-cpu", ["channels_last=True"]) == sc.Target("torch-cpu", channels_last=True)

    def test_other_words_of_the_command_line(self) -> None:
        assert configured("pff", ["compile=off"]) == sc.PFF(compile=False)
        assert configured("pff", ["compile=auto"]) == sc.PFF()
        with pytest.raises(sc.ConfigError) as error:
            configured("pff", ["compile=maybe"])
        assert error.value.text(option).startswith("--set compile=maybe: must be 'auto', True or False. pff's settings")


class TestRepr:
    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            (sc.L1(), "L1()"),
            (sc.PFF(epochs=2), "PFF(epochs=2.0)"),
            (sc.PFF(compile=True, train="skeleton"), "PFF(compile=True, train='skeleton')"),
            (sc.Mimic(epochs=1, nodes=("a", "b")), "Mimic(epochs=1.0, nodes=('a', 'b'))"),
            (sc.Reconstruct(images=64), "Reconstruct(images=64)"),
            (sc.tasks.Segmentation(dice=1), "Segmentation(dice=1.0)"),
        ],
        ids=str,
    )
    def test_it_is_the_call_with_what_is_not_usual(self, settings: Any, text: str) -> None:
        assert (repr(settings), str(settings), f"{settings}") == (text, text, text)
        assert eval(text, {**vars(sc), **vars(sc.tasks)}) == settings


@pytest.mark.parametrize("name", sc.methods())
def test_every_setting_is_described_where_it_is_listed(name: str) -> None:
    for key, field in type(resolve(name)).model_fields.items():
        assert field.description, key
        assert "Recipe" not in field.description
