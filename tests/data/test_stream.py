"""Shards: the same batches whenever, wherever and by how many processes they are asked for; and few of them read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateurs.data import Data, load
from secateurs.data import stream as module
from secateurs.data.augment import Augment
from secateurs.data.decoder import Decoder
from secateurs.data.stream import Shards, StreamLoader, StreamSource, deal
from secateurs.errors import DataError, SpecError
from secateurs.training.batches import length

datasets = pytest.importorskip("datasets")
pytest.importorskip("PIL.Image")
from tests.data import sets  # noqa: E402
from tests.data.test_hub import quiet, same  # noqa: E402, F401

IMAGES = [sets.image(i, (8, 8)) for i in range(60)]
COUNTS = [9, 11, 5, 10, 12, 13]


class Log:
    """Which rows of which shards were read."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int]] = []

    def __call__(self, shard: int, skip: int):
        begin = sum(COUNTS[:shard])
        for i in range(skip, COUNTS[shard]):
            self.rows.append((shard, i))
            yield (str(begin + i), IMAGES[begin + i]), begin + i


def make(counts: list[int] | None = COUNTS, log: Log | None = None, size: int | None = None, **options) -> StreamLoader:
    shards = Shards([f"{i}.tar" for i in range(len(COUNTS))], log or Log(), counts, size)
    decoder = Decoder((8, 8), False, workers=1, device=torch.device("cpu"), where="here")
    defaults = {"batch_size": 8, "mean": (0.0,) * 3, "std": (1.0,) * 3, "augment": Augment(2), "shuffle": True}
    return StreamLoader(StreamSource(shards, decoder), **{**defaults, **options})


@pytest.mark.parametrize("counts", [COUNTS, None])
def test_every_sample_once_in_another_order_each_epoch(counts: list[int] | None) -> None:
    loader, seen = make(counts), []
    for epoch in range(2):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert [len(y) for _, y in batches] == [8] * 7 + [4]
        seen.append(torch.cat([y for _, y in batches]))
        assert torch.equal(seen[-1].sort().values, torch.arange(60))
    assert not torch.equal(*seen)
    assert length(loader) == (None if counts is None else 8)
    assert getattr(loader, "samples", None) == (None if counts is None else 60)
    assert length(make(None, size=60)) == 8


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    start=st.integers(0, 8), epoch=st.integers(0, 3), buffer=st.sampled_from([1, 7, 16, 2048]),
    known=st.booleans(), shuffle=st.booleans(), drop_last=st.booleans(),
)  # fmt: skip
def test_resumes_anywhere(start, epoch, buffer, known, shuffle, drop_last) -> None:
    before, module.BUFFER = module.BUFFER, buffer
    try:
        loader = make(COUNTS if known else None, shuffle=shuffle, drop_last=drop_last)
        loader.set_epoch(epoch)
        whole = list(loader)
        start = min(start, len(whole))
        assert same(list(loader.iter_from(start)), whole[start:])
        assert len(whole) == 8 - drop_last
    finally:
        module.BUFFER = before


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("counts", [COUNTS, None])
def test_processes_share_the_global_batch(world: int, counts: list[int] | None) -> None:
    whole = list(make(counts))
    parts = [list(make(counts, rank=rank, world_size=world)) for rank in range(world)]
    for index, (x, y) in enumerate(whole):
        assert torch.equal(torch.cat([part[index][0] for part in parts]), x)
        assert torch.equal(torch.cat([part[index][1] for part in parts]), y)
    assert same(list(make(counts, rank=1, world_size=world).whole()), whole)


def test_a_process_reads_its_own_shards_and_what_is_skipped_is_not_read() -> None:
    even = [10] * 6
    logs = [Log(), Log()]
    global COUNTS
    before, COUNTS = COUNTS, even
    try:
        for rank, log in enumerate(logs):
            loader = make(even, log, rank=rank, world_size=2, batch_size=6)
            assert loader.lanes == 6
            assert len(list(loader)) == 10
        assert not set(logs[0].rows) & set(logs[1].rows)
        assert len(set(logs[0].rows) | set(logs[1].rows)) == 60
        log = Log()
        loader = make(even, log, batch_size=10, shuffle=False)  # 5 divides 10: one shard is left to the tail
        assert loader.lanes == 5
        list(loader.iter_from(4))
        assert len(log.rows) == 20
    finally:
        COUNTS = before


