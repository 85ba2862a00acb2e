"""What a node does, has done and could not do, read from its state folder; and another try for the last."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from client.node.folders import (
    ATTEMPTS_FILE,
    RESULTS,
    SEGMENTER_FILE,
    STATUS_FILE,
    STUDY_FILE,
    NodeFolders,
    move,
    names_in,
    read_note,
)
from client.node.outbox import DESTINATION_FILE, retry_unsent
from common.errors import OutputError
from common.formatting import counted, visible

_MOST_SHOWN = 20


def node_status(folders: NodeFolders) -> dict[str, Any]:
    """Return the state of a node.

    Returns
    -------
    dict[str, Any]
        ``running``; ``segmenter`` (state of its process); ``incoming``, ``waiting`` and ``done`` (numbers of studies);
        ``set_aside`` (study -> reasons); ``destinations`` (name -> ``waiting`` and ``sent``, numbers of results;
        ``failed`` and ``unsent``, result -> reason, of those that are tried again and of those set aside; and
        ``problem``, why it cannot be reached, empty if it can).
    """
    running = folders.is_running()
    return {
        "running": running,
        "segmenter": _segmenter(folders) if running else "stopped",
        "incoming": len(names_in(folders.incoming)),
        "waiting": len(names_in(folders.waiting)),
        "done": len(names_in(folders.done)),
        "set_aside": {study: _reasons(folders, study) for study in names_in(folders.set_aside)},
        "destinations": {name: _destination(folders, name) for name in names_in(folders.outbox)},
    }


def _segmenter(folders: NodeFolders) -> str:
    known = read_note(folders.root / STATUS_FILE).get("segmenter", {})
    state = str(known.get("state", "starting"))
    if state == "ready" and read_note(folders.root / SEGMENTER_FILE).get("pid") != known.get("pid"):
        return "loading the model"
    return state


def _reasons(folders: NodeFolders, study: str) -> list[str]:
    series = read_note(folders.set_aside / study / RESULTS / STUDY_FILE).get("series", [])
    return [f"{one['title']}: {one['reason']}" for one in series if one["state"] == "refused"]


def _destination(folders: NodeFolders, name: str) -> dict[str, Any]:
    return {
        "waiting": len(_results(names_in(folders.outbox / name))),
        "sent": len(_results(names_in(folders.sent / name))),
        "failed": {result: reason for result, reason in _problems(folders.outbox / name).items() if reason},
        "unsent": _problems(folders.unsent / name),
        "problem": read_note(folders.outbox / name / DESTINATION_FILE).get("reason", ""),
    }


def _problems(home: Path) -> dict[str, str]:
    """Return the last problem with each result in an outbox; empty if there was none."""
    return {
        one.removesuffix(".dcm"): str(read_note((home / one).with_suffix(".json")).get("reason", ""))
        for one in _results(names_in(home))
    }


def _results(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".dcm")]


def status_lines(status: dict[str, Any]) -> Iterator[str]:
    """Write the state of a node for people."""
    yield f"node: running, segmenter {status['segmenter']}" if status["running"] else "node: not running"
    numbers = ", ".join(f"{status[key]} {key}" for key in ("incoming", "waiting", "done"))
    yield f"studies: {numbers}, {len(status['set_aside'])} set aside"
    for study, reasons in list(status["set_aside"].items())[:_MOST_SHOWN]:
        yield visible(f"  set aside: study {study}: {'; '.join(reasons)}")
    yield from _rest(len(status["set_aside"]))
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
    studies = names_in(folders.set_aside)
    try:
        for study in studies:
            home = folders.set_aside / study
            (home / ATTEMPTS_FILE).unlink(missing_ok=True)
            shutil.rmtree(home / RESULTS)
            move(home, folders.waiting / study)
        results = retry_unsent(folders)
    except OSError as error:
        raise OutputError(f"{folders.root}: cannot be written: {error.strerror or error}; try again") from None
    return f"{counted(len(studies), 'study', 'studies')} and {counted(results, 'result')} are tried again"
