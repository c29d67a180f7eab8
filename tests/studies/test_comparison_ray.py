"""Comparisons on a Ray cluster: two nodes' worth of processes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import secateurs as sc
from secateurs.methods import registry
from secateurs.studies.comparison import read_comparison
from tests.studies.comparing import DATA, DEAD, batches, run, tiny

ray: Any = pytest.importorskip("ray")
pytest.importorskip("sklearn")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that are named by `python:` are known from then on, which other tests should not see."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of two nodes with a CPU each; this process is connected to it."""
    from ray.cluster_utils import Cluster

    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.setenv("SECATEURS_DEVICE", "cpu")
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv(DEAD, str(tmp_path_factory.mktemp("dead") / "dead"))
    store = 100 << 20
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": store})
    made.add_node(num_cpus=1, object_store_memory=store)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()
    patch.undo()


@pytest.fixture(scope="module")
def here() -> sc.Comparison:
    return run(None)


def test_killed_and_resumed_on_two_nodes_it_is_the_same_table(
    cluster: Any, here: sc.Comparison, tmp_path: Path
) -> None:
    assert sum(node["Alive"] for node in ray.nodes()) == 2
    folder = tmp_path / "killed"
    code = f"""if True:
        from pathlib import Path
        from tests.studies.comparing import *
        def report(line):
            if line.startswith("[4/8]"):
                kill()
        run(Path({str(folder)!r}), workers="ray", report=report)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "RAY_ADDRESS": cluster.address},
    )  # fmt: skip
    assert done.returncode == -9, done.stderr[-3000:]
    kept = {path: path.read_bytes() for path in folder.glob("cells/*.json")}
    assert len(kept) == 4
    assert sum(cell.failed == "not run" for cell in read_comparison(folder).cells) == 4
    lines: list[str] = []
    found = run(folder, workers="ray", resume=True, report=lines.append)
    assert any("2 at a time" in line for line in lines)
    assert found.table() == here.table()
    assert {path: path.read_bytes() for path in kept} == kept
    assert sum(line.startswith("[") for line in lines) == 4


def test_a_lost_workers_cell_is_run_again_and_a_failing_one_is_a_row(cluster: Any, here: sc.Comparison) -> None:
    names = ["l2", *(f"python:tests.studies.comparing:{name}" for name in ("Dies", "Fails"))]
    found = run(None, methods=names, budgets=[0.6], seeds=1, workers="ray", resources={"num_cpus": 0.5})
    by_name = {cell.method.rpartition(":")[2]: cell for cell in found.cells}
    one = next(cell for cell in here.cells if (cell.method, cell.budget, cell.seed) == ("l2", "macs=0.6", 0))
    assert by_name["l2"].figures["recovered"] == one.figures["recovered"]
    assert os.path.exists(os.environ[DEAD])
    assert by_name["Dies"].figures is not None
    assert by_name["Fails"].failed == "RuntimeError: no <b>scores</b> here"


def test_a_node_that_is_lost_costs_nothing(cluster: Any, here: sc.Comparison) -> None:
    (node,) = cluster.worker_nodes

    def lose(line: str) -> None:
        if line.startswith("[1/"):
            cluster.remove_node(node, allow_graceful=False)

    try:
        found = run(None, workers="ray", seeds=1, report=lose)
        assert sum(node["Alive"] for node in ray.nodes()) == 1
    finally:
        cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    figures = {(cell.method, cell.budget, cell.seed): cell.figures for cell in here.cells}
    for cell in found.cells:
        assert cell.figures["recovered"] == figures[cell.method, cell.budget, 0]["recovered"]


def test_a_built_network_travels_as_its_spec_and_weights(cluster: Any) -> None:
    torch.manual_seed(3)
    model = sc.build("zoo:small_cnn", num_classes=10)
    options: dict[str, Any] = {
        "methods": ["l2"], "budgets": [0.5], "seeds": 1, "epochs": 0.1, "data": "python:tests.studies.comparing:batches",
        "report": lambda line: None,
    }  # fmt: skip
    assert sc.compare(model, workers="ray", **options).table() == sc.compare(model, **options).table()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "other machines cannot be sent Sequential, a module that was not made by sc.build. Pass a spec"),
        ({"model": "python:tests.studies.comparing:tiny", "data": batches()}, "other machines cannot be sent batches"),
        ({"model": "python:tests.studies.comparing:tiny", "resources": {"num_cpus": 64}}, "num_cpus=64"),
        ({"model": "python:tests.studies.comparing:tiny", "resources": {"num_tpus": 1}}, "resources has no num_tpus"),
        ({"model": "python:tests.studies.comparing:tiny", "processes": 2}, "processes=2 is for workers='local'"),
        ({"model": "python:tests.studies.comparing:tiny", "budgets": [0.001]}, "The lowest budget that can be met"),
    ],
)
def test_what_a_cluster_needs_is_said(cluster: Any, options: dict[str, Any], message: str) -> None:
    given = {"model": tiny(), "data": DATA, "methods": ["l2"], "workers": "ray", **options}
    with pytest.raises(sc.SecateursError) as caught:
        sc.compare(given.pop("model"), **given)
    assert message in str(caught.value)