def test_lanes_are_dealt_evenly() -> None:
    assert deal([5, 1, 1, 3], range(4), 2) == [[0], [1, 2, 3]]


def test_shards_that_changed() -> None:
    with pytest.raises(DataError, match=r"5\.tar ended after 13 of 14 examples"):
        list(make([*COUNTS[:-1], 14]))


# -- WebDataset --------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i in range(4):
        sets.tar(tmp_path / f"train-{i:03d}.tar", 6, start=6 * i)
    sets.tar(tmp_path / "val-000.tar", 7, start=100)
    return tmp_path


def open_(spec: str, **options: object) -> Data:
    return load(spec, **{"batch_size": 4, "normalize": "none", "workers": 2, **options})


def test_webdataset(root: Path) -> None:
    data = open_(f"wds:{root}/train-{{000..003}}.tar,{root}/val-000.tar")
    assert data.classes == ("0", "1", "2")
    assert data.input_shape == (3, 16, 16)
    assert (len(data.train), data.train.samples, len(data.val)) == (6, 24, 2)
    assert data.train.lanes == 4
    assert torch.cat([y for _, y in data.val]).tolist() == [i % 3 for i in range(100, 107)]
    for epoch in range(2):
        data.train.set_epoch(epoch)
        whole = list(data.train)
        assert torch.cat([y for _, y in whole]).bincount().tolist() == [8, 8, 8]
        assert same(list(data.train.iter_from(3)), whole[3:])
    parts = [open_(f"wds:{root}/train-*.tar?val=none", rank=r, world_size=2) for r in range(2)]
    assert parts[0].val is None
    for index, (x, y) in enumerate(open_(f"wds:{root}/train-*.tar?val={root}/val-000.tar").train):
        both = [list(part.train)[index] for part in parts]
        assert torch.equal(torch.cat([b[0] for b in both]), x)
        assert torch.equal(torch.cat([b[1] for b in both]), y)


def test_broken_images_in_a_shard(root: Path) -> None:
    sets.tar(root / "train-001.tar", 6, start=6, broken=(7, 9))
    with pytest.raises(DataError, match=r"train-001\.tar, images/0000\d.*cannot be read"):
        list(open_(f"wds:{root}/train-{{000..003}}.tar?val=none").train)
    train = open_(f"wds:{root}/train-{{000..003}}.tar?val=none", skip_unreadable=True).train
    assert [sum(len(y) for _, y in train) for _ in range(2)] == [22, 22]
    assert train.skipped == 2


def test_labels_in_json(root: Path) -> None:
    for name in ("a", "b"):
        sets.tar(root / f"{name}.tar", 4, json=b'{"kind": {"id": 2}}')
    data = open_(f"wds:{root}/a.tar,{root}/b.tar?label=json.kind.id&classes=5")
    assert data.classes == tuple("01234")
    assert [y.tolist() for _, y in data.val] == [[2, 2, 2, 2]]
    with pytest.raises(DataError, match=r"does not list its classes.*\?classes=1000"):
        open_(f"wds:{root}/a.tar,{root}/b.tar?label=json.kind.id")


def test_shards_that_make_no_sense(root: Path) -> None:
    train = f"{root}/train-{{000..003}}.tar"
    with pytest.raises(DataError, match=r"no validation data: .*val=none"):
        open_(f"wds:{train}")
    with pytest.raises(SpecError, match="separated by a comma"):
        open_(f"wds:{train},{train},{train}")
    with pytest.raises(DataError, match=r"no file .*train-004\.tar"):
        open_(f"wds:{root}/train-{{000..004}}.tar?val=none")
    with pytest.raises(DataError, match=r"no column 'kind'\. Its columns are png .*cls"):
        open_(f"wds:{train}?val=none&label=kind")
    sets.tar(root / "val-000.tar", 4, classes=2)
    with pytest.raises(DataError, match="val lacks classes of train: 2"):
        open_(f"wds:{train},{root}/val-000.tar")
    sets.tar(root / "val-000.tar", 8, classes=4)
    with pytest.raises(DataError, match="3 is not one of the 3 classes"):
        open_(f"wds:{train},{root}/val-000.tar")
    whole = (root / "train-002.tar").read_bytes()
    (root / "train-002.tar").write_bytes(whole[:3000])
    with pytest.raises(DataError, match=r"train-002\.tar cannot be read"):
        open_(f"wds:{train}?val=none")
