"""Vectors kept at a site, against what crashes, repeated rounds and damaged files do to them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from client.site_vectors import Kept, SiteVectors
from common.errors import DamagedFileError, OutputError

SIZE = 1000


def vectors(round_number: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(round_number)
    return {name: random.standard_normal(SIZE).astype(np.float32) for name in ("one", "two")}


def after(folder: Path, *rounds: int, run: str = "run", site: str = "a") -> SiteVectors:
    kept = SiteVectors(folder, site)
    for started_from, number in pairwise((0, *rounds)):
        kept.write(run, number, vectors(number), started_from)
    return kept


def assert_round(kept: Kept, round_number: int) -> None:
    assert kept.round == round_number
    assert list(kept.vectors) == ["one", "two"]
    for name, values in vectors(round_number).items():
        assert kept.vectors[name].tobytes() == values.tobytes()


def test_what_was_written_is_read_to_the_bit_also_by_others(tmp_path: Path) -> None:
    kept = after(tmp_path / "vectors", 1)
    assert_round(SiteVectors(tmp_path / "vectors", "a").read("run", 2), 1)
    file = kept.path("run", 1)
    assert file.stat().st_mode & 0o777 == 0o600
    assert load_file(file)["two"].tobytes() == vectors(1)["two"].tobytes()


def test_before_the_first_round_there_is_nothing(tmp_path: Path) -> None:
    assert SiteVectors(tmp_path / "vectors", "a").read("run", 1) == Kept()
    assert not (tmp_path / "vectors").exists()


def test_a_round_that_is_trained_again_starts_where_it_started(tmp_path: Path) -> None:
    kept = after(tmp_path, 3, 4)
    assert_round(kept.read("run", 4), 3)
    kept.write("run", 4, vectors(9), 3)
    assert kept.read("run", 5).vectors["one"].tobytes() == vectors(9)["one"].tobytes()


@pytest.mark.parametrize("before_round", [1, 3, 4])
def test_reading_changes_no_file(tmp_path: Path, before_round: int) -> None:
    kept = after(tmp_path, 3, 4)
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    kept.read("run", before_round)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before
    assert len(before) == 2


def test_what_lies_after_the_round_that_was_started_from_goes_when_a_round_is_written(tmp_path: Path) -> None:
    kept = after(tmp_path, 3, 4)
    kept.write("run", 2, vectors(2), 0)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["round_0002.safetensors"]


def test_a_site_that_missed_rounds_goes_on_from_its_last_one(tmp_path: Path) -> None:
    assert_round(after(tmp_path, 2).read("run", 7), 2)


def test_rounds_that_did_not_count_do_not_push_out_the_one_that_did(tmp_path: Path) -> None:
    kept = after(tmp_path, 1)
    for number in range(2, 8):
        assert_round(kept.read("run", 2), 1)
        kept.write("run", number, vectors(number), 1)
    assert len(list((tmp_path / "run").iterdir())) == 2


def test_runs_do_not_touch_each_other(tmp_path: Path) -> None:
    kept = after(tmp_path, 1, 2)
    after(tmp_path, 1, run="other")
    assert kept.read("other", 1) == Kept()
    assert_round(kept.read("run", 3), 2)


def flip(at: float) -> Callable[[Path], object]:
    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[int(at * (len(content) - 1))] ^= 4
        file.write_bytes(content)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *(flip(share) for share in (0.0, 0.002, 0.02, 0.5, 1.0)),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:5000]),
        lambda file: file.write_bytes(file.read_bytes() + b"1234"),
        lambda file: file.write_bytes(file.read_bytes().replace(b'"one"', b'"six"')),
        lambda file: file.write_bytes(after(file.parent / "x", 2, site="b").path("run", 2).read_bytes()),
        lambda file: file.write_bytes(after(file.parent / "x", 1).path("run", 1).read_bytes()),
        lambda file: file.write_bytes(after(file.parent / "x", 2, run="other").path("other", 2).read_bytes()),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_refused(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    kept = after(tmp_path, 2)
    damage(kept.path("run", 2))
    with pytest.raises(DamagedFileError, match=r"round_0002\.safetensors: was changed or cut: .*; restore it"):
        kept.read("run", 3)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(OutputError, match="run: cannot be written"):
        after(tmp_path, 1)


def write_on(folder: Path) -> None:
    kept = SiteVectors(folder, "a")
    number = kept.read("run", 10**6).round
    while True:
        number += 1
        kept.write("run", number, vectors(number), number - 1)


def test_a_process_killed_at_any_moment_leaves_whole_rounds(tmp_path: Path) -> None:
    last = 0
    for _ in range(6):
        process = get_context("fork").Process(target=write_on, args=(tmp_path,))
        process.start()
        while not SiteVectors(tmp_path, "a").path("run", last + 3).exists():
            assert process.is_alive()
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        found = SiteVectors(tmp_path, "a").read("run", 10**6)
        assert_round(found, found.round)
        assert found.round >= last + 3
        last = found.round
