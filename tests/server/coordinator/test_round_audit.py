"""The audit log and the run folder agree on the rounds that are finished, or the run stops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.audit import AuditLog, head_of, read_entries
from common.errors import DamagedFileError
from common.protocol.codec import WeightLayout
from common.system.state_file import digest_of_file
from server.coordinator.round_audit import audited, check_run
from server.coordinator.server_app import run_federation
from server.coordinator.startup import take_over_run
from server.progress.events import Event, Notice, RoundDone, RoundStarted, SiteDone, SiteStep
from server.run_store.folder import RunFolder, RunState
from tests import tiny

SITE = {"status": "ok", "reason": None, "examples": 10, "epsilon": 1.5, "sha256": "ab" * 32} | {
    "ledger_head": "cd" * 32,
    "audit_head": "ef" * 32,
}
LAYOUT = WeightLayout({"w": (4,)})


def line_of(number: int) -> dict[str, object]:
    counts = {"round": number, "phase": "train", "bytes_up": 5, "bytes_down": 7, "mean_dice": 0.5}
    return counts | {"sites": {"north": SITE | {"mean_dice": 0.5}}}


def begin(path: Path) -> tuple[RunFolder, RunState]:
    folder = RunFolder.create(path)
    config = tiny.federation(rounds=9)
    folder.write_text("federation.yaml", config.resolved())
    folder.write_text("plan.json", tiny.plan().model_dump_json())
    folder.save_checkpoint(0, np.zeros(4, np.float32), LAYOUT)
    folder.begin(config.digest(), "network", ("plan.json",))
    state = folder.load_state()
    assert state is not None
    return folder, state


def commit_round(folder: RunFolder, state: RunState) -> RoundDone:
    """As the round loop does it; what it tells then."""
    state.round += 1
    folder.save_checkpoint(state.round, np.full(4, state.round, np.float32), LAYOUT)
    line = line_of(state.round)
    folder.append_round(line)
    folder.commit(state)
    folder.keep_checkpoints({state.round})
    return RoundDone(line)


def audit_of(folder: RunFolder) -> Path:
    return folder.path / "audit.jsonl"


def run_of(path: Path, rounds: int) -> tuple[RunFolder, RunState]:
    folder, state = begin(path)
    emit = audited(lambda event: None, AuditLog(audit_of(folder)), folder)
    for _ in range(rounds):
        emit(commit_round(folder, state))
    return folder, state


def test_rounds_go_into_the_audit_log_with_their_digests_and_every_event_is_passed_on(tmp_path: Path) -> None:
    seen: list[Event] = []
    folder, state = begin(tmp_path / "run")
    emit = audited(seen.append, AuditLog(audit_of(folder)), folder)
    events = [
        Notice("waiting for sites"),
        RoundStarted(1, "train"),
        SiteStep(1, "north", 1, 2),
        SiteDone(1, "north", SITE | {"mean_dice": 0.5}),
        commit_round(folder, state),
    ]
    for event in events:
        emit(event)
    assert seen == events
    started, done = read_entries(audit_of(folder))
    assert (started.event, started.details) == ("round_started", {"round": 1, "phase": "train"})
    counts = {"round": 1, "phase": "train", "bytes_up": 5, "bytes_down": 7}
    digests = {
        "line": digest_of_file(folder.path / "rounds.jsonl"),
        "state": json.loads((folder.path / "state.json").read_text())["sha256"],
        "checkpoint": digest_of_file(folder.checkpoint_path(1)),
    }
    assert (done.event, done.details) == ("round_done", counts | digests | {"sites": {"north": SITE}})


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_a_run_that_was_only_interrupted_agrees(tmp_path: Path, rounds: int) -> None:
    folder, state = run_of(tmp_path / "run", rounds)
    assert check_run(folder, pytest.fail) == state


def test_a_state_that_was_committed_again_between_rounds_agrees(tmp_path: Path) -> None:
    """As when a site was released from quarantine."""
    folder, state = run_of(tmp_path / "run", 2)
    for name in ("north", "south"):
        state.norms[name] = 1.0
        folder.commit(state)
        assert check_run(RunFolder(folder.path), pytest.fail) == state


def test_the_entry_that_a_crash_left_out_is_written(tmp_path: Path) -> None:
    folder, state = run_of(tmp_path / "run", 2)
    emit = audited(lambda event: None, AuditLog(audit_of(folder)), folder)
    done = commit_round(folder, state)  # and the crash is here
    for _ in range(2):
        assert check_run(RunFolder(folder.path), pytest.fail) == state
    written = read_entries(audit_of(folder))[-1].details
    emit(done)
    assert read_entries(audit_of(folder))[-1].details == written
    assert [entry.details["round"] for entry in read_entries(audit_of(folder))] == [1, 2, 3, 3]


def old_state(run: Path) -> None:
    folder, _ = run_of(run.with_name("older"), 1)
    (run / "state.json").write_bytes((folder.path / "state.json").read_bytes())


def gone_state(run: Path) -> None:
    (run / "state.json").unlink()


def gone_state_and_rounds(run: Path) -> None:
    for path in (run / "state.json", run / "rounds.jsonl", *(run / "checkpoints").glob("*")):
        path.unlink()


def gone_audit(run: Path) -> None:
    (run / "audit.jsonl").unlink()
    head_of(run / "audit.jsonl").unlink()


def old_audit(run: Path) -> None:
    folder, _ = run_of(run.with_name("older"), 1)
    for name in ("audit.jsonl", "audit.jsonl.head"):
        (run / name).write_bytes((folder.path / name).read_bytes())


def other_run(run: Path) -> None:
    """Everything but the log, as long as it is, and each file whole."""
    folder, _ = run_of(run.with_name("other"), 3)
    for name in ("state.json", "rounds.jsonl", "checkpoints/round_0003.safetensors"):
        (run / name).write_bytes((folder.path / name).read_bytes())


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (old_state, "state.json"),
        (gone_state, "state.json"),
        (gone_state_and_rounds, "state.json"),
        (gone_audit, "audit.jsonl"),
        (old_audit, "audit.jsonl"),
        (other_run, "state.json"),
    ],
)
def test_what_does_not_agree_is_named(tmp_path: Path, damage: object, named: str) -> None:
    folder, _ = run_of(tmp_path / "run", 3)
    damage(folder.path)  # type: ignore[operator]
    with pytest.raises(DamagedFileError, match=named):
        check_run(RunFolder(folder.path), pytest.fail)


def test_an_audit_log_without_its_head_or_without_itself_is_named(tmp_path: Path) -> None:
    folder, _ = run_of(tmp_path / "run", 3)
    kept = head_of(audit_of(folder)).read_bytes()
    head_of(audit_of(folder)).unlink()
    with pytest.raises(DamagedFileError, match="audit"):
        check_run(folder, pytest.fail)
    head_of(audit_of(folder)).write_bytes(kept)
    audit_of(folder).unlink()
    with pytest.raises(DamagedFileError, match="audit"):
        check_run(folder, pytest.fail)


@pytest.mark.parametrize("name", ["plan.json", "federation.yaml", "state.json", "checkpoints/round_0002.safetensors"])
def test_the_server_app_does_not_end_in_a_way_that_has_it_started_again(tmp_path: Path, name: str) -> None:
    folder, _ = run_of(tmp_path / "run", 2)
    (folder.path / name).write_bytes((folder.path / name).read_bytes()[:-3])
    run_federation(None, RunFolder(folder.path))  # type: ignore[arg-type]
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert Path(name).name in summary["reason"]


def test_the_runs_plan_is_mended_from_the_kit_unless_that_is_another(tmp_path: Path) -> None:
    folder, _ = run_of(tmp_path / "run", 1)
    kit, plan = tmp_path / "kit", (folder.path / "plan.json").read_bytes()
    kit.mkdir()
    (kit / "plan.json").write_bytes(plan)
    (folder.path / "plan.json").write_bytes(plan[:-5])
    (folder.path / "federation.yaml").unlink()
    take_over_run(folder.path, kit, tiny.federation(rounds=9))
    assert (folder.path / "plan.json").read_bytes() == plan
    check_run(folder, pytest.fail)
    (kit / "plan.json").write_bytes(plan.replace(b"16", b"32"))
    with pytest.raises(DamagedFileError, match="kit"):
        take_over_run(folder.path, kit, tiny.federation(rounds=9))
