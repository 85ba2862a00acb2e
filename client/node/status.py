"""What a node does, has done and could not do, read from its state folder; and another try for the last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from client.node.folders import (
    ATTEMPTS_FILE,
    RESULTS,
    SEGMENTER_FILE,
    STATUS_FILE,
    NodeFolders,
    move,
    names_in,
    read_note,
    results_in,
    studies_in,
)
from client.node.outbox import DESTINATION_FILE, retry_unsent
from client.node.studies import read_outcomes
from common.errors import FedvoxError, OutputError
from common.formatting import counted, visible

_MOST_SHOWN = 20


def node_status(folders: NodeFolders) -> dict[str, Any]:
    """Return the state of a node.

    Returns
    -------
    dict[str, Any]
        ``running``; ``segmenter`` (state of its process); ``problem`` (why that cannot start, or empty); ``incoming``,
        ``waiting`` and ``done`` (numbers of studies); ``set_aside`` (study -> reasons); ``strays`` (paths of what is no
        study); ``destinations`` (name -> ``waiting`` and ``sent``, numbers of results; ``failed`` and ``unsent``,
        result -> reason, of those tried again and of those set aside; and ``problem``, why it cannot be reached, empty
        if it can).

    Raises
    ------
    FedvoxError
        The state folder cannot be read.
    """
    try:
        return _status(folders)
    except PermissionError as error:
        raise FedvoxError(f"{error.filename}: is for the account of the node alone; ask as that") from None


def _status(folders: NodeFolders) -> dict[str, Any]:
    running = folders.is_running()
    return {
        "running": running,
        "segmenter": _segmenter(folders) if running else "stopped",
        "problem": _problem(folders) if running else "",
        "incoming": len(studies_in(folders.incoming)),
        "waiting": len(studies_in(folders.waiting)),
        "done": len(studies_in(folders.done)),
        "set_aside": {study: _reasons(folders, study) for study in studies_in(folders.set_aside)},
        "strays": folders.strays(),
        "destinations": {name: _destination(folders, name) for name in names_in(folders.outbox)},
    }


def _segmenter(folders: NodeFolders) -> str:
    known = read_note(folders.root / STATUS_FILE).get("segmenter", {})
    state = str(known.get("state", "starting"))
    if state == "ready" and read_note(folders.root / SEGMENTER_FILE).get("pid") != known.get("pid"):
        return "loading the model"
    return state


def _problem(folders: NodeFolders) -> str:
    """Say why the process that segments ended by itself, and has not been ready since."""
    known = read_note(folders.root / STATUS_FILE).get("segmenter", {})
    ended, said = known.get("exit_status") or 0, read_note(folders.root / SEGMENTER_FILE)
    if ended <= 0 or said.get("pid", -1) == known.get("pid"):
        return ""
    return str(said.get("problem") or f"ended with status {ended}, see {folders.logs / 'segmenter.log'}")


def _reasons(folders: NodeFolders, study: str) -> list[str]:
    outcomes = read_outcomes(folders.set_aside / study / RESULTS)
    if outcomes is None:
        return ["study.json is missing or of another version"]
    return [f"{one.title}: {one.reason}" for one in outcomes if one.state == "refused"]


def _destination(folders: NodeFolders, name: str) -> dict[str, Any]:
    return {
        "waiting": len(results_in(folders.outbox / name)),
        "sent": len(results_in(folders.sent / name)),
        "failed": {result: reason for result, reason in _problems(folders.outbox / name).items() if reason},
        "unsent": _problems(folders.unsent / name),
        "problem": read_note(folders.outbox / name / DESTINATION_FILE).get("reason", ""),
    }


def _problems(home: Path) -> dict[str, str]:
    """Return the last problem with each result in an outbox; empty if there was none."""
    return {
        one.removesuffix(".dcm"): str(read_note((home / one).with_suffix(".json")).get("reason", ""))
        for one in results_in(home)
    }


def status_lines(status: dict[str, Any]) -> Iterator[str]:
    """Write the state of a node for people."""
    yield f"node: running, segmenter {status['segmenter']}" if status["running"] else "node: not running"
    if status["problem"]:
        yield visible(f"  cannot segment: {status['problem']}")
    numbers = ", ".join(f"{status[key]} {key}" for key in ("incoming", "waiting", "done"))
    yield f"studies: {numbers}, {len(status['set_aside'])} set aside"
    for study, reasons in list(status["set_aside"].items())[:_MOST_SHOWN]:
        yield visible(f"  set aside: study {study}: {'; '.join(reasons)}")
    yield from _rest(len(status["set_aside"]))
    if strays := status["strays"]:
        yield visible(f"  no study, left alone: {strays[0]}") + (f" and {len(strays) - 1} more" if strays[1:] else "")
    for name, one in status["destinations"].items():
        yield f"{name}: {one['waiting']} waiting, {one['sent']} sent, {len(one['unsent'])} set aside"
        if one["problem"]:
            yield visible(f"  cannot be reached: {one['problem']}")
        for key, what in (("failed", "tried again"), ("unsent", "set aside")):
            for result, reason in list(one[key].items())[:_MOST_SHOWN]:
                yield visible(f"  {what}: {result}: {reason}")
            yield from _rest(len(one[key]))


def _rest(count: int) -> Iterator[str]:
    if count > _MOST_SHOWN:
        yield f"  and {count - _MOST_SHOWN} more; --json lists all"


def retry(folders: NodeFolders) -> str:
    """Try everything again that was set aside, and say what that is. The node may be running.

    Raises
    ------
    OutputError
        The state folder cannot be written.
    """
    try:
        studies = studies_in(folders.set_aside)
        for study in studies:
            home = folders.set_aside / study
            (home / ATTEMPTS_FILE).unlink(missing_ok=True)
            if (home / RESULTS).exists():
                folders.discard(home / RESULTS)
            move(home, folders.waiting / study)
        results = retry_unsent(folders)
    except OSError as error:
        raise OutputError(f"{folders.root}: cannot be written: {error.strerror or error}; try again") from None
    return f"{counted(len(studies), 'study', 'studies')} and {counted(results, 'result')} are tried again"
