"""From complete studies to results in the outboxes."""

from __future__ import annotations

import errno
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from client.node.folders import (
    ATTEMPTS_FILE,
    INSTANCES,
    RESULTS,
    STUDY_FILE,
    NodeFolders,
    move,
    read_note,
    results_in,
    studies_in,
    write_note,
)
from client.node.outbox import forget
from client.node.traces import damage_of, remember_made
from common.errors import OutputError
from common.formatting import counted
from common.system.files import cannot_write, flush_folder, new_folder

log = logging.getLogger("fedvox.node")

MOST_ATTEMPTS = 5
"""Times that segmenting a study may end the process before the study is set aside."""


_FAULTS_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@dataclass(frozen=True)
class SeriesOutcome:
    """What became of a series.

    Attributes
    ----------
    title
        Number and description, for people at the hospital.
    state
        Segmented; left out, as the rules say; or refused, although it was chosen.
    reason
        Why it was not segmented, or what its results lack.
    """

    title: str
    state: Literal["segmented", "left out", "refused"]
    reason: str = ""


Segment = Callable[[Path, Path], list[SeriesOutcome]]
"""Segments the study with the instances in the first folder, and writes results into the second, named by their UIDs.

Raises OutputError if these cannot be written, which is no fault of the study.
"""


class StudyQueue:
    """Segments waiting studies, one after another, and hands their results to the outboxes.

    Parameters
    ----------
    folders
        The state folder.
    segment
        See ``Segment``.
    destinations
        Names of outboxes; none in shadow mode.
    """

    def __init__(self, folders: NodeFolders, segment: Segment, destinations: Sequence[str]) -> None:
        self._folders = folders
        self._segment = segment
        self._destinations = destinations
        self._failures: Counter[str] = Counter()

    def work(self) -> bool:
        """Take one study to its end; return whether there was one.

        Raises
        ------
        OutputError
            The disk is full, or fails. The study goes on waiting.
        """
        waiting = [self._folders.waiting / study for study in studies_in(self._folders.waiting)]
        if not waiting:
            return False
        study = min(waiting, key=self._turn)
        try:
            outcomes = read_outcomes(study / RESULTS)
            if outcomes is None:
                outcomes = self._find(study)
            self._hand_on(study, outcomes)
        except OSError as error:
            self._failures[study.name] += 1
            raise cannot_write(study, error) from None
        except OutputError:
            self._failures[study.name] += 1
            raise
        self._failures.pop(study.name, None)
        return True

    def _turn(self, study: Path) -> tuple[int, int, float]:
        """Sort those last that ended the process or failed, and others in the order in which they came."""
        return _attempts(study), self._failures[study.name], study.stat().st_mtime

    def _find(self, study: Path) -> list[SeriesOutcome]:
        """Segment a study; results and a note of them appear in it together."""
        attempts = _attempts(study)
        for path in list(study.glob(".*")):  # what a killed process left
            self._folders.discard(path)
        if (study / RESULTS).exists():  # with a note of another version, or none
            self._folders.discard(study / RESULTS)
        with new_folder(study / RESULTS) as results:
            if attempts >= MOST_ATTEMPTS:
                outcomes = [SeriesOutcome("study", "refused", f"ended the process {attempts} times")]
            else:
                write_note(study / ATTEMPTS_FILE, {"attempts": attempts + 1})
                outcomes = self._outcomes(study / INSTANCES, results)
            remember_made(self._folders, results)
            write_note(results / STUDY_FILE, {"series": [asdict(one) for one in outcomes]})
            flush_folder(results)
        flush_folder(study)
        return outcomes

    def _outcomes(self, instances: Path, results: Path) -> list[SeriesOutcome]:
        try:
            return self._segment(instances, results)
        except Exception as error:  # one study must not stop the others
            if isinstance(error, OutputError) or getattr(error, "errno", None) in _FAULTS_OF_DISKS:
                write_note(instances.parent / ATTEMPTS_FILE, {"attempts": _attempts(instances.parent) - 1})
                raise
            log.exception("study %s", instances.parent.name)
            return [SeriesOutcome("study", "refused", f"internal error ({type(error).__name__}), see the log")]

    def _hand_on(self, study: Path, outcomes: Sequence[SeriesOutcome]) -> None:
        """Put results into the outboxes, unless they are there or have left already, and move the study on."""
        results = results_in(study / RESULTS)
        for destination in self._destinations:
            outbox = self._folders.outbox / destination
            outbox.mkdir(exist_ok=True)
            for name in results:
                if not self._is_on_its_way(destination, name):
                    os.link(study / RESULTS / name, outbox / name)
            flush_folder(outbox)
        refused = any(one.state == "refused" for one in outcomes)
        target = self._folders.set_aside if refused else self._folders.done
        if (target / study.name).exists():
            self._folders.discard(target / study.name)
        move(study, target / study.name)
        log.log(
            logging.WARNING if refused else logging.INFO,
            "study %s is %s, with %s",
            *(study.name, "set aside" if refused else "done", counted(len(results), "result")),
        )

    def _is_on_its_way(self, destination: str, name: str) -> bool:
        """Return whether a result was handed on before. A copy that the disk damaged is removed, for a new one."""
        folders, waits = self._folders, False
        # In the order in which a sender moves it meanwhile.
        for path in (folders.outbox / destination / name, folders.unsent / destination / name):
            if path.exists() and damage_of(folders, path):
                forget(path)
            else:
                waits = waits or path.exists()
        return waits or any((home / destination / name).exists() for home in (folders.sent, folders.arrived))


def read_outcomes(results: Path) -> list[SeriesOutcome] | None:
    """Read what became of the series of a study; None if there is no note, or one that is not understood."""
    series = read_note(results / STUDY_FILE).get("series")
    try:
        return [SeriesOutcome(**one) for one in series] if series is not None else None
    except TypeError:
        return None


def _attempts(study: Path) -> int:
    attempts = read_note(study / ATTEMPTS_FILE).get("attempts", 0)
    return attempts if isinstance(attempts, int) else 0
