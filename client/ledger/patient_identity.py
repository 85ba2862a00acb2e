"""Patients as the ledger knows them: by an identifier where the site has one, and by their scans.

A patient is a set of marks, and patients who share one are the same:

* ``id:``, a hash (``client.ledger.identifiers``) of the identifier that ``patients.csv`` or the site file's rule gives
  or, for DICOM without these, of the PatientID;
* the SHA-256 of each image file of all their cases, unpacked if its name ends in ``.gz``, so that it stays the same if
  files are renamed, moved, copied or compressed again; for a DICOM series, that of the sorted SHA-256 of its files.
  Label maps do not count;
* ``near:``, coarse prints of each image (``common.imaging.coarse_print``), which it keeps if a voxel or the header is
  changed, or if it is converted to other numbers.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from common.errors import DataError, FedvoxError
from common.formatting import counted
from common.imaging.cache.entry_file import FileDigests
from common.imaging.coarse_print import coarse_prints
from common.imaging.datasets.case import Case, errors_of, read_image
from common.imaging.datasets.patients_csv import PATIENTS_FILE
from common.imaging.io.nifti import read_volume
from common.imaging.threads import CountProgress, map_in_threads
from common.protocol.messages import ErrorCode

Patient = tuple[str, ...]
"""A patient's marks, sorted."""
MARK = r"^(id:[0-9a-f]{8}:[0-9a-f]{64}|[0-9a-f]{64}|near:[0-9a-f]{16})$"
"""Pattern of a mark."""

DIGESTS_FILE = "patients.fedvox-json"
PRINTS_FILE = "prints.fedvox-json"
MOST_WORKERS = 4
Owner = TypeVar("Owner", bound=Hashable)


class PatientsError(FedvoxError):
    """The patients of a folder cannot be told apart; the server learns only the code."""

    code = ErrorCode.NO_DATA


class PatientIndex:
    """Identifies patients, and caches the digests of unchanged files.

    Parameters
    ----------
    folder
        Folder of the cached digests, normally the site's state folder; None caches nothing.
    mark
        Returns the mark of a patient's identifier (``client.ledger.identifiers``), None if there is none. By default
        patients are known by their scans alone.
    """

    def __init__(self, folder: Path | None, mark: Callable[[str], str | None] | None = None) -> None:
        self._digests = FileDigests(folder, DIGESTS_FILE, sha256_of_content)
        self._prints = FileDigests(folder, PRINTS_FILE, _prints_of)
        self._mark = mark

    def identify(self, cases: Sequence[Case], progress: CountProgress | None = None) -> dict[str, Patient]:
        """Return the patient of every case, by case name.

        Parameters
        ----------
        cases
            All cases used, of one dataset.
        progress
            Called with cases done and cases in all.

        Raises
        ------
        DataError
            A file cannot be read.
        PatientsError
            Cases of two patients share an image or an identifier: one patient would contribute as two. Or a DICOM
            series has no PatientID, and nothing else names its patient.
        LedgerError
            There are identifiers, but the ledger's secret cannot be used.
        """
        _require_identifiers(cases)
        workers = min(MOST_WORKERS, os.cpu_count() or 1)
        try:
            scans = map_in_threads(self._identify, cases, workers, progress)
        finally:
            self._digests.save()
            self._prints.save()
        first_with: dict[str, Case] = {}
        marks: dict[str, set[str]] = {}
        for case, scan in zip(cases, scans, strict=True):
            for digest in filter(is_scan, scan):
                other = first_with.setdefault(digest, case)
                if other.owner != case.owner:
                    raise PatientsError(
                        f"{case.images[0]}: {case.name} holds the same image as {other.name}; remove one of them, or "
                        f"say in {PATIENTS_FILE} that both are of one patient: a patient who counts twice is "
                        "protected half as well"
                    )
            marks.setdefault(case.owner, set()).update(scan)
        self._add_identifiers(cases, marks)
        return {case.name: tuple(sorted(marks[case.owner])) for case in cases}

    def _add_identifiers(self, cases: Sequence[Case], marks: Mapping[str, set[str]]) -> None:
        """Add the mark of each owner's identifier to theirs."""
        if self._mark is None:
            return
        first: dict[str, Case] = {}
        for case in {(case.owner, case.patient_id): case for case in reversed(cases)}.values():
            identifier = case.patient_id or case.patient
            if identifier is None or (mark := self._mark(identifier)) is None:
                continue
            if (other := first.setdefault(mark, case)).owner != case.owner:
                raise PatientsError(
                    f"{case.images[0]}: {case.name} and {other.name} have the same identifier, and count as two "
                    f"patients; give them one in {PATIENTS_FILE}, spelt in one way"
                )
            marks[case.owner].add(mark)

    def _identify(self, case: Case) -> list[str]:
        if case.series is not None:
            return self._identify_series(case)
        found = [self._digests.digest(path) for path in case.images]
        return found + [f"{_NEAR}{one}" for path in case.images for one in self._prints.digest(path).split()]

    def _identify_series(self, case: Case) -> list[str]:
        """Identify a series as one scan, whatever the number of its files."""
        digests = "".join(sorted(self._digests.digest(path) for path in case.image_files))
        try:
            with errors_of(case.images[0]):
                prints = coarse_prints(read_image(case).array)
        except DataError:
            prints = ()  # whoever prepares the scans reports it
        whole = hashlib.sha256(digests.encode()).hexdigest()
        return [whole, *(f"{_NEAR}{one}" for one in prints)]


