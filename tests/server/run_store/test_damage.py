"""Whatever happens to a file of a run folder is named, or changes nothing in what comes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

from common.config.federation import FederationConfig, load_federation
from common.errors import DamagedFileError
from common.protocol.codec import WeightLayout
from server.progress.events import Event, Notice, RoundDone
from server.run_store.damage import check_files, check_model, find_damage
from server.run_store.folder import RunFolder, RunState
from server.simulation.experiment import SimulationOptions, simulate
from tests import tiny

STOPS = "the run stops, and names a file"
AGAIN = "the file is named, put aside, and made again: the same model comes out"
LESS = "the file is named and put aside, and the run goes on without it"
NOTHING = "the same model comes out"
FATES = {
    "state.json": STOPS,
    "rounds.jsonl": STOPS,
    "checkpoints/last": STOPS,
    "checkpoints/best": LESS,
    "federation.yaml": AGAIN,
    "plan.json": AGAIN,
    "partition.json": AGAIN,
    "data.json": AGAIN,
    "phantoms/sites.csv": AGAIN,
    "phantoms/dataset.json": AGAIN,
    "phantoms/imagesTr/*": AGAIN,
    "phantoms/labelsTr/*": AGAIN,
    "phantoms.sha256": AGAIN,
    "summary.json": AGAIN,
    "validation.csv": AGAIN,
    "model/*": AGAIN,
    "examples/*": AGAIN,
    "report.html": NOTHING,
    "events.jsonl": NOTHING,
    "updates/*": NOTHING,
    "start.lock": NOTHING,
}
"""What becomes of a run when a file is damaged, by a pattern that is the file's name."""
SETTINGS = (
    "rounds=2",
    "training.local_steps=1",
    "model.channels=[4, 8]",
    "simulation.phantom={cases_per_site: [2, 2], shape: [16, 16, 16]}",
    "simulation.partition.validation_fraction=0.5",
)
BOTH = ["killed", "finished"]


@dataclass(frozen=True)
class Runs:
    """Folders of one run: after its first round, killed after its second, and finished; and another run's."""

    config: FederationConfig
    folder: Path

    def resume(self, run: Path, emit: Callable[[Event], None]) -> None:
        options = SimulationOptions(None, run, cache=self.folder / "cache", device="cpu", resume=True)
        simulate(self.config, options, emit)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")

    def copy(event: Event) -> None:
        """Between two rounds a copy is what a kill leaves."""
        if isinstance(event, RoundDone) and event.line["round"] <= 2:
            shutil.copytree(folder / "finished", folder / ("older", "killed")[event.line["round"] - 1])

    file = tiny.write_federation(folder)
    made = Runs(load_federation(file, SETTINGS), folder)
    made.resume(folder / "finished", copy)
    Runs(load_federation(file, [*SETTINGS, "seed=2"]), folder).resume(folder / "other", lambda event: None)
    return made


