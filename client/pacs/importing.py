"""A whole import: which studies are wanted, one after the other, and a report."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from client.deidentify.choices import Choices, log_choice
from client.pacs.archives.archive import Archive, Study, find_series, find_studies
from client.pacs.cohort import Cohort, why_not_askable
from client.pacs.peer import PeerError
from client.pacs.study_import import Importer, Outcome, Result
from common.audit import AuditLog
from common.errors import FedvoxError
from common.formatting import counted, csv_text
from common.system.files import PRIVATE, cannot_write, write_atomically
from common.system.locks import lock_for_one

AUDIT_FILE = "audit.jsonl"
_LOCK_FILE = "lock"


class ImportRunningError(FedvoxError):
    """Another process imports into the same folder."""


@contextmanager
def import_folders(out: Path) -> Iterator[tuple[Path, Path]]:
    """Make the folders of an import, remove what an earlier one left unfinished, and keep others away for a block.

    Parameters
    ----------
    out
        The dataset. Beside it there is a folder for what does not belong to it: reports, the audit log, and files that
        have come and are not yet de-identified.

    Returns
    -------
    Iterator[tuple[Path, Path]]
        The folder beside it, and one inside that for files that have just come.

    Raises
    ------
    ImportRunningError
        Another process imports into this folder.
    OutputError
        A folder cannot be made.
    """
    out = out.absolute()
    beside = out.with_name(f"{out.name}.import")
    work = beside / "incoming"
    try:
        out.mkdir(parents=True, exist_ok=True)
        beside.mkdir(mode=0o700, exist_ok=True)
        taken = ImportRunningError(f"{beside / _LOCK_FILE}: another import into {out} is running; wait for its end")
        with lock_for_one(beside / _LOCK_FILE, taken):
            for folder in [work, *out.glob(".study-*.part")]:
                shutil.rmtree(folder, ignore_errors=True)
            for file in beside.glob(".*.part"):
                file.unlink()
            work.mkdir(mode=0o700)
            try:
                yield beside, work
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise cannot_write(Path(error.filename or out), error) from None


def import_studies(importer: Importer, cohort: Cohort, accessions: Sequence[str]) -> Iterator[Result]:
    """Import all studies that are wanted, and go on past those that cannot be.

    Parameters
    ----------
    importer
        Imports one.
    cohort
        What is wanted.
    accessions
        Accession numbers; empty if studies are chosen by the cohort's keys alone.

    Yields
    ------
    Result
        What became of each.

    Raises
    ------
    PeerError
        The archive cannot be reached at the beginning, or cannot be asked for studies.
    OutputError
        The disk is full or cannot be written.
    """
    importer.archive.probe()
    run = _Run(importer, cohort)
    if not accessions:
        yield from run.studies(find_studies(importer.archive, cohort.questions()))
    for accession in accessions:
        yield from run.accession(accession)


class _Run:
    """Looks up and imports, each study once, until the archive is gone."""

    def __init__(self, importer: Importer, cohort: Cohort) -> None:
        self._importer = importer
        self._archive = importer.archive
        self._cohort = cohort
        self._seen: set[str] = set()
        self._gone = ""

    def accession(self, accession: str) -> Iterator[Result]:
        """Import all studies with an accession number."""
        if problem := why_not_askable(accession):
            yield Result(Outcome.REFUSED, accession, reason=f"the accession number {problem}")
            return
        try:
            self._require_archive()
            questions = [{**keys, "AccessionNumber": accession} for keys in self._cohort.questions()]
            answers = find_studies(self._archive, questions)
        except PeerError as error:
            yield self._failed(error, accession)
            return
        # An archive may ignore case or spaces, or the whole key.
        exact = [one for one in answers if one.accession.strip(" ") == accession and self._cohort.wants_study(one)]
        if not exact:
            yield Result(Outcome.MISSING, accession, reason="the archive has no such study")
        yield from self.studies(exact, accession)

    def studies(self, studies: Sequence[Study], accession: str = "") -> Iterator[Result]:
        """Import studies, as far as they are wanted, with the accession number that was asked for, if one was."""
        for study in studies:
            if study.uid in self._seen or not self._cohort.wants_study(study):
                continue
            self._seen.add(study.uid)
            try:
                self._require_archive()
                found = find_series(self._archive, study.uid)
            except PeerError as error:
                yield self._failed(error, study.accession, study.uid)
                continue
            if wanted := [one.uid for one in found if self._cohort.wants_series(one)]:
                result = self._importer.run(study, wanted, accession)
                if result.outcome is Outcome.FAILED:
                    self._look_whether_it_is_gone()
                yield result
            elif self._cohort.accession_numbers:
                reason = f"none of its {counted(len(found), 'series', 'series')} is wanted"
                yield Result(Outcome.MISSING, study.accession, study.uid, reason=reason)

    def _require_archive(self) -> None:
        if self._gone:
            raise PeerError(str(self._archive), self._gone)

    def _failed(self, error: PeerError, accession: str, study: str = "") -> Result:
        result = Result(Outcome.FAILED, accession, study, reason=f"the archive {error.problem}")
        self._look_whether_it_is_gone()
        return result

    def _look_whether_it_is_gone(self) -> None:
        """Keep the remaining studies from waiting, each in turn, for an archive that does not answer any more."""
        if self._gone:
            return
        try:
            self._archive.probe()
        except PeerError as error:
            self._gone = f"was not asked any more: it {error.problem}"


def log_import(beside: Path, choices: Choices | None, archive: Archive, user: str) -> None:
    """Write to the audit log of the dataset how files are de-identified that come from now on.

    Raises
    ------
    AuditError
        The log is broken or cannot be written.
    """
    log_choice(AuditLog(beside / AUDIT_FILE), choices, archive=str(archive), user=user)


def write_reports(beside: Path, results: Sequence[Result]) -> tuple[Path, Path]:
    """Write what became of each study, as CSV and JSON, for the owner alone.

    Raises
    ------
    OutputError
        A file cannot be written.
    """
    rows = [{**asdict(one), "outcome": str(one.outcome)} for one in results]
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(Result.__dataclass_fields__)
    writer.writerows([csv_text(str(value)) for value in row.values()] for row in rows)
    content = json.dumps({"counts": dict(count_outcomes(results)), "studies": rows}, indent=1)
    paths = beside / "report.csv", beside / "report.json"
    for path, text in zip(paths, (table.getvalue(), content + "\n"), strict=True):
        write_atomically(path, text, mode=PRIVATE)
    return paths


def count_outcomes(results: Sequence[Result]) -> Counter[str]:
    """Count results by outcome."""
    return Counter(str(one.outcome) for one in results)