def _require_identifiers(cases: Sequence[Case]) -> None:
    """Check that the patient of each DICOM series is known: an archive holds many series of each."""
    unknown = [case for case in cases if case.series is not None and case.patient is None]
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise PatientsError(
            f"{unknown[0].images[0]}: {unknown[0].name}{more} has no PatientID, so that nobody knows which series are "
            f"of one patient; name the patients of all cases in {PATIENTS_FILE}, or by patient_from_name in site.yaml"
        )


_IDENTIFIER, _NEAR = "id:", "near:"


def identifier_mark(secret: str, digest: str) -> str:
    """Return the mark of an identifier: the name of the secret (8 digits) and the hash under it (64)."""
    return f"{_IDENTIFIER}{secret}:{digest}"


def identifier_of(patient: Patient) -> str | None:
    """Return the mark of a patient's identifier; None if only their scans are known."""
    return next((mark for mark in patient if mark.startswith(_IDENTIFIER)), None)


def secret_of(patient: Patient) -> str | None:
    """Return the name of the secret that hashed a patient's identifier; None without an identifier."""
    mark = identifier_of(patient)
    return None if mark is None else mark.split(":")[1]


def is_scan(mark: str) -> bool:
    """Return whether a mark is the digest of a scan."""
    return ":" not in mark


def _prints_of(path: Path) -> str:
    try:
        with errors_of(path):
            return " ".join(coarse_prints(read_volume(path).array))
    except DataError:
        return ""  # whoever prepares the scans reports it


def sha256_of_content(path: Path) -> str:
    """Return the SHA-256 of a file's content, unpacked if its name ends in ``.gz``; 64 hexadecimal digits.

    Raises
    ------
    OSError
        The file cannot be read.
    DataError
        The name ends in ``.gz``, but the file is not a complete gzip file.
    """
    digest = hashlib.sha256()
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError(path, "is damaged: it cannot be unpacked") from None
    return digest.hexdigest()


def dataset_of(patients: Iterable[Patient]) -> str:
    """Return the SHA-256 that names a set of patients, whatever their order; 64 hexadecimal digits."""
    return hashlib.sha256("\n".join(sorted(" ".join(patient) for patient in patients)).encode()).hexdigest()


def patients_to_split(owners: Mapping[str, Owner]) -> set[Owner]:
    """Return all patients, from case name -> patient.

    Raises
    ------
    PatientsError
        There are fewer than two patients.
    """
    patients = set(owners.values())
    if len(patients) < 2:
        raise PatientsError(
            f"{counted(len(patients), 'patient')} with label maps: at least two are needed, one to train on and "
            "one to score models on"
        )
    return patients


def sides(owners: Mapping[str, Owner], scored: Collection[Owner]) -> tuple[list[str], list[str]]:
    """Return the names of the cases to train on, and of those of the ``scored`` patients, each sorted."""
    validation = {name for name, patient in owners.items() if patient in scored}
    return sorted(owners.keys() - validation), sorted(validation)


def split_by_patient(patients: Mapping[str, Patient], fraction: float) -> tuple[list[str], list[str]]:
    """Assign each patient to training or validation by their own identifier or, without one, their own scans.

    Adding or removing a patient therefore moves no other to the other side, in any run of any federation with the same
    ``fraction``. One exception: if a side would be empty, the patient nearest to it moves there.

    Parameters
    ----------
    patients
        Case name -> patient.
    fraction
        Share of patients to validate on, on average.

    Returns
    -------
    tuple[list[str], list[str]]
        Names to train on and names to validate on, each sorted.

    Raises
    ------
    PatientsError
        There are fewer than two patients.
    """
    distinct = patients_to_split(patients)
    places = {patient: _place(patient) for patient in distinct}
    ordered = sorted(distinct, key=lambda patient: (places[patient], patient))
    count = sum(place < fraction for place in places.values())
    return sides(patients, set(ordered[: min(max(1, count), len(ordered) - 1)]))


def _place(patient: Patient) -> float:
    """Return a number in [0, 1) that depends on the patient alone."""
    known = identifier_of(patient) or " ".join(filter(is_scan, patient))
    digest = hashlib.sha256(f"validation {known}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
