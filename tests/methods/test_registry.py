"""Methods that are not ours: found by entry point, by module, or registered; and what is wrong with the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.cli.spelling import option
from secateurs.methods import registry, resolve

NEAREST = '''
"""A filter with a near-duplicate can be replaced by it."""

import torch

import secateurs as sc


class Nearest(sc.Criterion):
    """Distance to the nearest other filter of the group."""

    p: float = 2.0

    def scores(self, task):
        found = {}
        for group in task.groups:
            filters = group.filters(task.model)  # (size, weights)
            distances = torch.cdist(filters, filters, p=self.p).fill_diagonal_(torch.inf)
            found[group.name] = distances.amin(1).clamp(max=1e9)
        return found


class Euclidean(sc.L2):
    """A built-in criterion with a change."""


class NoMethod:
    pass
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package outside the tree, as pip leaves it, that declares a method and two things that are none."""
    (tmp_path / "nearest_package.py").write_text(NEAREST)
    info = tmp_path / "nearest_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nearest-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[secateurs.methods]\nnearest = nearest_package:Nearest\n"
        "no-method = nearest_package:NoMethod\ngone = nearest_package:Gone\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    known = dict(registry._METHODS)
    yield tmp_path
    registry._METHODS.clear()
    registry._METHODS.update(known)
    sys.modules.pop("nearest_package", None)


@pytest.mark.usefixtures("package")
def test_an_installed_method_is_found_by_name() -> None:
    assert "nearest" in sc.methods()
    assert "nearest_package" not in sys.modules  # to list names nothing is imported
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        model[0].weight.normal_()
        model[0].weight[3:5] = model[0].weight[3]  # each can replace the other
    result = sc.prune(model, torch.randn(1, 3, 8, 8), "nearest", sc.Budget(macs=0.75))
    assert {3, 4}.isdisjoint(result.plan.groups["0"])
    assert result.method.name == result.card()["method"]["name"] == "nearest"
    assert resolve("nearest", p=1.0).p == 1.0
    assert "nearest" in sc.methods()


@pytest.mark.usefixtures("package")
def test_a_strangers_method_passes_the_shipped_suite() -> None:
    from secateurs.testing import check_method

    check_method("nearest")


@pytest.mark.usefixtures("package")
def test_a_method_of_a_module() -> None:
    assert resolve("python:nearest_package:Nearest", p=1.0).p == 1.0
    with pytest.raises(sc.SpecError, match="no module nowhere"):
        resolve("python:nowhere:Nearest")
    with pytest.raises(sc.SpecError, match=r"has no 'Naerest'. Did you mean Nearest\?"):
        resolve("python:nearest_package:Naerest")
    with pytest.raises(sc.ConfigError, match="has to be a subclass of"):
        resolve("python:nearest_package:NoMethod")


@pytest.mark.usefixtures("package")
def test_what_is_not_a_method_is_said_so() -> None:
    with pytest.raises(sc.ConfigError, match=r"'no-method', nearest_package:NoMethod is not a method"):
        resolve("no-method")
    with pytest.raises(sc.ConfigError, match=r"'gone' of the package nearest-package cannot be loaded: AttributeError"):
        resolve("gone")
    with pytest.raises(sc.ConfigError, match=r"no method 'neares'. Did you mean .*nearest"):
        resolve("neares")
    with pytest.raises(sc.ConfigError, match=r"method=L1 is a class: pass an instance, L1\(…\)"):
        sc.prune(nn.Conv2d(3, 4, 1), torch.randn(1, 3, 4, 4), sc.L1, sc.Budget(macs=0.5))
    with pytest.raises(sc.ConfigError, match="method=7 is not a method"):
        resolve(7)


def test_two_classes_cannot_have_one_name() -> None:
    class Other(sc.Criterion):
        pass

    with pytest.raises(sc.ConfigError, match="'l1' is registered already"):
        sc.register("l1")(Other)


@pytest.mark.parametrize("name", ["", " ", "a b", "a,b", "python:x", "3d", 3, None])
def test_names_that_cannot_be_given(name: object) -> None:
    known = sc.methods()
    with pytest.raises(sc.ConfigError, match="is not a valid name of a method: use letters"):
        sc.register(name)
    with pytest.raises(sc.ConfigError, match=r'as in @sc\.register\("mine"\)\.'):

        @sc.register()
        class Unnamed(sc.Criterion):
            pass

    assert sc.methods() == known


def test_what_cannot_be_registered() -> None:
    class Other(sc.Criterion):
        pass

    known = sc.methods()
    with pytest.raises(sc.ConfigError, match=r'needs a name: write @sc\.register\("other"\)'):
        sc.register(Other)
    for wrong in (dict, Other(), Other.select):
        with pytest.raises(sc.ConfigError, match="has to be a subclass of"):
            sc.register("mine")(wrong)
    assert sc.methods() == known


