"""A whole import: which studies are wanted, one after the other, and a report."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from client.deidentify.choices import Choices, log_choice
from client.pacs.archives.archive import Archive, Study, find_series, find_studies
from client.pacs.cohort import Cohort, why_not_askable
from client.pacs.peer import PeerError
from client.pacs.study_import import Importer, Outcome, Result
from common.audit import AuditLog
from common.errors import FedvoxError, OutputError
from common.formatting import counted, csv_text
from common.system.files import PRIVATE, write_atomically

AUDIT_FILE = "audit.jsonl"


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


@contextmanager
def reporting(beside: Path, results: Sequence[Result]) -> Iterator[tuple[Path, Path]]:
    """Write what became of each study after a block, however it ends: as CSV and JSON, for the owner alone.

    Parameters
    ----------
    beside
        Where to.
    results
        Filled by the block.

    Returns
    -------
    Iterator[tuple[Path, Path]]
        The files.

    Raises
    ------
    OutputError
        A file cannot be written.
    """
    paths = beside / "report.csv", beside / "report.json"
    try:
        yield paths
    except BaseException as error:
        with suppress(OutputError):
            _write(paths, results, str(error) if isinstance(error, FedvoxError) else type(error).__name__)
        raise
    _write(paths, results)


def _write(paths: tuple[Path, Path], results: Sequence[Result], ended_early: str = "") -> None:
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(Result.__dataclass_fields__)
    writer.writerows([csv_text(str(value)) for value in asdict(one).values()] for one in results)
    for path, text in zip(paths, (table.getvalue(), report_json(results, ended_early) + "\n"), strict=True):
        write_atomically(path, text, mode=PRIVATE)


def report_json(results: Sequence[Result], ended_early: str = "") -> str:
    """Return what became of each study as JSON, and why the import came no further; empty if it came to its end."""
    studies = [asdict(one) for one in results]
    return json.dumps({"counts": count_outcomes(results), "ended_early": ended_early, "studies": studies}, indent=1)


def count_outcomes(results: Sequence[Result]) -> Counter[str]:
    """Count results by outcome."""
    return Counter(str(one.outcome) for one in results)
