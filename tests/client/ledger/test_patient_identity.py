"""Patients are known by what their scans hold."""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from client.ledger.patient_identity import (
    DIGESTS_FILE,
    Patient,
    PatientIndex,
    PatientsError,
    dataset_of,
    split_by_patient,
)
from common.errors import DataError
from common.imaging.datasets.case import Case
from common.system.state_file import write_sealed


def case(folder: Path, name: str, *contents: bytes) -> Case:
    folder.mkdir(exist_ok=True)
    files = [folder / f"{name}_{channel:04d}.nii.gz" for channel in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(gzip.compress(content))
    return Case(name, tuple(files), folder / "label.nii.gz")


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_patient_is_the_digests_of_his_images(tmp_path: Path) -> None:
    found = PatientIndex(None).identify([case(tmp_path, "a", b"1", b"2"), case(tmp_path, "b", b"3")])
    assert found == {"a": tuple(sorted([sha(b"1"), sha(b"2")])), "b": (sha(b"3"),)}


def test_names_places_and_compression_do_not_matter(tmp_path: Path) -> None:
    [first] = PatientIndex(None).identify([case(tmp_path / "one", "a", b"voxels")]).values()
    plain = tmp_path / "voxels.nii"
    plain.write_bytes(b"voxels")
    [second] = PatientIndex(None).identify([Case("z", (plain,), None)]).values()
    assert first == second


def test_the_same_image_twice_is_refused(tmp_path: Path) -> None:
    cases = [case(tmp_path, "a", b"1", b"2"), case(tmp_path, "b", b"3", b"2")]
    with pytest.raises(PatientsError, match="b holds the same image as a"):
        PatientIndex(None).identify(cases)
    assert len(PatientIndex(None).identify([case(tmp_path, "c", b"4", b"4")])) == 1, "two channels of one patient may"


@pytest.mark.parametrize("damage", [lambda data: data[:-4], lambda data: b"no gzip", lambda data: data[:12]])
def test_a_file_that_cannot_be_unpacked_is_named(tmp_path: Path, damage: object) -> None:
    broken = case(tmp_path, "a", b"voxels" * 100)
    broken.images[0].write_bytes(damage(broken.images[0].read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match="a_0000"):
        PatientIndex(None).identify([broken])
    broken.images[0].unlink()
    with pytest.raises(DataError, match="cannot be read"):
        PatientIndex(None).identify([broken])


def test_files_are_read_again_only_when_they_changed(tmp_path: Path) -> None:
    """Same size and an old time stamp do not hide a change: the time of the change itself counts too."""
    mine = case(tmp_path, "a", b"voxels")
    long_ago = 1_000_000_000
    os.utime(mine.images[0], (long_ago, long_ago))
    state = tmp_path / "state"
    state.mkdir()
    before = PatientIndex(state).identify([mine])
    packed = gzip.compress(b"VOXELS")
    mine.images[0].write_bytes(packed)
    os.utime(mine.images[0], (long_ago, long_ago))
    after = PatientIndex(state).identify([mine])
    assert after == {"a": (sha(b"VOXELS"),)} != before


def test_a_remembered_file_is_not_read(tmp_path: Path) -> None:
    mine = case(tmp_path, "a", b"voxels")
    status = mine.images[0].stat()
    known = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, "7" * 64]
    write_sealed(tmp_path / DIGESTS_FILE, {str(mine.images[0]): known})
    assert PatientIndex(tmp_path).identify([mine]) == {"a": ("7" * 64,)}


def test_a_dataset_is_a_set_of_patients() -> None:
    one, two, three = (sha(b"1"),), (sha(b"2"),), (sha(b"3"),)
    assert dataset_of([one, two]) == dataset_of([two, one]) != dataset_of([one, two, three])
    assert dataset_of([(*one, *two)]) != dataset_of([one, two])


HERE = {f"here {number}": (sha(f"here {number}".encode()),) for number in range(40)}
comers = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=4), st.binary(max_size=8).map(lambda b: (sha(b),)))


@given(comers, st.floats(0.2, 0.8))
def test_a_patient_who_comes_moves_no_other(new: dict[str, Patient], fraction: float) -> None:
    train, validation = split_by_patient(HERE, fraction)
    assert len(train) > 1 and len(validation) > 1, "so both sides have someone by right"
    more_train, more_validation = split_by_patient(HERE | new, fraction)
    assert sorted([*more_train, *more_validation]) == sorted([*HERE, *new])
    assert set(train) <= set(more_train) and set(validation) <= set(more_validation)
    for name, patient in new.items():
        alone = split_by_patient(HERE | {name: patient}, fraction)[1]
        assert (name in alone) == (name in more_validation)


def owned(mine: Case, patient: str) -> Case:
    return replace(mine, patient=patient)


def test_cases_of_one_patient_are_one_patient(tmp_path: Path) -> None:
    first, second = owned(case(tmp_path, "a", b"1"), "p"), owned(case(tmp_path, "b", b"2", b"1"), "p")
    other = owned(case(tmp_path, "c", b"3"), "q")
    found = PatientIndex(None).identify([first, second, other])
    assert found["a"] == found["b"] == tuple(sorted([sha(b"1"), sha(b"2")])), "his images may be there twice"
    assert found["c"] == (sha(b"3"),)
    with pytest.raises(PatientsError, match=r"say in patients\.csv"):
        PatientIndex(None).identify([first, owned(second, "q")])


@given(st.dictionaries(st.text("abcdefgh", max_size=4), st.sampled_from("pqrstu"), min_size=2), st.floats(0.01, 0.99))
def test_no_patient_is_on_both_sides(owners: dict[str, str], fraction: float) -> None:
    assume(len(set(owners.values())) > 1)
    patients = {name: (sha(owner.encode()),) for name, owner in owners.items()}
    train, validation = split_by_patient(patients, fraction)
    assert train and validation and sorted([*train, *validation]) == sorted(owners)
    assert not {owners[name] for name in train} & {owners[name] for name in validation}


def test_two_scans_of_one_patient_cannot_be_split() -> None:
    with pytest.raises(PatientsError, match="1 patient with label maps"):
        split_by_patient({"a": (sha(b"a"),), "b": (sha(b"a"),)}, 0.5)


def test_the_share_is_what_was_asked_for() -> None:
    """A binomial count: four standard deviations around the mean hold in all but 6 of 100,000 choices of names."""
    many = {str(number): (sha(str(number).encode()),) for number in range(10_000)}
    share = len(split_by_patient(many, 0.2)[1]) / len(many)
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / len(many)) ** 0.5


def test_a_larger_share_keeps_those_that_were_there() -> None:
    many = {str(number): (sha(str(number).encode()),) for number in range(200)}
    assert set(split_by_patient(many, 0.2)[1]) < set(split_by_patient(many, 0.4)[1])


def test_no_side_is_empty() -> None:
    few = {"a": (sha(b"a"),), "b": (sha(b"b"),)}
    for fraction in (1e-9, 1 - 1e-9):
        assert [len(side) for side in split_by_patient(few, fraction)] == [1, 1]
    with pytest.raises(PatientsError, match="1 patient with label maps"):
        split_by_patient({"a": (sha(b"a"),)}, 0.2)