def flip(runs: Runs, run: str, name: str, content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def cut(runs: Runs, run: str, name: str, content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(runs: Runs, run: str, name: str, content: bytes) -> bytes:
    return b""


def of_another_run(runs: Runs, run: str, name: str, content: bytes) -> bytes:
    file = runs.folder / "other" / name
    return file.read_bytes() if file.exists() else content


def of_an_older_copy(runs: Runs, run: str, name: str, content: bytes) -> bytes:
    file = runs.folder / "older" / name
    return file.read_bytes() if file.exists() else content


def delete(runs: Runs, run: str, name: str, content: bytes) -> None:
    return None


Damage = Callable[[Runs, str, str, bytes], bytes | None]
DAMAGES: list[Damage] = [flip, cut, empty, of_another_run, of_an_older_copy, delete]


def pattern_of(run: Path, name: str) -> str:
    state = json.loads((run / "state.json").read_text())
    if name.startswith("checkpoints/"):
        return "checkpoints/last" if int(name[18:22]) == state["round"] else "checkpoints/best"
    return next((pattern for pattern in FATES if fnmatch(name, pattern)), f"{name}, which is not in FATES")


def files_of(run: Path) -> dict[str, list[str]]:
    """The names of all files, by pattern."""
    found: dict[str, list[str]] = {}
    for path in sorted(run.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            name = path.relative_to(run).as_posix()
            found.setdefault(pattern_of(run, name), []).append(name)
    return found


def damaged(runs: Runs, run: str, to: Path, *damages: tuple[str, Damage]) -> list[str]:
    """Copies a run and damages one file of each pattern; the names of those that differ then."""
    shutil.copytree(runs.folder / run, to)
    files, changed = files_of(to), []
    for pattern, damage in damages:
        for name in files.get(pattern, [])[:1]:
            before = (to / name).read_bytes()
            after = damage(runs, run, name, before)
            if after is None:
                (to / name).unlink()
            else:
                (to / name).write_bytes(after)
            changed += [name] if after != before else []
    return changed


def check(runs: Runs, run: Path, changed: list[str], fate: str) -> None:
    told: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Notice):
            told.append(event.text)

    if fate == STOPS:
        with pytest.raises(DamagedFileError, match=str(run)) as error:
            runs.resume(run, listen)
        assert error.value.exit_status == 2
        return
    runs.resume(run, listen)
    named = [name for name in changed if any(str(run / name) in text for text in told)]
    if fate == AGAIN:
        assert named or all(name.startswith("phantoms") for name in changed)
    if fate == LESS:
        assert named == changed
        return
    for name in ("model/model.safetensors", "validation.csv"):
        assert (run / name).read_bytes() == (runs.folder / "finished" / name).read_bytes()
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"


def test_every_file_has_a_fate(runs: Runs) -> None:
    found = files_of(runs.folder / "killed") | files_of(runs.folder / "finished")
    assert not set(found) - set(FATES)
    assert not set(FATES) - set(found)


@pytest.mark.parametrize("run", BOTH)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pattern", [pattern for pattern, fate in FATES.items() if fate == STOPS])
def test_what_a_run_rests_on_stops_it(runs: Runs, tmp_path: Path, run: str, damage: Damage, pattern: str) -> None:
    if (pattern, damage) == ("state.json", of_an_older_copy):
        pytest.skip("like a crash before the last commit: the rounds after it are done again")
    changed = damaged(runs, run, tmp_path / "run", (pattern, damage))
    if changed:
        check(runs, tmp_path / "run", changed, STOPS)


@pytest.mark.parametrize(
    ("run", "damage", "fate"), [("killed", flip, AGAIN), ("finished", cut, AGAIN), ("killed", empty, NOTHING)]
)
def test_what_can_be_made_again_is_made_again(runs: Runs, tmp_path: Path, run: str, damage: Damage, fate: str) -> None:
    """All such files at once; one by one in the long test."""
    patterns = [pattern for pattern in FATES if FATES[pattern] == fate]
    changed = damaged(runs, run, tmp_path / "run", *((pattern, damage) for pattern in patterns))
    assert len(changed) >= 2
    check(runs, tmp_path / "run", changed, fate)


@pytest.mark.long
@pytest.mark.parametrize("run", BOTH)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pattern", [pattern for pattern, fate in FATES.items() if fate != STOPS])
def test_every_file_and_every_damage(runs: Runs, tmp_path: Path, run: str, damage: Damage, pattern: str) -> None:
    changed = damaged(runs, run, tmp_path / "run", (pattern, damage))
    if changed:
        check(runs, tmp_path / "run", changed, FATES[pattern])


@pytest.mark.long
@pytest.mark.parametrize("run", BOTH)
def test_an_older_state_is_like_a_crash(runs: Runs, tmp_path: Path, run: str) -> None:
    """Over a network the audit log knows better; a simulation does the same round again."""
    damaged(runs, run, tmp_path / "run", ("state.json", of_an_older_copy))
    shutil.copy(runs.folder / "older/checkpoints/round_0001.safetensors", tmp_path / "run/checkpoints")
    check(runs, tmp_path / "run", [], NOTHING)


def test_the_model_of_another_run_is_not_this_runs_however_whole_it_is(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.folder / "finished", tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    check_model(folder)
    assert find_damage(folder) == []
    shutil.copytree(runs.folder / "other" / "model", folder.path / "model", dirs_exist_ok=True)
    with pytest.raises(DamagedFileError, match=r"model\.(json|safetensors): was changed.*; resume the run"):
        check_model(folder)
    assert [text.split(":")[0] for text in find_damage(folder)] == ["model/model.json", "model/model.safetensors"]


LAYOUT = WeightLayout({"w": (4,)})


def short_run(path: Path, **values: object) -> tuple[RunFolder, RunState]:
    """Three rounds of which the first was the best."""
    folder = RunFolder.create(path)
    for number in (1, 3):
        folder.save_checkpoint(number, np.full(4, number, np.float32), LAYOUT)
    state = RunState(run="r", digest="d", started="now", round=3, best_round=1, best_mean_dice=0.5)
    folder.commit(state)
    return folder, state


def test_without_its_best_checkpoint_a_run_seeks_the_best_round_anew(tmp_path: Path) -> None:
    folder, state = short_run(tmp_path / "run")
    folder.checkpoint_path(1).write_bytes(b"")
    [told] = check_files(folder, state)
    assert "round_0001.safetensors: was changed or cut" in told
    assert "round_0001.safetensors.damaged" in told
    again = RunFolder(folder.path).load_state()
    assert again is not None
    assert (again.best_round, again.best_mean_dice, again.released_round) == (None, None, 3)
    assert check_files(folder, again) == []


def test_a_model_that_is_lost_is_left_out_of_the_average(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    for number in (1, 2, 3):
        folder.save_checkpoint(number, np.full(4, number, np.float32), LAYOUT)
    state = RunState(run="r", digest="d", started="now", round=3, best_round=3, recent=[1, 2, 3])
    folder.commit(state)
    folder.checkpoint_path(2).write_bytes(b"")
    [told] = check_files(folder, state)
    assert "round_0002.safetensors: was changed or cut" in told
    assert "neither released nor averaged" in told
    again = RunFolder(folder.path).load_state()
    assert again is not None
    assert again.recent == [1, 3]


def test_putting_a_file_aside_finishes_no_round_that_a_crash_ended(tmp_path: Path) -> None:
    folder, state = short_run(tmp_path / "run")
    folder.append_round({"round": 1})
    folder.commit(state)
    folder.append_round({"round": 2})
    folder.checkpoint_path(1).write_bytes(b"")
    assert len(check_files(folder, state)) == 1
    again = RunFolder(folder.path)
    known = again.load_state()
    assert known is not None
    again.rewind(known)
    assert again.read_rounds() == [{"round": 1}]


@pytest.mark.parametrize("name", ["round_0003.safetensors", "strategy_0003_momentum.f32"])
def test_a_changed_weight_of_what_comes_next_stops_the_run(tmp_path: Path, name: str) -> None:
    folder, state = short_run(tmp_path / "run")
    file = folder.path / "checkpoints" / name
    if not file.exists():
        file.write_bytes(np.ones(4, "<f4").tobytes())
        state.strategy_round = 3
        state.digests[f"checkpoints/{name}"] = "0" * 64
    else:
        file.write_bytes(file.read_bytes()[:-4] + np.float32(np.nan).tobytes())
    with pytest.raises(DamagedFileError, match=rf"{name}: was changed or cut.*; restore it"):
        check_files(folder, state)
    assert file.exists(), "what only a person can judge stays where it is"


def test_lines_that_are_changed_during_a_run_are_not_written_over(tmp_path: Path) -> None:
    folder, state = short_run(tmp_path / "run")
    folder.append_round({"round": 1})
    folder.commit(state)
    (folder.path / "rounds.jsonl").write_text('{"round": 2}\n')
    with pytest.raises(DamagedFileError, match=r"rounds\.jsonl"):
        folder.commit(state)


@pytest.mark.parametrize("text", ['{"round": 1}\n{"roun\n{"round": 3}\n', "\n", '{"round": 1}\n\xff\n'])
def test_no_line_is_left_out_in_silence(tmp_path: Path, text: str) -> None:
    folder, _ = short_run(tmp_path / "run")
    (folder.path / "rounds.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedFileError, match=r"rounds\.jsonl: line \d"):
        folder.read_rounds()
