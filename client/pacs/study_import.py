"""One study's way from an archive to the dataset: fetched, complete, de-identified, readable; or the reason why not."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from client.pacs.archives.archive import Archive, Inbox, Instance, NoRoomError, Study, find_instances
from client.pacs.arrival import Arrivals, StudyRefusedError
from client.pacs.dataset_folder import DatasetFolder
from client.pacs.peer import PeerError
from common.errors import DataError
from common.formatting import counted
from common.imaging.io.dicom.find import find_series
from common.imaging.io.dicom.rules import DicomRules
from common.imaging.io.dicom.volume import read_series
from common.system.files import flush_folder, new_folder

RESERVE_BYTES = 2**29
"""What stays free on the disk."""
_COPIES = 2
"""Of a study at a time: as it came, and as it is kept."""
_LISTED_REASONS = 3
_LONGEST_PAUSE_SECONDS = 600.0


class Outcome(StrEnum):
    """What became of a study."""

    IMPORTED = "imported"
    PRESENT = "already there"
    TO_IMPORT = "to import"
    INCOMPLETE = "incomplete"
    REFUSED = "refused"
    FAILED = "failed"
    MISSING = "not found"

    @property
    def is_right(self) -> bool:
        """Whether the dataset has, or will have, what was asked for."""
        return self in (Outcome.IMPORTED, Outcome.PRESENT, Outcome.TO_IMPORT)


@dataclass(frozen=True)
class Result:
    """A study, and what became of it.

    Attributes
    ----------
    outcome
        In a word.
    accession, study
        Accession number, and UID in the archive; may be empty.
    folder
        Its folder in the dataset; empty if it has none.
    expected, received
        Numbers of instances.
    reason
        Why, if it is not right; else what was left out, if anything.
    """

    outcome: Outcome
    accession: str
    study: str = ""
    folder: str = ""
    expected: int = 0
    received: int = 0
    reason: str = ""


class _NotTakenError(Exception):
    """A study is not taken."""

    def __init__(self, outcome: Outcome, reason: str, received: int = 0) -> None:
        self.outcome = outcome
        self.reason = reason
        self.received = received
        super().__init__(reason)


@dataclass(frozen=True)
class Importer:
    """Brings studies into a dataset.

    Attributes
    ----------
    archive
        Where they are.
    dataset
        Where they go.
    arrivals
        De-identifies, and names folders.
    rules
        The hospital's rules of reading.
    attempts, pause_seconds
        How often a study is tried, and how long to wait before the second time.
    dry_run
        Fetch nothing.
    """

    archive: Archive
    dataset: DatasetFolder
    arrivals: Arrivals
    rules: DicomRules
    attempts: int
    pause_seconds: float
    dry_run: bool = False

    def run(self, study: Study, series: Sequence[str], accession: str = "") -> Result:
        """Import some series of a study.

        Parameters
        ----------
        study
            The study.
        series
            UIDs of its series that are wanted.
        accession
            Accession number that was asked for, which no instance may contradict; empty if none was.

        Raises
        ------
        OutputError
            A folder cannot be written: further studies would fail too.
        """
        expected: dict[str, list[Instance]] = {}
        name = ""
        try:
            expected = self._expected(study, series)
            uids = [one.uid for instances in expected.values() for one in instances]
            name = self.arrivals.folder_of(study.uid, uids)
            if (self.dataset.out / name).is_dir():
                self._require_whole(name)
                return Result(Outcome.PRESENT, study.accession, study.uid, name, len(uids), len(uids))
            self._require_no_other(study)
            self._require_room(_COPIES * sum(one.size for found in expected.values() for one in found))
            if self.dry_run:
                return Result(Outcome.TO_IMPORT, study.accession, study.uid, "", len(uids))
            reason = self._bring(study, expected, name, accession)
        except _NotTakenError as error:
            counts = (sum(map(len, expected.values())), error.received)
            return Result(error.outcome, study.accession, study.uid, "", *counts, error.reason)
        return Result(Outcome.IMPORTED, study.accession, study.uid, name, len(uids), len(uids), reason)

    def _expected(self, study: Study, series: Sequence[str]) -> dict[str, list[Instance]]:
        """Ask which instances each series has."""
        problem = ""
        for attempt in range(self.attempts):
            self._pause(attempt)
            try:
                found = {uid: find_instances(self.archive, study.uid, uid) for uid in series}
            except PeerError as error:
                problem = error.problem
                if not error.is_passing:
                    break
                continue
            if all(found.values()):
                return found
            problem = "lists no instances of a series: nobody could say whether it is complete"
        raise _NotTakenError(Outcome.FAILED, f"the archive {problem}")

    def _require_whole(self, name: str) -> None:
        if problem := self.dataset.why_not_whole(name):
            reason = f"{problem}. Remove that folder to import the study again"
            raise _NotTakenError(Outcome.REFUSED, reason)

    def _require_no_other(self, study: Study) -> None:
        """Refuse a study of which another selection is there: one of its scans would be there twice."""
        found = self.dataset.out.glob(f"{self.arrivals.prefix_of(study.uid)}*")
        others = sorted(path.name for path in found if path.is_dir())
        if others:
            raise _NotTakenError(
                Outcome.REFUSED,
                f"other instances of it are in {others[0]}: the archive, the query or the options have changed. Remove "
                "that folder to import the study again",
            )

    def _require_room(self, size: int, received: int = 0) -> None:
        needed = size + RESERVE_BYTES
        for folder in {_nearest(self.dataset.out), _nearest(self.dataset.work)}:
            if (free := shutil.disk_usage(folder).free) < needed:
                reason = f"needs {needed:,} bytes, and {free:,} are free in {folder}: free space"
                raise _NotTakenError(Outcome.FAILED, reason, received)

    def _bring(self, study: Study, expected: Mapping[str, Sequence[Instance]], name: str, accession: str) -> str:
        """Fetch a study and let it appear in the dataset; return what was left out."""
        with (
            tempfile.TemporaryDirectory(dir=self.dataset.work) as inbox_folder,
            new_folder(self.dataset.out / name) as folder,
        ):
            uids = {uid: [one.uid for one in found] for uid, found in expected.items()}
            inbox = Inbox(Path(inbox_folder), study.uid, uids, accession, RESERVE_BYTES)
            files = self._fetch(inbox, study, expected)
            # What came may be larger than what the archive had said.
            came = [path.stat().st_size for paths in files.values() for path in paths]
            self._require_room(sum(came), len(came))
            try:
                left_out = self.arrivals.take(files, folder)
                self._require_volumes(folder, left_out)
            except StudyRefusedError as error:
                count = sum(map(len, files.values()))
                raise _NotTakenError(Outcome.REFUSED, error.reason, count) from None
            for path in folder.rglob("*"):
                _flush(path)
            flush_folder(folder)
            self.dataset.note_study(name, folder)
        flush_folder(self.dataset.out)
        return "; ".join(left_out)

    def _fetch(
        self, inbox: Inbox, study: Study, expected: Mapping[str, Sequence[Instance]]
    ) -> Mapping[str, Sequence[Path]]:
        """Fetch all instances, or as many as the archive gives within all attempts: the files of each series."""
        problem = ""
        for attempt in range(self.attempts):
            self._pause(attempt)
            waiting = {uid: instances for uid, instances in expected.items() if not inbox.is_whole(instances)}
            if not waiting:
                break
            try:
                self.archive.fetch(study.uid, waiting, inbox)
            except NoRoomError as error:
                raise _NotTakenError(Outcome.FAILED, str(error), len(inbox.received)) from None
            except PeerError as error:
                problem = f"the archive {error.problem}"
                if not error.is_passing:
                    break
            if inbox.strangers:
                break
        received = len(inbox.received)
        if inbox.strangers:
            what = " and ".join(f"{counted(count, 'instance')} {why}" for why, count in inbox.strangers.items())
            raise _NotTakenError(Outcome.REFUSED, f"the archive sent {what}", received)
        if received < inbox.expected:
            outcome = Outcome.INCOMPLETE if received or not problem else Outcome.FAILED
            raise _NotTakenError(outcome, problem or "the archive sent no more", received)
        return inbox.files

    def _pause(self, attempt: int) -> None:
        if attempt:
            time.sleep(min(self.pause_seconds * 2 ** (attempt - 1), _LONGEST_PAUSE_SECONDS))

    def _require_volumes(self, folder: Path, left_out: Sequence[str]) -> None:
        """Refuse a study with a series that cannot be read, or without any volume."""
        found = find_series(folder, self.rules)
        wrong = [f"a file {error.problem}" for error in found.damaged]
        passed_over: list[str] = []
        volumes = 0
        for series in found.series:
            if series.refusal:
                (passed_over if series.left_out else wrong).append(f"{series.title}: {series.refusal}")
                continue
            try:
                read_series(series)
                volumes += 1
            except DataError as error:
                wrong.append(error.problem)
        if wrong or not volumes:
            reasons = wrong or ["holds no volume", *left_out, *passed_over]
            more = [f"and {len(reasons) - _LISTED_REASONS} more"] if len(reasons) > _LISTED_REASONS else []
            raise StudyRefusedError("; ".join([*reasons[:_LISTED_REASONS], *more]))


def _nearest(folder: Path) -> Path:
    """Return a folder, or the one in which it would be made: a dry run makes none."""
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