@pytest.mark.parametrize("name", ["nearest", "python:nearest_package:Nearest"])
def test_it_runs_from_the_command_line(name: str, package: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "secateurs", "prune", "zoo:small_cnn", "--pretrain-epochs", "0", "--method", name,
            "--set", "p=1", "--macs", "0.5", "--recover", "none", "--out", str(package / "run"),
        ],
        cwd=package, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package), *sys.path])},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nearest" in done.stderr
    assert (package / "run" / "card.json").exists()


@pytest.mark.usefixtures("package")
def test_a_subclass_of_a_built_in_method_has_a_name_of_its_own() -> None:
    method = resolve("python:nearest_package:Euclidean")
    assert type(method).__name__ == "Euclidean"
    assert method.name != sc.L2().name


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("magnitude", "l2 or l1"), ("Network-Slimming", "bn-scale"), ("slimming", "bn-scale"),
        ("geometric median", "fpgm or epruner"), ("Hessian", "fisher"),
        ("bn_scale", "bn-scale"), ("EPruner", "epruner"), ("One-Step", "onestep"), ("eprunr", "epruner"),
        ("GroupMagnitudeImportance", "group-l2 or group-l1"), ("GroupNormPruner", "group-l2 or group-l1"),
        ("tp.importance.MagnitudeImportance", "l2 or l1"), ("TaylorImportance", r"taylor\?"),
        ("GroupTaylorImportance", r"group-taylor\?"), ("BNScaleImportance", "bn-scale"), ("HessianImportance", "fisher"),
        ("GroupHessianImportance", "fisher"), ("LAMPImportance", "lamp"), ("FPGMImportance", "fpgm"),
        ("RandomImportance", "random"), ("BNScalePruner", "bn-scale"), ("L1NormPruner", "l1"),
        ("thinet", r"damage\? ThiNet's least squares are a recovery, sc.Reconstruct"),
    ],
)  # fmt: skip
def test_names_that_others_use_find_the_method(name: str, meant: str) -> None:
    with pytest.raises(sc.ConfigError, match=rf"There is no method '{name}'\. Did you mean {meant}"):
        resolve(name)


def test_an_importance_of_torch_pruning_is_told_by_which_name_ours_goes() -> None:
    kind = type(
        "GroupMagnitudeImportance", (), {"__module__": "torch_pruning.importance", "__call__": lambda self: None}
    )
    for method in (kind(), kind, type("Mine", (kind,), {"name": "mine"})()):
        with pytest.raises(
            sc.ConfigError, match=r"is not a method: it is torch-pruning's, .*See docs/migration\.md\.$"
        ):
            resolve(method)
    with pytest.raises(sc.ConfigError, match=r"Did you mean group-l2 or group-l1\?"):
        resolve(kind())


def test_other_names_lead_to_methods_that_there_are() -> None:
    assert {found for names in registry.ALIASES.values() for found in names} <= set(sc.methods())
    assert not [alias for alias in registry.ALIASES if alias != registry._letters(alias)]


def test_the_former_name_of_initialize_is_refused() -> None:
    class Mixin:
        def initialise(self, task: sc.Task, selection: sc.Selection, small: nn.Module) -> None:
            pass

    with pytest.raises(sc.ConfigError, match=r"Late defines initialise, .*: rename the method initialize\."):

        class Late(sc.L1):
            def initialise(self, task: sc.Task, selection: sc.Selection, small: nn.Module) -> None:
                pass

    with pytest.raises(sc.ConfigError, match=r"Mixed defines initialise"):

        class Mixed(Mixin, sc.L1):
            pass


def test_a_name_with_settings_is_told_what_to_pass() -> None:
    with pytest.raises(sc.ConfigError) as error:
        resolve("l2 ranking=layer")
    assert str(error.value).endswith("is 'l2', and its settings are written L2(ranking='layer').")
    with pytest.raises(sc.ConfigError) as error:
        resolve("pff epochs=0.1 preset=paper")
    assert str(error.value) == (
        "'pff epochs=0.1 preset=paper' has settings: the name of the method is 'pff', and its settings are written "
        "PFF(epochs=0.1), preset='paper'."
    )
    assert error.value.text(option).endswith("written --set epochs=0.1, --preset paper.")
    with pytest.raises(sc.ConfigError, match="'l2 layer': a setting of l2 is written key=value"):
        resolve("l2 layer")
    with pytest.raises(sc.ConfigError, match=r"There is no method 'network slimming'\. Did you mean bn-scale"):
        resolve("network slimming")


def test_a_class_of_the_script_that_runs_is_found_by_its_address(tmp_path: Path) -> None:
    script = tmp_path / "own_script.py"
    script.write_text(
        "import secateurs as sc\n"
        "from secateurs.methods import resolve\n"
        "print('runs')\n"
        '@sc.register("mine")\n'
        "class Mine(sc.Criterion):\n"
        "    def scores(self, task): return {}\n"
        "assert type(resolve('python:own_script:Mine')) is Mine\n"
        "import own_script\n"  # as a module of its own, it registers the same class once more
        "assert sc.methods().count('mine') == 1\n"
    )
    ran = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["runs", "runs"]
