"""Updates on disk: the mean is that of all at once, and only whole updates are found again."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import OutputError
from common.transport import Encoding
from server.admission import RefusedError
from server.aggregation import WeightedMean
from server.spool import Spool
from tests.server.test_admission import GOOD, packed

SIZE = 2**20 + 77  # more than one piece of float32


def spool(root: Path, round_number: int = 2, size: int = 3, encoding: Encoding = "float32", run: str = "r1") -> Spool:
    opened = Spool(root / "spool", run, round_number, size, encoding)
    opened.open()
    return opened


@pytest.mark.parametrize("encoding", ["float32", "bfloat16", "int8"])
def test_the_mean_is_that_of_whole_vectors_to_the_last_bit(tmp_path: Path, encoding: Encoding) -> None:
    waiting = spool(tmp_path, size=SIZE, encoding=encoding)
    expected = WeightedMean(SIZE)
    for index, site in enumerate("abc"):
        update = packed(np.random.default_rng(index).normal(size=SIZE), encoding)
        waiting.add(replace(GOOD, site=site), update)
        expected.add(update.vector(), index + 1)
    mean = waiting.mean({site: index + 1 for index, site in enumerate("abc")})
    np.testing.assert_array_equal(mean, expected.mean())


@given(st.sets(st.sampled_from(["a", "b", "../../etc", "x" * 200, "ä/ö"]), min_size=1))
def test_any_name_is_found_again(tmp_path_factory: pytest.TempPathFactory, sites: set[str]) -> None:
    folder = tmp_path_factory.mktemp("spool")
    before = spool(folder)
    for site in sites:
        before.add(replace(GOOD, site=site), packed(np.full(3, len(site))))
    after = spool(folder)
    assert set(after.updates) == sites
    assert repr(dict(sorted(after.updates.items()))) == repr(dict(sorted(before.updates.items())))
    assert not [path for path in folder.rglob("*") if "etc" in path.name]
    for site in sites:
        np.testing.assert_array_equal(after.mean({site: 1}), np.full(3, len(site)))


@pytest.mark.parametrize("suffix", [".update", ".json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_what_a_crash_cut_in_half_is_dropped(tmp_path: Path, suffix: str, damage: str) -> None:
    waiting = spool(tmp_path)
    waiting.add(GOOD, packed(np.ones(3)))
    waiting.add(replace(GOOD, site="b"), packed(np.full(3, 5.0)))
    [file] = [path for path in (tmp_path / "spool").rglob(f"*{suffix}") if path.stem == waiting._path("a").stem]
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if damage == "cut" else content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    after = spool(tmp_path)
    assert set(after.updates) == {"b"}
    np.testing.assert_array_equal(after.mean({"b": 3}), np.full(3, 5.0))


@pytest.mark.parametrize("other", [{"round_number": 3}, {"run": "r2"}, {"encoding": "int8"}])
def test_updates_of_another_round_run_or_form_are_not_found(tmp_path: Path, other: dict[str, object]) -> None:
    spool(tmp_path).add(GOOD, packed(np.ones(3)))
    assert spool(tmp_path, **other).updates == {}  # type: ignore[arg-type]
    assert spool(tmp_path).updates == {}, "and they are gone, not waiting to come back"


def test_a_bad_update_leaves_nothing(tmp_path: Path) -> None:
    waiting = spool(tmp_path)
    with pytest.raises(RefusedError, match="not-finite"):
        waiting.add(GOOD, packed(np.array([0, math.nan, 0])))
    assert waiting.updates == {}
    assert [path for path in (tmp_path / "spool").rglob("*") if path.is_file()] == []


def test_dropped_is_gone_also_after_a_crash(tmp_path: Path) -> None:
    waiting = spool(tmp_path)
    waiting.add(GOOD, packed(np.ones(3)))
    waiting.drop("a")
    assert spool(tmp_path).updates == {}


def test_a_disk_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("")
    with pytest.raises(OutputError, match="spool"):
        spool(tmp_path)


def test_after_the_end_of_a_round_nothing_is_found_and_its_files_are_written_over(tmp_path: Path) -> None:
    waiting = spool(tmp_path, size=SIZE)
    waiting.add(GOOD, packed(np.ones(SIZE)))
    [file] = (tmp_path / "spool").glob("*.update")
    before = file.stat().st_ino
    waiting.close()
    assert spool(tmp_path, size=SIZE).updates == {}
    after = spool(tmp_path, 3, size=100, encoding="int8")
    after.add(replace(GOOD, round=3), packed(np.full(100, 5.0), "int8"))
    assert file.stat().st_ino == before
    assert file.stat().st_size == after.updates["a"].size
    again = spool(tmp_path, 3, size=100, encoding="int8")
    np.testing.assert_array_equal(again.mean({"a": 1}), np.full(100, 5.0))


def test_the_end_of_a_run_leaves_no_file(tmp_path: Path) -> None:
    waiting = spool(tmp_path)
    waiting.add(GOOD, packed(np.ones(3)))
    waiting.remove()
    assert not (tmp_path / "spool").exists()
