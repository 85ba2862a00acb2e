"""The rounds in the server's audit log: what each ended with, by digest, and whether the run folder still agrees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.audit import AuditError, AuditLog, Entry, head_of, verify
from common.errors import DamagedFileError
from common.formatting import counted
from server.progress.events import Event, EventSink, RoundDone, RoundStarted
from server.run_store.damage import check_files
from server.run_store.folder import AUDIT_FILE, STATE_FILE, RunFolder, RunState

_DONE = "round_done"
_ABOUT_SITE = ("status", "reason", "examples", "epsilon", "sha256", "ledger_head", "audit_head")
_ABOUT_ROUND = ("round", "phase", "bytes_up", "bytes_down")
_BOTH = "restore the whole run folder from one backup, or start a new run in another folder"


def audited(emit: EventSink, audit: AuditLog, folder: RunFolder) -> EventSink:
    """Return a sink that writes each round's start and results to the audit log before it passes them on.

    The entry of a finished round names its line, its state and its checkpoint by their SHA-256.
    """

    def emit_audited(event: Event) -> None:
        match event:
            case RoundStarted(number, phase):
                audit.append("round_started", round=number, phase=phase)
            case RoundDone(line):
                audit.append(_DONE, **_entry_of(line, folder.round_digests))
            case _:
                pass
        emit(event)

    return emit_audited


def check_run(folder: RunFolder, say: Callable[[str], None]) -> RunState | None:
    """Check the run folder's files, and that its audit log ends with the same round; return the state.

    A crash may come between a round's state and its entry; the missing entry is then written.

    Parameters
    ----------
    folder
        The run folder, in which nobody else writes.
    say
        Called with a sentence for each file that was put aside.

    Raises
    ------
    DamagedFileError
        A file is damaged, missing, or older than the others.
    """
    state = folder.load_state()
    path = folder.path / AUDIT_FILE
    done = _finished_rounds(path)
    lines = 0 if state is None else state.lines
    last = done[-1].details["round"] if done else 0
    if last > lines:
        problem = f"has {counted(lines, 'finished round')}, but {AUDIT_FILE} has {last}: it is an older copy"
        raise DamagedFileError(folder.path / STATE_FILE, problem, _BOTH)
    if last < lines - 1:
        raise DamagedFileError(path, f"has no entry of round {lines}, which is finished: it is an older copy", _BOTH)
    if state is None:
        return None
    for text in check_files(folder, state):
        say(text)
    if lines:
        digests = folder.digests_of_last_round(state)
        if last < lines:
            AuditLog(path).append(_DONE, **_entry_of(folder.read_rounds()[lines - 1], digests))
        elif {key: done[-1].details.get(key) for key in digests} != digests:
            problem = f"does not hold what {AUDIT_FILE} says of round {last}: one of them is of another run"
            raise DamagedFileError(folder.path / STATE_FILE, problem, _BOTH)
    return state


def _finished_rounds(path: Path) -> list[Entry]:
    done: list[Entry] = []

    def see(entry: Entry) -> None:
        if entry.event == _DONE:
            done.append(entry)

    if path.exists() or head_of(path).exists():
        try:
            verify(path, see)
        except AuditError as error:
            raise DamagedFileError(path, f"is not as it was written ({error})", _BOTH) from None
    return done


def _entry_of(line: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    sites = {name: {key: site.get(key) for key in _ABOUT_SITE} for name, site in line["sites"].items()}
    return {key: line[key] for key in _ABOUT_ROUND} | {"sites": sites} | dict(digests)
