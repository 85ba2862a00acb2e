"""The run folder: what a crash leaves behind is never mistaken for a finished round."""

import json
import resource
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DamagedFileError, OutputError
from common.protocol.codec import Refusal, WeightLayout
from server.run_store.folder import RunError, RunFolder, RunState

LAYOUT = WeightLayout({"a.weight": (2, 3), "b": (4,)})
WEIGHTS = np.arange(10, dtype=np.float32)


def state(**values: object) -> RunState:
    return RunState.model_validate({"run": "r", "digest": "d", "started": "2026-01-01T00:00:00+00:00", **values})


def test_checkpoint_returns_bit_for_bit(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.save_checkpoint(3, WEIGHTS, LAYOUT)
    np.testing.assert_array_equal(folder.load_checkpoint(3, LAYOUT), WEIGHTS)


def test_state_returns(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    assert folder.load_state() is None
    now = state(round=4, best_round=2, best_mean_dice=0.5)
    folder.commit(now)
    assert folder.load_state() == now


def test_every_run_begins_with_a_name_of_its_own(tmp_path: Path) -> None:
    began = []
    for name in ("one", "two"):
        folder = RunFolder.create(tmp_path / name)
        folder.save_checkpoint(0, WEIGHTS, LAYOUT)
        folder.begin("digest", "inline")
        found = folder.load_state()
        assert found is not None
        assert (found.digest, found.round, found.finished) == ("digest", 0, False)
        event = json.loads((folder.path / "events.jsonl").read_text())
        assert (event["event"], event["run"], event["engine"]) == ("started", found.run, "inline")
        began.append(found.run)
    assert len(set(began)) == 2 and {len(bytes.fromhex(run)) for run in began} == {8}


def test_rewind_drops_what_was_not_committed(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    now = state()
    for number in (1, 2, 3):
        folder.append_round({"round": number})
        if number <= 2:
            now.round = number
            folder.commit(now)
    with (tmp_path / "run" / "rounds.jsonl").open("a") as stream:
        stream.write('{"round": 4, "si')
    folder.rewind(now)
    assert folder.read_rounds() == [{"round": 1}, {"round": 2}]
    folder.append_round({"round": 3})
    assert [line["round"] for line in folder.read_rounds()] == [1, 2, 3]


def test_only_the_wanted_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    for number in range(4):
        folder.save_checkpoint(number, WEIGHTS, LAYOUT)
    folder.keep_checkpoints({1, 3})
    assert checkpoints(folder) == ["round_0001.safetensors", "round_0003.safetensors"]


@pytest.mark.parametrize("cut", [0, 4, 60, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, cut: int) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.save_checkpoint(1, WEIGHTS, LAYOUT)
    file = folder.checkpoint_path(1)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(DamagedFileError, match="round_0001"):
        folder.load_checkpoint(1, LAYOUT)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.save_checkpoint(1, WEIGHTS, LAYOUT)
    with pytest.raises(DamagedFileError, match="another model"):
        folder.load_checkpoint(1, WeightLayout({"a.weight": (3, 2), "b": (4,)}))


@pytest.mark.parametrize("content", ["", "{", '{"run": "r"}', '{"run":"r","digest":"d","started":"x","surprise":1}'])
def test_a_damaged_state_is_refused(tmp_path: Path, content: str) -> None:
    folder = RunFolder.create(tmp_path / "run")
    (tmp_path / "run" / "state.json").write_text(content)
    with pytest.raises(DamagedFileError, match=r"state\.json"):
        folder.load_state()


def test_a_folder_in_use_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="exists already"):
        RunFolder.create(tmp_path / "run")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        RunFolder.create(tmp_path / "file" / "run")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        RunFolder.open(tmp_path)


def test_numbers_that_json_has_no_word_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        RunFolder.create(tmp_path / "run").append_round({"loss": float("nan")})


def test_a_checkpoint_is_what_safetensors_would_have_written(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.save_checkpoint(3, WEIGHTS, LAYOUT)
    tensors = safetensors.numpy.load_file(folder.checkpoint_path(3))
    assert {name: values.shape for name, values in tensors.items()} == LAYOUT.shapes
    np.testing.assert_array_equal(np.concatenate([tensors[name].reshape(-1) for name in LAYOUT.shapes]), WEIGHTS)
    theirs = tmp_path / "run" / "checkpoints" / "round_0004.safetensors"
    safetensors.numpy.save_file({name: 2 * values for name, values in tensors.items()}, theirs, {"round": "4"})
    np.testing.assert_array_equal(folder.load_checkpoint(4, LAYOUT), 2 * WEIGHTS)


@pytest.mark.parametrize("size", [9, 11, 0])
def test_weights_of_another_model_are_not_saved(tmp_path: Path, size: int) -> None:
    folder = RunFolder.create(tmp_path / "run")
    with pytest.raises(RunError, match="do not fit"):
        folder.save_checkpoint(1, np.zeros(size, np.float32), LAYOUT)
    assert checkpoints(folder) == []


def checkpoints(folder: RunFolder) -> list[str]:
    """All files beside the spare one."""
    return sorted(path.name for path in (folder.path / "checkpoints").iterdir() if path.name != ".spare.part")


def parts_of(weights: np.ndarray, *ends: int) -> Iterator[np.ndarray]:
    for start, end in pairwise((0, *ends, weights.size)):
        yield weights[start:end]


@given(st.lists(st.integers(0, 10), max_size=4).map(sorted))
def test_a_checkpoint_is_written_while_its_weights_pass_through(
    tmp_path_factory: pytest.TempPathFactory, ends: list[int]
) -> None:
    folder = RunFolder.create(tmp_path_factory.mktemp("state") / "run")
    passing = folder.write_checkpoint(3, parts_of(WEIGHTS, *ends), LAYOUT)
    for given_part, expected in zip(passing, parts_of(WEIGHTS, *ends), strict=True):
        np.testing.assert_array_equal(given_part, expected)
    np.testing.assert_array_equal(folder.map_checkpoint(3, LAYOUT), WEIGHTS)
    assert checkpoints(folder) == ["round_0003.safetensors"]


def test_it_appears_when_the_last_weights_have_passed_and_no_sooner(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    passing = folder.write_checkpoint(3, parts_of(WEIGHTS, 4), LAYOUT)
    for _ in range(2):
        next(passing)
        with pytest.raises(DamagedFileError, match="missing"):
            folder.map_checkpoint(3, LAYOUT)
    with pytest.raises(StopIteration):
        next(passing)
    np.testing.assert_array_equal(folder.map_checkpoint(3, LAYOUT), WEIGHTS)


def test_one_that_nobody_reads_to_the_end_leaves_nothing(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    passing = folder.write_checkpoint(3, parts_of(WEIGHTS, 4), LAYOUT)
    next(passing)
    passing.close()
    assert checkpoints(folder) == []


def test_weights_that_end_with_an_error_leave_nothing(tmp_path: Path) -> None:
    def parts() -> Iterator[np.ndarray]:
        yield WEIGHTS[:4]
        raise ArithmeticError

    folder = RunFolder.create(tmp_path / "run")
    folder.save_checkpoint(3, WEIGHTS, LAYOUT)
    with pytest.raises(ArithmeticError):
        list(folder.write_checkpoint(3, parts(), LAYOUT))
    assert checkpoints(folder) == ["round_0003.safetensors"]
    np.testing.assert_array_equal(folder.map_checkpoint(3, LAYOUT), WEIGHTS)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    layout = WeightLayout({"w": (50_000,)})
    folder = RunFolder.create(tmp_path / "run")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"round_0001.*free space"):
            folder.save_checkpoint(1, np.zeros(50_000, np.float32), layout)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoints(folder) == []


@pytest.mark.parametrize("size", [1, 10, 5000])
def test_a_checkpoint_that_is_not_needed_is_written_over_and_cut_to_size(tmp_path: Path, size: int) -> None:
    large, layout = WeightLayout({"w": (1000,)}), WeightLayout({"w": (size,)})
    folder = RunFolder.create(tmp_path / "run")
    for number in (1, 2):
        folder.save_checkpoint(number, np.full(1000, number, np.float32), large)
    number = folder.checkpoint_path(1).stat().st_ino
    kept = folder.map_checkpoint(2, large)
    folder.keep_checkpoints({2})
    folder.save_checkpoint(3, np.full(size, 3, np.float32), layout)
    assert folder.checkpoint_path(3).stat().st_ino == number
    np.testing.assert_array_equal(folder.map_checkpoint(3, layout), np.full(size, 3))
    np.testing.assert_array_equal(kept, np.full(1000, 2))
    assert [path.name for path in (folder.path / "checkpoints").glob(".*")] == []


def test_a_mapped_checkpoint_is_read_only_and_a_loaded_one_is_a_copy(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.save_checkpoint(1, WEIGHTS, LAYOUT)
    with pytest.raises(ValueError, match="read-only"):
        folder.map_checkpoint(1, LAYOUT)[0] = 9
    loaded = folder.load_checkpoint(1, LAYOUT)
    loaded[:] = 9
    np.testing.assert_array_equal(folder.map_checkpoint(1, LAYOUT), WEIGHTS)


def test_where_the_values_of_a_checkpoint_lie(tmp_path: Path) -> None:
    """From there the gateway serves them; the place is known before the file is written."""
    folder = RunFolder.create(tmp_path / "run")
    file, offset = folder.checkpoint_values(7, LAYOUT)
    folder.save_checkpoint(7, WEIGHTS, LAYOUT)
    assert file.read_bytes()[offset:] == WEIGHTS.tobytes()


def test_a_checkpoint_of_an_earlier_version_is_still_read(tmp_path: Path) -> None:
    """Byte by byte what version 0.1.0 wrote; a run that was begun with it goes on."""
    header = (
        b'{"__metadata__":{"round":"5"},"b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
        b'"a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[16,40]}}'
    )
    header += b" " * (-len(header) % 8)
    folder, layout = RunFolder.create(tmp_path / "run"), WeightLayout({"b": (4,), "a.weight": (2, 3)})
    content = len(header).to_bytes(8, "little") + header + WEIGHTS.tobytes()
    folder.checkpoint_path(5).write_bytes(content)
    np.testing.assert_array_equal(folder.map_checkpoint(5, layout), WEIGHTS)
    np.testing.assert_array_equal(folder.load_checkpoint(5, layout), WEIGHTS)
    folder.save_checkpoint(5, WEIGHTS, layout)
    assert folder.checkpoint_path(5).read_bytes() == content


FOREIGN: dict[str, Callable[[bytes], bytes]] = {
    "no file at all": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "a byte more": lambda content: content + b"\0",
    "a length beyond the file": lambda content: b"\xff" * 8 + content[8:],
    "a header of another type": lambda content: content.replace(b"F32", b"I32"),
    "names in another order": lambda content: content.replace(b"a.weight", b"z.weight"),
    "a text": lambda content: b"thesis " * 100,
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_checkpoint_of_this_model_is_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.save_checkpoint(1, WEIGHTS, LAYOUT)
    file = folder.checkpoint_path(1)
    file.write_bytes(change(file.read_bytes()))
    for read in (folder.map_checkpoint, folder.load_checkpoint):
        with pytest.raises(DamagedFileError, match="round_0001"):
            read(1, LAYOUT)


def test_a_checkpoint_of_another_round_is_refused(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.save_checkpoint(1, WEIGHTS, LAYOUT)
    folder.checkpoint_path(1).rename(folder.checkpoint_path(2))
    with pytest.raises(DamagedFileError, match="round_0002"):
        folder.map_checkpoint(2, LAYOUT)


def test_rewind_drops_checkpoints_and_half_files_that_a_crash_left(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    for number in range(5):
        folder.save_checkpoint(number, WEIGHTS, LAYOUT)
    halves = [
        tmp_path / "run" / ".state.json.ab.part",
        tmp_path / "run" / "checkpoints" / ".round_0004.safetensors.part",
    ]
    for half in halves:
        half.write_bytes(b"{")
    folder.rewind(state(round=3, best_round=1))
    assert checkpoints(folder) == ["round_0001.safetensors", "round_0003.safetensors"]
    assert not any(half.exists() for half in halves)


def test_rewind_keeps_the_last_line_of_a_finished_run(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    for number in (1, 2, 3):
        folder.append_round({"round": number})
    now = state(round=2, finished=True)
    folder.commit(now)
    folder.rewind(now)
    assert [line["round"] for line in folder.read_rounds()] == [1, 2, 3]


def test_what_the_gate_knows_returns(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    known = {"norms": {"a": 2.5}, "refused_last": {"a": "norm-outlier"}, "quarantine": {"b": "protocol"}}
    folder.commit(state(**known, conduct={"a": ["norm-outlier", None]}))
    loaded = folder.load_state()
    assert loaded is not None
    assert loaded.refused_last == {"a": Refusal.NORM_OUTLIER}
    assert (loaded.norms, loaded.quarantine) == ({"a": 2.5}, {"b": Refusal.PROTOCOL})
    assert loaded.conduct == {"a": [Refusal.NORM_OUTLIER, None]}


def test_the_last_round_is_the_last_of_all(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    assert folder.last_round() is None
    rounds = tmp_path / "run" / "rounds.jsonl"
    for number in (1, 2, 3):
        folder.append_round({"round": number})
        assert folder.last_round() == folder.read_rounds()[-1] == {"round": number}
    whole = rounds.read_bytes()
    rounds.write_bytes(whole[:-4])
    assert folder.last_round() == folder.read_rounds()[-1] == {"round": 2}
    rounds.write_bytes(whole[:-4] + b"\n")
    with pytest.raises(DamagedFileError, match="line 3 was changed or cut"):
        folder.last_round()
