"""The run folder: what a crash leaves behind is never mistaken for a finished round."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from common.errors import OutputError
from common.protocol import Refusal, WeightLayout
from server.state import RunError, RunFolder, RunState

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
    folder.commit(state(round=4, best_round=2, best_mean_dice=0.5))
    assert folder.load_state() == state(round=4, best_round=2, best_mean_dice=0.5)


def test_rewind_drops_what_was_not_committed(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    for number in (1, 2, 3):
        folder.append_round({"round": number})
    with (tmp_path / "run" / "rounds.jsonl").open("a") as stream:
        stream.write('{"round": 4, "si')
    folder.rewind(state(round=2))
    assert folder.read_rounds() == [{"round": 1}, {"round": 2}]
    folder.append_round({"round": 3})
    assert [line["round"] for line in folder.read_rounds()] == [1, 2, 3]


def test_only_the_wanted_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    for number in range(4):
        folder.save_checkpoint(number, WEIGHTS, LAYOUT)
    folder.keep_checkpoints({1, 3})
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "round_0001.safetensors",
        "round_0003.safetensors",
    ]


@pytest.mark.parametrize("cut", [0, 4, 60, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, cut: int) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.save_checkpoint(1, WEIGHTS, LAYOUT)
    file = folder.checkpoint_path(1)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(RunError, match="round_0001"):
        folder.load_checkpoint(1, LAYOUT)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.save_checkpoint(1, WEIGHTS, LAYOUT)
    with pytest.raises(RunError, match="another model"):
        folder.load_checkpoint(1, WeightLayout({"a.weight": (3, 2), "b": (4,)}))


@pytest.mark.parametrize("content", ["", "{", '{"run": "r"}', '{"run":"r","digest":"d","started":"x","surprise":1}'])
def test_a_damaged_state_is_refused(tmp_path: Path, content: str) -> None:
    folder = RunFolder.create(tmp_path / "run")
    (tmp_path / "run" / "state.json").write_text(content)
    with pytest.raises(RunError, match=r"state\.json"):
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
    safetensors.numpy.save_file({name: 2 * values for name, values in tensors.items()}, theirs)
    np.testing.assert_array_equal(folder.load_checkpoint(4, LAYOUT), 2 * WEIGHTS)


def test_weights_of_another_model_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="do not fit"):
        RunFolder.create(tmp_path / "run").save_checkpoint(1, WEIGHTS[:-1], LAYOUT)


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
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "round_0001.safetensors",
        "round_0003.safetensors",
    ]
    assert not any(half.exists() for half in halves)


def test_rewind_keeps_the_last_line_of_a_finished_run(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    for number in (1, 2, 3):
        folder.append_round({"round": number})
    folder.rewind(state(round=2, finished=True))
    assert [line["round"] for line in folder.read_rounds()] == [1, 2, 3]


def test_what_the_gate_knows_returns(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.commit(
        state(norms={"a": 2.5}, refusals={"a": 1}, refused_last={"a": "norm-outlier"}, quarantine={"b": "protocol"})
    )
    loaded = folder.load_state()
    assert loaded is not None
    assert loaded.refused_last == {"a": Refusal.NORM_OUTLIER}
    assert (loaded.norms, loaded.refusals, loaded.quarantine) == ({"a": 2.5}, {"a": 1}, {"b": Refusal.PROTOCOL})
