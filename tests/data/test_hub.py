"""Data through Hugging Face `datasets`: tables on disk and in a stream. Nothing here needs a network."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from secateurs.data import Data, load
from secateurs.data.spec import parse, parts, shards
from secateurs.errors import DataError, SpecError

datasets = pytest.importorskip("datasets")
pytest.importorskip("PIL.Image")
from tests.data import sets  # noqa: E402


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return sets.parquet(tmp_path / "set", train=[sets.table(9), sets.table(7, start=9)], test=[sets.table(6, start=50)])


def open_(spec: str, **options: object) -> Data:
    return load(spec, **{"batch_size": 4, "normalize": "none", "workers": 2, **options})


def same(one: list[tuple[Tensor, Tensor]], two: list[tuple[Tensor, Tensor]]) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, two, strict=True)
    )


def pixels(seeds: list[int]) -> Tensor:
    import io

    import numpy as np
    from PIL import Image

    arrays = [np.asarray(Image.open(io.BytesIO(sets.image(s)))).copy() for s in seeds]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("stream", ["true", "false"])
def test_parquet_as_on_the_hub(root: Path, stream: str) -> None:
    data = open_(f"hf:{root}?stream={stream}")
    assert data.classes == ("ant", "bee", "cat")
    assert data.input_shape == (3, 16, 16)
    assert (len(data.train), data.train.samples, len(data.val)) == (4, 16, 2)
    x, y = (torch.cat(parts) for parts in zip(*data.val, strict=True))
    assert y.tolist() == [0, 1, 2, 0, 1, 2]
    torch.testing.assert_close(x, pixels(list(range(50, 56))), rtol=0, atol=1e-6)
    first, targets = list(data.train), []
    for epoch in (0, 1):
        data.train.set_epoch(epoch)
        targets.append(torch.cat([y for _, y in data.train]))
        assert sorted(targets[-1].tolist()) == sorted([i % 3 for i in range(9)] + [i % 3 for i in range(7)])
        for start in range(5):
            assert same(list(data.train.iter_from(start)), list(data.train)[start:])
    assert not same(first, list(data.train))


def test_everything_once_where_it_is_not_augmented(root: Path) -> None:
    for stream in ("true", "false"):
        train = open_(f"hf:{root}?stream={stream}", augment=False).train
        x = torch.cat([x for x, _ in train])
        expected = pixels(list(range(16)))
        found = (x[:, None] - expected[None]).abs().amax((2, 3, 4)) < 1e-6
        assert found.sum() == 16
        assert bool((found.sum(0) == 1).all())


def test_one_file_saved_tables_and_image_folders(root: Path, tmp_path: Path) -> None:
    file = root / "data" / "train-00000-of-00002.parquet"
    data = open_(f"hf:{file}?train=train[:66%25]&val=train[66%25:]".replace("%25", "%"))
    assert (data.train.samples, data.val.samples) == (6, 3)
    datasets.DatasetDict(train=sets.table(6), test=sets.table(3)).save_to_disk(tmp_path / "dict")
    assert open_(f"hf:{tmp_path / 'dict'}").val.samples == 3
    sets.table(9).save_to_disk(tmp_path / "one")
    data = open_(f"hf:{tmp_path / 'one'}?train=train[:6]&val=train[6:]")
    assert (data.train.samples, data.val.samples) == (6, 3)
    assert open_(f"hf:{tmp_path / 'one'}?val=none").val is None
    for split in ("train", "test"):
        for i, name in enumerate(("ant", "bee")):
            path = tmp_path / "folder" / split / name / "x.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(sets.image(i))
    for stream in ("true", "false"):
        data = open_(f"hf:{tmp_path / 'folder'}?stream={stream}")
        assert data.classes == ("ant", "bee")
        assert [y.tolist() for _, y in data.val] == [[0, 1]]


@pytest.mark.parametrize("stream", ["true", "false"])
def test_columns_by_name_and_classes_as_text(tmp_path: Path, stream: str) -> None:
    rows = [sets.table(6, label="kind", names=None, column="photo")]
    root = sets.parquet(tmp_path / "set", train=rows, validation=rows)
    with pytest.raises(
        DataError, match=r"no column of classes\. Its columns are photo.*, kind \(string\), id.*\?label="
    ):
        open_(f"hf:{root}?stream={stream}")
    data = open_(f"hf:{root}?image=photo&label=kind&stream={stream}")
    assert data.classes == ("a", "b", "c")
    assert torch.cat([y for _, y in data.val]).tolist() == [2, 0, 1, 2, 0, 1]
    data = open_(f"hf:{root}?label=kind&classes=c,b,a&stream={stream}")
    assert torch.cat([y for _, y in data.val]).tolist() == [0, 2, 1, 0, 2, 1]
    with pytest.raises(DataError, match="'c' is not one of the 2 classes"):
        list(open_(f"hf:{root}?label=kind&classes=a,b&stream={stream}").val)
    with pytest.raises(DataError, match=r"no column of images 'id'\. Its columns are photo"):
        open_(f"hf:{root}?image=id&label=kind&stream={stream}")


@pytest.mark.parametrize("stream", ["true", "false"])
def test_broken_images_are_named_or_left_out_and_counted(
    tmp_path: Path, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = sets.table(9, broken=(2, 7))
    spec = f"hf:{sets.parquet(tmp_path / 'set', train=[rows], test=[rows])}?stream={stream}"
    with pytest.raises(DataError, match=r"row \d cannot be read: .*runcated.*skip_unreadable=True"):
        list(open_(spec).train)
    data = open_(spec, skip_unreadable=True)
    with caplog.at_level(logging.WARNING, "secateurs"):
        assert [sum(len(y) for _, y in data.train) for _ in range(2)] == [7, 7]
    assert data.train.skipped == 2
    assert data.val.skipped == 0
    assert len([r for r in caplog.records if "is skipped" in r.message]) == 1
    assert "row" in caplog.text


@pytest.mark.parametrize("stream", ["true", "false"])
def test_what_makes_no_sense_is_said(root: Path, tmp_path: Path, stream: str) -> None:
    with pytest.raises(DataError, match=r"has no split 'tests'\. Its splits are train, test"):
        open_(f"hf:{root}?val=tests&stream={stream}")
    alone = sets.parquet(tmp_path / "alone", train=[sets.table(6)])
    with pytest.raises(DataError, match=r"no validation split \(splits: train\).*val=none"):
        open_(f"hf:{alone}?stream={stream}")
    lacking = sets.parquet(tmp_path / "lacking", train=[sets.table(6)], test=[sets.table(2)])
    with pytest.raises(DataError, match="test lacks classes of train: cat"):
        open_(f"hf:{lacking}?stream={stream}")
    odd = sets.table(4, size=(20, 10)).select([3])
    odd = datasets.concatenate_datasets([sets.table(3), odd])
    odd = sets.parquet(tmp_path / "odd", train=[sets.table(3)], test=[odd])
    with pytest.raises(DataError, match=r"row 3 is 10x20, but .* 16x16 .*Pass image_size=16"):
        list(open_(f"hf:{odd}?stream={stream}").val)
    assert open_(f"hf:{odd}?stream={stream}", image_size=12).input_shape == (3, 12, 12)


def of_labels(values: list, feature: object):
    cells = [{"bytes": sets.image(i), "path": None} for i in range(len(values))]
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    return datasets.Dataset.from_dict({"image": cells, "label": values}, features=features)


def test_each_split_may_list_the_classes_in_its_own_order(tmp_path: Path) -> None:
    train = of_labels([0, 1, 2], datasets.ClassLabel(names=["ant", "bee", "cat"]))
    val = of_labels([0, 1, 2], datasets.ClassLabel(names=["cat", "ant ", "bee"]))
    datasets.DatasetDict(train=train, val=val).save_to_disk(tmp_path / "set")
    data = open_(f"hf:{tmp_path / 'set'}")
    assert torch.cat([y for _, y in data.val]).tolist() == [2, 0, 1]
    val = of_labels([0, 1, 2], datasets.ClassLabel(names=["cat", "ant", "dog"]))
    datasets.DatasetDict(train=train, val=val).save_to_disk(tmp_path / "other")
    with pytest.raises(DataError, match="other, val: 'dog' is not one of the 3 classes"):
        open_(f"hf:{tmp_path / 'other'}")


@pytest.mark.parametrize("stream", ["true", "false"])
def test_columns_that_are_not_one_class_for_each_image(tmp_path: Path, stream: str) -> None:
    kinds = {
        "missing": (["a", None, "b"], datasets.Value("string")),
        "several": ([[0], [1, 2], [2]], [datasets.Value("int64")]),
    }
    for name, (values, feature) in kinds.items():
        rows = of_labels(values, feature)
        sets.parquet(tmp_path / name, train=[rows], test=[rows])
    with pytest.raises(DataError, match=r"train.* None is not one of the 2 classes\. This example has no class"):
        list(open_(f"hf:{tmp_path / 'missing'}?stream={stream}").train)
    with pytest.raises(DataError, match=r"column 'label' does not hold one class for each image.*\?label="):
        open_(f"hf:{tmp_path / 'several'}?label=label&stream={stream}")
    with pytest.raises(DataError, match="no column of classes"):
        open_(f"hf:{tmp_path / 'several'}?stream={stream}")


def test_spaces_around_classes_do_not_count(tmp_path: Path) -> None:
    rows = of_labels(["b ", "a", " a", "b"], datasets.Value("string"))
    root = sets.parquet(tmp_path / "set", train=[rows], test=[rows])
    data = open_(f"hf:{root}")
    assert data.classes == ("a", "b")
    assert torch.cat([y for _, y in data.val]).tolist() == [1, 0, 0, 1]


def test_an_empty_slice(tmp_path: Path) -> None:
    sets.table(6).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=r"split train\[99%:\] is empty"):
        open_(f"hf:{tmp_path / 'set'}?train=train[:90%]&val=train[99%:]")


def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="There is no folder"):
        open_(f"hf:{tmp_path / 'nowhere'}")
    (tmp_path / "notes.txt").write_text("")
    os.mkfifo(tmp_path / "fifo.parquet")
    with pytest.raises(DataError, match="neither a folder nor a regular file"):
        open_(f"hf:{tmp_path / 'fifo.parquet'}")
    with pytest.raises(DataError, match=r"no regular file .*fifo\.parquet"):
        open_(f"wds:{tmp_path / 'fifo.parquet'}?val=none")
    with pytest.raises(DataError, match=r"not a \.parquet"):
        open_(f"hf:{tmp_path / 'notes.txt'}")

    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'cifar10' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(DataError, match=r"hf:cifar10: there is no such local folder, and the .* Hub cannot be reached"):
        open_("hf:cifar10?label=fine_label")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SpecError, match=r"pip install 'secateurs\[data\]'"):
        open_("hf:cifar10")


def test_large_data_is_streamed(root: Path) -> None:
    from secateurs.data.stream import StreamLoader

    assert isinstance(open_(f"hf:{root}", memory_limit=0).train, StreamLoader)
    assert not isinstance(open_(f"hf:{root}").train, StreamLoader)


def test_spec_options(tmp_path: Path) -> None:
    name, options = parse("a/b?image=img&label=fine_label&val=train[90%:]")
    assert (name, options.image, options.label, options.val) == ("a/b", "img", "fine_label", "train[90%:]")
    assert parse("train-??.tar")[0] == "train-??.tar"
    assert parts("a-{1,2}.tar,b.tar") == ["a-{1,2}.tar", "b.tar"]

    def use(spec: str) -> None:
        options = parse(spec)[1]
        _ = options.size("val"), options.streamed

    for bad, message in [
        ("x?lable=a", "Did you mean label"),
        ("x?label=", "has no value"),
        ("x?val_size=many", "number of images"),
        ("x?stream=yes", "stream=true or stream=false"),
    ]:
        with pytest.raises(SpecError, match=message):
            use(bad)
    for i in range(3):
        (tmp_path / f"t-00{i}.tar").touch()
    names = [str(tmp_path / f"t-00{i}.tar") for i in range(3)]
    assert shards(str(tmp_path / "t-{000..002}.tar")) == shards(str(tmp_path / "t-*.tar")) == names
    assert shards("http://x/{a,b}-{8..10}.tar")[::4] == ["http://x/a-8.tar", "http://x/b-9.tar"]
    with pytest.raises(DataError, match=r"no file .*t-003\.tar"):
        shards(str(tmp_path / "t-{000..003}.tar"))
    with pytest.raises(SpecError, match="is descending"):
        shards("{3..1}.tar")
