"""README.md of an artifact: what the Hugging Face Hub and a reader get, whatever the card holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import secateurs as sc
from secateurs import artifact
from secateurs.artifact import README, Card
from secateurs.methods import registry
from secateurs.report import modelcard
from secateurs.result import described
from secateurs.testing.networks import data, images


@pytest.fixture(scope="module")
def result() -> sc.Result:
    torch.manual_seed(0)
    source = data()
    some = sc.Data(source.train, source.val, classes=("a", "b", "c", "d"), preprocess=sc.Preprocess(size=(8, 8)))
    return sc.prune(sc.build("zoo:small_cnn", num_classes=4), images(1), "l1", sc.Budget(macs=0.6), some)


def parts(text: str) -> tuple[dict[str, Any], str]:
    head, page = re.fullmatch(r"---\n(.*?)\n---\n\n(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    return yaml.safe_load(head), page


def card_of(result: sc.Result, folder: Path, **changes: Any) -> Card:
    body = json.loads((result.save(folder / "r", overwrite=True) / "card.json").read_text())
    return Card.model_validate({**body, **changes})


def test_what_a_hub_reads(result: sc.Result, tmp_path: Path) -> None:
    header, page = parts((result.save(tmp_path / "r") / README).read_text())
    assert header["library_name"] == "secateurs"
    assert header["pipeline_tag"] == "image-classification"
    assert {"pruning", "pytorch", "l1"} <= set(header["tags"])
    assert header["metrics"] == ["accuracy"]
    ((entry,),) = [header["model-index"]]
    assert entry["name"] == "small_cnn pruned by l1"
    (measured,) = entry["results"]
    assert measured["task"] == {"type": "image-classification"}
    assert measured["dataset"].keys() == {"name", "type"}
    assert measured["metrics"][0]["value"] == pytest.approx(result.after.top1, abs=1e-3)
    assert not {"license", "base_model", "datasets"} & header.keys()  # they are not known
    assert f"relative error of {result.error:.1e}" in page
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    assert [row[0].strip() for row in rows] == ["", "---", "before", "after the cut", "calibrated"]
    assert "4 classes: a, b, c, d" in page


def test_what_it_says_loads_it(result: sc.Result, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "r")
    page = (folder / README).read_text()
    (code,) = re.findall(r"```python\n(import secateurs.*?)\n```", page, re.DOTALL)
    calls = re.findall(r"sc\.(\w+)\(", code)
    assert calls[0] == "load"
    lines = [line for line in code.splitlines() if "image.jpg" not in line]
    assert len(lines) <= 4
    found: dict[str, Any] = {}
    exec("\n".join(lines).replace(f"hf:{modelcard.PLACE}", str(folder)), found)
    assert isinstance(found["model"], nn.Module)
    assert found["preprocess"].size == (8, 8)


def test_where_data_and_weights_are_from(result: sc.Result, tmp_path: Path) -> None:
    spec = {"spec": "timm:resnet18.a1_in1k", "pretrained": True}
    header, _ = parts(modelcard.text(card_of(result, tmp_path, source=spec, data={"data": "hf:uoft-cs/cifar10"})))
    assert (header["base_model"], header["datasets"]) == ("timm/resnet18.a1_in1k", ["uoft-cs/cifar10"])
    assert header["model-index"][0]["results"][0]["dataset"]["name"] == "uoft-cs/cifar10"
    for place in ("folder:/home/me/secret/cifar10", "hf:/home/me/secret/cifar10"):
        text = modelcard.text(card_of(result, tmp_path, data={"data": place}))
        assert "cifar10" in text
        assert "secret" not in text  # a path of whoever pruned it
        assert "datasets" not in parts(text)[0]


def test_data_of_the_hub_and_of_this_machine(
    result: sc.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    card = card_of(result, tmp_path, data={"data": "hf:mine/cifar10?image=img&label=fine"})
    assert parts(modelcard.text(card))[0]["datasets"] == ["mine/cifar10"]
    (tmp_path / "mine" / "cifar10").mkdir(parents=True)  # now the name is that of a folder here
    header, body = parts(modelcard.text(card))
    assert "datasets" not in header
    assert "Measured on cifar10." in body
    assert "mine" not in body


def test_other_tasks(result: sc.Result, tmp_path: Path) -> None:
    figures = {"macs": 10, "params": 10, "metrics": {"mIoU": 0.5, "strange": None}}
    task = {"name": "segmentation"}
    header, page = parts(modelcard.text(card_of(result, tmp_path, task=task, after=figures)))
    assert header["pipeline_tag"] == "image-segmentation"
    assert header["model-index"][0]["results"][0]["metrics"] == [{"type": "miou", "name": "mIoU", "value": 0.5}]
    assert "mIoU" in page
    bare = sc.prune(sc.build("zoo:small_cnn"), images(1), "l1", sc.Budget(macs=0.6))
    header, page = parts((bare.save(tmp_path / "bare") / README).read_text())
    assert not {"pipeline_tag", "metrics", "model-index"} & header.keys()
    assert "top-1" not in page


def test_what_the_method_is(result: sc.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (result.save(tmp_path / "r") / README).read_text()
    assert "The method `l1`: Sum of absolute weights over a channel's filters (Li et al., ICLR 2017)." in page
    assert "The method" not in described(card_of(result, tmp_path, method={"name": "python:theirs:Method"}))

    class Bare(sc.Criterion):
        pass

    monkeypatch.setitem(registry._METHODS, "bare", Bare)
    assert "The method" not in described(card_of(result, tmp_path, method={"name": "bare"}))


def test_top5_is_left_out_where_it_is_always_100(result: sc.Result, tmp_path: Path) -> None:
    assert result.after.top5 == 100
    unknown = json.loads(result.signature.model_dump_json()) | {"classes": None}  # type: ignore[union-attr]
    ten = unknown | {"classes": [str(i) for i in range(10)]}
    for changes, shown in (
        ({}, False), ({"signature": unknown}, False), ({"signature": ten}, True),
        ({"signature": unknown, "source": None}, False),
        ({"signature": unknown, "source": None, "cut": {**vars(result.cut), "top5": 90.0}}, True),
        ({"signature": unknown, "source": {"spec": "zoo:small_cnn", "num_classes": 6}}, True),
    ):  # fmt: skip
        header, page = parts(modelcard.text(card_of(result, tmp_path, **changes)))
        assert ("top-5" in page) is shown
        kinds = [metric["name"] for metric in header["model-index"][0]["results"][0]["metrics"]]
        assert kinds == ["top-1 accuracy, %", *["top-5 accuracy, %"] * shown]


def test_the_hub_reads_the_figures(result: sc.Result, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    source = {"spec": "zoo:small_cnn", "num_classes": 10}
    signature = json.loads(result.signature.model_dump_json()) | {"classes": None}  # type: ignore[union-attr]
    text = modelcard.text(card_of(result, tmp_path, source=source, signature=signature))
    read = hub.ModelCard(text, ignore_metadata_errors=False).data
    assert [(one.metric_type, one.metric_args) for one in read.eval_results] == [
        ("accuracy", None), ("accuracy", {"top_k": 5})
    ]  # fmt: skip
    assert yaml.safe_load(read.to_yaml())["model-index"] == parts(text)[0]["model-index"]


def test_a_network_that_was_changed_before(result: sc.Result, tmp_path: Path) -> None:
    x, budget = torch.randn(1, 3, 16, 16), sc.Budget(macs=0.8)
    assert not card_of(result, tmp_path / "plain").changed_before
    found = sc.prune(sc.widen(sc.build("zoo:small_cnn", num_classes=4), x, 1.5), x, "l1", budget)
    assert card_of(found, tmp_path / "wide").changed_before == "widened"
    page = (tmp_path / "wide" / "r" / README).read_text()
    assert re.search(
        r"`zoo:small_cnn`, first widened, with \S+% of the widened network's MACs and \S+% of the widened", page
    )
    again = sc.prune(found.model, x, "l1", budget)
    assert card_of(again, tmp_path / "again").changed_before == "cut and widened"
    known = [{"method": "l1", "before": card_of(found, tmp_path / "wide").model_dump(mode="json")["before"]}]
    assert card_of(again, tmp_path / "again", earlier=known).changed_before == "widened"
    assert card_of(sc.prune(result.model, x, "l1", budget), tmp_path / "cut").changed_before == "cut"
    assert not card_of(sc.prune(result.model, x, "l1", budget), tmp_path / "cut", earlier=known).changed_before


def test_a_network_of_ones_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    result = sc.prune(model, torch.randn(1, 3, 8, 8), "l1", sc.Budget(macs=0.6))
    page = (result.save(tmp_path / "r") / README).read_text()
    assert "model=original" in page


@pytest.mark.parametrize(
    "evil", ["x`x", "```\n", "<script>alert(1)</script>", "[a](javascript:b)", "a | b", "# x", "---", "a: b\\"]
)
def test_whatever_a_card_holds_is_text(result: sc.Result, tmp_path: Path, evil: str) -> None:
    line = evil.replace("\n", "")
    figures = {"macs": 10, "params": 10, "metrics": {line: 0.5}}
    card = card_of(
        result, tmp_path, source={"spec": f"python:{line}"}, method={"name": line}, after=figures, warnings=[line],
        versions={line: line}, data={"data": f"folder:{evil}"},
    )  # fmt: skip
    signature = card.signature.model_copy(update={"classes": [line]})  # type: ignore[union-attr]
    text = modelcard.text(
        card.model_copy(update={"signature": signature}), call=f"prune({line!r})\n{evil}", method=line
    )
    header, page = parts(text)
    assert header["tags"][-1] == line
    fenced = re.compile(r"^(`{3,})python\n.*?\n\1$", re.DOTALL | re.MULTILINE)
    assert len(fenced.findall(page)) == 2
    plain = re.sub(r"`[^`\n]*`", "", fenced.sub("", page))
    assert "<script" not in plain
    assert not re.search(r"(?<!\\)\](?=\(javascript)", plain)
    rows = [re.sub(r"\\\|", "", row) for row in plain.splitlines() if row.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


# -- the file ----------------------------------------------------------------------------------------------------------


def test_a_readme_of_ones_own_is_kept(result: sc.Result, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / README).write_text("mine")
    result.save(folder)
    assert (folder / README).read_text() == "mine"
    assert README not in json.loads((folder / "card.json").read_text())["files"]
    (folder / README).unlink()
    result.save(folder, overwrite=True)
    first = (folder / README).read_text()
    (folder / README).write_text(first + "license: mit")  # edited
    result.save(folder, overwrite=True)
    assert (folder / README).read_text() == first + "license: mit"
    assert sc.load(folder) is not None  # nothing is read from it


def test_one_of_ours_is_replaced_and_removed(result: sc.Result, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "r")
    once = sc.prune(sc.build("zoo:small_cnn", num_classes=4), images(1), "l2", sc.Budget(macs=0.5))
    once.save(folder, overwrite=True)
    assert "pruned by l2" in (folder / README).read_text()
    assert sorted(p.name for p in folder.iterdir()) == [README, "card.json", "model.safetensors", "plan.json"]
    artifact.remove(folder)
    assert not folder.exists()
    result.save(folder)
    (folder / README).write_text("mine")
    artifact.remove(folder)
    assert [p.name for p in folder.iterdir()] == [README]


@pytest.mark.parametrize("place", ["link", "folder"])
def test_what_is_in_its_place_is_kept(result: sc.Result, tmp_path: Path, place: str) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    if place == "link":
        (folder / README).symlink_to(tmp_path / "nothing")
    else:
        (folder / README).mkdir()
    result.save(folder)
    assert (folder / README).is_symlink() if place == "link" else (folder / README).is_dir()
    assert sc.load(folder) is not None


def test_a_run_writes_it(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    run = sc.PruneRun(
        "zoo:small_cnn",
        sc.DataSpec("digits", "none"),
        tmp_path / "r",
        method="l1",
        budget=sc.Budget(macs=0.5),
        pretrain_epochs=0,
    )
    run.start()
    header, page = parts((tmp_path / "r" / README).read_text())
    assert header["model-index"][0]["results"][0]["dataset"]["name"] == "digits of scikit-learn"
    assert "zoo:small_cnn" in page
