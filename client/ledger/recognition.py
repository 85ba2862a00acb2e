"""How the patients of a folder are known to the ledger: by identifier, by the same scans, or by nearly equal ones."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from client.ledger.account import Account
from client.ledger.patient_identity import Patient, identifier_of, is_scan
from common.formatting import counted

WITHOUT_IDENTIFIERS = (
    "A patient without an identifier is known by their scans alone, also if voxels, the header or the type of numbers "
    "change. A scan that is resampled, cropped or scaled, and another scan of the same person, begin a new budget. To "
    "give identifiers: patients.csv in the dataset folder, patient_from_name in site.yaml, or the PatientID of DICOM."
)


@dataclass(frozen=True)
class Recognition:
    """Numbers of patients.

    Attributes
    ----------
    identified
        Patients with an identifier.
    by_identifier, by_scan, by_likeness
        Patients whose identifier is in the ledger; of the others, those with the same scan, and those with only a
        nearly equal one.
    renamed
        Patients whose scans, or nearly equal ones, are in the ledger under another identifier. What was spent under
        either counts.
    """

    patients: int
    identified: int
    by_identifier: int
    by_scan: int
    by_likeness: int
    renamed: int

    @property
    def needs_a_look(self) -> bool:
        """Whether identifiers or scans contradict each other, or only likeness joins patients."""
        return bool(self.renamed or self.by_likeness)

    def __str__(self) -> str:
        ways = [
            (self.by_identifier, "by identifier"),
            (self.by_scan, "by the same scan"),
            (self.by_likeness, "by a nearly equal scan"),
        ]
        told = [f"{count} {how}" for count, how in ways if count]
        parts = [f"known to the ledger: {', '.join(told)}"] if told else []
        if self.renamed:
            parts.append(
                f"{counted(self.renamed, 'patient')} with scans that the ledger has under another identifier: what "
                "either spent counts for both; correct the identifiers if they are wrong"
            )
        if missing := self.patients - self.identified:
            parts.append(f"{counted(missing, 'patient')} without an identifier, known by scans alone")
        return "; ".join(parts)


def recognise(account: Account, patients: Collection[Patient]) -> Recognition:
    """Return how these patients, each counted once, are known to the ledger."""
    distinct = set(patients)
    owners: dict[str, set[str]] = {}
    for members in account.datasets.values():
        for known in members:
            name = identifier_of(known)
            for mark in known:
                owners.setdefault(mark, set()).update({name} if name else ())
    by_identifier = by_scan = by_likeness = renamed = identified = 0
    for patient in distinct:
        name = identifier_of(patient)
        identified += name is not None
        if name in owners:
            by_identifier += 1
        elif any(is_scan(mark) and mark in owners for mark in patient):
            by_scan += 1
        elif any(mark in owners for mark in patient):
            by_likeness += 1
        others = set[str]().union(*(owners.get(mark, set()) for mark in patient))
        renamed += bool(name and others - {name})
    return Recognition(len(distinct), identified, by_identifier, by_scan, by_likeness, renamed)
