"""Tables of times: what is measured, what lies between, and what widths off the grid cost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from secateurs.caching import replacing
from secateurs.deploy.target import Target
from secateurs.latency.geometry import DEPTHWISE, Geometry
from secateurs.latency.store import Store
from secateurs.latency.table import DIVISORS, Tables, axis, points, table
from tests.latency.fakes import Fakes, piece

CONV = Geometry("convolution", 1, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1))
BOTH = True, True


def made(geometry: Geometry, most: tuple[int, int], varies: tuple[bool, bool] = BOTH) -> Tables:
    samples = {p: piece(geometry, p) for p in points(geometry, most, varies)}
    return Tables([table(geometry, samples, most, varies)])


def read(tables: Tables, *widths: tuple[float, float]) -> list[float]:
    ins, outs = np.array(widths, dtype=float).T
    return tables(np.zeros(len(widths), dtype=np.int64), ins, outs).tolist()


def test_between_the_points_times_are_interpolated() -> None:
    tables = made(CONV, (128, 64))
    widths = [(128, 64), (96, 48), (100, 64), (64, 40), (20, 12)]
    due = [piece(CONV, w) for w in widths]
    assert read(tables, *widths) == pytest.approx(due, rel=0.05)


def test_widths_off_the_grid_cost_what_was_measured_there() -> None:
    tables = made(CONV, (128, 128))
    on, off = read(tables, (96, 68), (96, 69))
    assert off / on > piece(CONV, (96, 72)) / piece(CONV, (96, 68)) * 0.97  # as much as the next width that is liked
    (half,) = read(tables, (96, 68.5))
    assert half == pytest.approx(on, rel=0.02)  # partly open channels: as on the grid
    factors = table(CONV, {p: piece(CONV, p) for p in points(CONV, (128, 128), BOTH)}, (128, 128), BOTH).off_out
    assert len(factors) == len(DIVISORS)
    assert list(factors) == sorted(factors, reverse=True)  # a coarser width never costs more


@pytest.mark.parametrize(
    ("geometry", "most", "varies"),
    [
        (CONV, (3, 64), (False, True)),
        (CONV, (1, 1), BOTH),
        (CONV, (5, 7), BOTH),
        (Geometry("linear", 1), (4096, 10), (True, False)),
        (Geometry("convolution", 1, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), DEPTHWISE), (48, 48), BOTH),
        (Geometry("convolution", 1, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), 8), (64, 64), BOTH),
        (Geometry("norm", 1, (8, 8)), (24, 24), BOTH),
    ],
)
def test_every_kind_of_piece_has_a_table(geometry: Geometry, most: tuple[int, int], varies: tuple[bool, bool]) -> None:
    wanted = points(geometry, most, varies)
    assert len(wanted) == len(set(wanted)) <= 60
    tables = made(geometry, most, varies)
    whole, least = read(tables, most, (most[0] if not varies[0] else 1, most[1] if not varies[1] else 1))
    assert whole == pytest.approx(piece(geometry, most), rel=1e-6)
    assert 0 < least <= whole * 1.5


def test_an_axis() -> None:
    assert axis(3, False) == [3]
    assert axis(64, True) == [32, 64] or axis(64, True)[-1] == 64
    assert axis(512, True) == [32, 64, 128, 256, 384, 512]


def test_what_was_measured_is_kept(fakes: Fakes, tmp_path: Path) -> None:
    store = Store(Target("torch-cpu", threads=1))
    assert store.read(CONV) == {}
    store.write(CONV, {(8, 8): 1e-3})
    store.write(CONV, {(8, 16): 2e-3})
    assert Store(Target("torch-cpu", batch=4, threads=1)).read(CONV) == {(8, 8): 1e-3, (8, 16): 2e-3}
    assert Store(Target("torch-cpu", threads=2)).read(CONV) == {}  # another number of threads is another machine
    file = next(p for p in store.folder.iterdir() if p.name == f"{CONV.key}.json")
    assert json.loads(file.read_text())["geometry"]["kernel"] == [3, 3]
    for damage in ("", "{", '{"format": "secateurs-latency", "version": 1, "samples": [[1, 2, -1.0]]}'):
        file.write_text(damage)
        assert store.read(CONV) == {}  # and is measured again


def test_a_cache_that_cannot_be_written(fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    store = Store(Target())
    store.write(CONV, {(8, 8): 1e-3})
    assert store.fault  # so that it is not said to be kept


def test_processes_that_write_a_table_at_a_time_leave_a_whole_one(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "table.json"
    with replacing(file) as one:
        one.write(b"[1, 2")
        one.flush()
        with replacing(file) as other:
            other.write(b"[3]")
        assert file.read_bytes() == b"[3]"
        one.write(b", 4]")
    assert file.read_bytes() == b"[1, 2, 4]"
    with pytest.raises(TypeError), replacing(file) as one:
        one.write(None)  # type: ignore[call-overload]
    assert [path.read_bytes() for path in file.parent.iterdir()] == [b"[1, 2, 4]"]
