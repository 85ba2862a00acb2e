"""Patients of a folder of BIDS, as the ledger knows them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from client.ledger.patient_identity import PatientIndex
from common.imaging.datasets.dataset import find_dataset
from tests.bids import write_dataset, write_derivative, write_label, write_scan


def test_sessions_of_a_subject_are_one_patient_even_in_folders_of_their_own(tmp_path: Path) -> None:
    """The second folder has a later session only; its scan is another one, and the subject is the same."""
    marks = []
    for seed, (folder, sessions) in enumerate((("first", ("1", "2")), ("later", ("3",)))):
        root = write_dataset(tmp_path / folder, ["01"])
        for session in sessions:
            write_scan(root, f"sub-01_ses-{session}_T1w", 10 * seed + int(session))
            write_label(write_derivative(root), f"sub-01_ses-{session}_dseg")
        found = PatientIndex(None, lambda name: f"id:00000000:{hashlib.sha256(name.encode()).hexdigest()}")
        patients = found.identify(find_dataset(root).cases)
        assert len(set(patients.values())) == 1 and len(patients) == len(sessions)
        marks.append(set(next(iter(patients.values()))))
    expected = f"id:00000000:{hashlib.sha256(b'sub-01').hexdigest()}"
    assert marks[0] & marks[1] == {expected}
