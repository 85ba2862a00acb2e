"""Patients identified by the content of their scans, even if files are renamed, moved or copied.

A patient is the set of SHA-256 digests of the image files of all their cases: one case, unless the folder's table of
patients (``common.imaging.datasets.patients_csv``) joins several. Label maps do not count. Files that end in ``.gz``
are hashed unpacked, so compressing one again does not make a new patient. Any change to a voxel or a header does.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from common.errors import DataError, FedvoxError
from common.formatting import counted
from common.imaging.cache.entry_file import FileDigests
from common.imaging.datasets.case import Case
from common.imaging.datasets.patients_csv import PATIENTS_FILE
from common.imaging.threads import CountProgress, map_in_threads
from common.protocol.messages import ErrorCode

Patient = tuple[str, ...]
"""SHA-256 of each image file, sorted."""

DIGESTS_FILE = "patients.fedvox-json"
MOST_WORKERS = 4


class PatientsError(FedvoxError):
    """The patients of a folder cannot be told apart; the server learns only the code."""

    code = ErrorCode.NO_DATA


class PatientIndex:
    """Identifies patients, and caches the digests of unchanged files.

    Parameters
    ----------
    folder
        Folder of the cached digests, normally the site's state folder; None caches nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._digests = FileDigests(folder, DIGESTS_FILE, sha256_of_content)

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
            Cases of two patients share an image: one patient would contribute as two.
        """
        workers = min(MOST_WORKERS, os.cpu_count() or 1)
        try:
            scans = map_in_threads(self._identify, cases, workers, progress)
        finally:
            self._digests.save()
        first_with: dict[str, Case] = {}
        images: dict[str, set[str]] = {}
        for case, scan in zip(cases, scans, strict=True):
            for digest in scan:
                other = first_with.setdefault(digest, case)
                if other.owner != case.owner:
                    raise PatientsError(
                        f"{case.images[0]}: {case.name} holds the same image as {other.name}; remove one of them, or "
                        f"say in {PATIENTS_FILE} that both are of one patient: a patient who counts twice is "
                        "protected half as well"
                    )
            images.setdefault(case.owner, set()).update(scan)
        return {case.name: tuple(sorted(images[case.owner])) for case in cases}

    def _identify(self, case: Case) -> tuple[str, ...]:
        return tuple(sorted(self._digests.digest(path) for path in case.images))


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


def split_by_patient(patients: Mapping[str, Patient], fraction: float) -> tuple[list[str], list[str]]:
    """Assign each patient to training or validation by their own digest alone.

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
    distinct = set(patients.values())
    if len(distinct) < 2:
        raise PatientsError(
            f"{counted(len(distinct), 'patient')} with label maps: at least two are needed, one to train on and "
            "one to score models on"
        )
    places = {patient: _place(patient) for patient in distinct}
    ordered = sorted(distinct, key=lambda patient: (places[patient], patient))
    count = sum(place < fraction for place in places.values())
    scored = set(ordered[: min(max(1, count), len(ordered) - 1)])
    return (
        sorted(name for name, patient in patients.items() if patient not in scored),
        sorted(name for name, patient in patients.items() if patient in scored),
    )


def _place(patient: Collection[str]) -> float:
    """Return a number in [0, 1) that depends on the patient alone."""
    digest = hashlib.sha256(f"validation {' '.join(patient)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
