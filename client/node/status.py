"""What a node does, has done and could not do, read from its state folder; and another try for the last."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from client.node.folders import (
    ATTEMPTS_FILE,
    RESULTS,
    SEGMENTER_FILE,
    STATUS_FILE,
    NodeFolders,
    destinations_in,
    move,
    read_note,
    results_in,
    studies_in,
)
from client.node.outbox import DESTINATION_FILE, retry_unsent
from client.node.studies import read_outcomes
from client.node.traces import damage_of
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
        "destinations": {name: _destination(folders, name) for name in destinations_in(folders.outbox)},
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


def retry(folders: NodeFolders, destinations: Collection[str]) -> str:
    """Try everything again that was set aside, and say what that is. The node may be running.

    Parameters
    ----------
    folders
        The state folder.
    destinations
        Names of those that are served; results for others stay set aside.

    Raises
    ------
    OutputError
        The state folder cannot be written.
    """
    try:
        studies = [folders.set_aside / study for study in studies_in(folders.set_aside)]
        studies += _with_damaged_results(folders)
        for home in studies:
            (home / ATTEMPTS_FILE).unlink(missing_ok=True)
            if (home / RESULTS).exists():
                folders.discard(home / RESULTS)
            move(home, folders.waiting / home.name)
        results = retry_unsent(folders, destinations)
        left = sum(len(results_in(folders.unsent / name)) for name in destinations_in(folders.unsent))
    except OSError as error:
        raise OutputError(f"{folders.root}: cannot be written: {error.strerror or error}; try again") from None
    tried = f"{counted(len(studies), 'study', 'studies')} and {counted(results, 'result')} are tried again"
    return f"{tried}; still set aside, see status: {counted(left, 'result')}" if left else tried


def _with_damaged_results(folders: NodeFolders) -> list[Path]:
    """Return the studies that are done, and of which a result that was set aside is damaged: it is made again."""
    homes = [folders.unsent / name for name in destinations_in(folders.unsent)]
    damaged = {name for home in homes for name in results_in(home) if damage_of(folders, home / name)}
    studies = [folders.done / study for study in studies_in(folders.done)] if damaged else []
    return [study for study in studies if not damaged.isdisjoint(results_in(study / RESULTS))]
