"""Pseudonyms, the secret that they follow from, and the record of whom they stand for."""

import functools
import json
import multiprocessing
import os
import re
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.deidentify.choices import ALLOWABLE, CHOICE_EVENT, Choices, Reason, log_choice
from client.deidentify.identities import Identities
from common.audit import AuditLog, read_entries
from common.errors import DamagedFileError, OutputError
from tests.client.deidentify.made import deidentified, one_image

UID_FORM = re.compile(r"2\.25\.(0|[1-9]\d{0,38})")


def entry(number: int) -> dict[str, object]:
    return {"kind": "patient", "original": f"P{number}", "pseudonym": f"FV{number}"}


def recorded(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "identities.jsonl").read_text().splitlines()][1:]


def pseudonyms(folder: Path) -> list[object]:
    identities = Identities(folder)
    patient = identities.patient("P1", "1.2")
    return [patient, identities.days(patient), identities.uid("1.2.3")]


def record_many(job: tuple[Path, int]) -> list[object]:
    folder, start = job
    identities = Identities(folder)
    for number in range(start, start + 6):
        identities.record([entry(number), entry(0)])
    return pseudonyms(folder)


def test_processes_agree_and_record_each_entry_once(tmp_path: Path) -> None:
    starts = [(tmp_path / "ids", 1), (tmp_path / "ids", 4)]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        first, second = pool.map(record_many, starts)
    assert first == second == pseudonyms(tmp_path / "ids")
    numbers = [one["original"] for one in recorded(tmp_path / "ids")]
    assert sorted(numbers) == sorted({f"P{number}" for number in range(10)})


def test_another_secret_makes_everything_different(tmp_path: Path) -> None:
    one, other = pseudonyms(tmp_path / "a"), pseudonyms(tmp_path / "b")
    assert one[0] != other[0] and one[2] != other[2]
    days = [Identities(tmp_path / "a").days(f"FV{number}") for number in range(40)]
    others = [Identities(tmp_path / "b").days(f"FV{number}") for number in range(40)]
    assert sum(map(int.__eq__, days, others)) < 5
    assert len(set(days)) > 30 and min(days) >= 30 and max(days) <= 3650


@functools.cache
def some_identities() -> Identities:
    return Identities(Path(tempfile.mkdtemp(prefix="identities-")))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), unique=True, max_size=20))
def test_uids_are_valid_and_different(originals: list[str]) -> None:
    identities = some_identities()
    found = [identities.uid(original) for original in originals]
    assert len(set(found)) == len(originals)
    assert all(UID_FORM.fullmatch(uid) and len(uid) <= 64 for uid in found)


def test_patients_are_told_apart_by_number_and_without_a_number_by_study(tmp_path: Path) -> None:
    patient = Identities(tmp_path).patient
    assert patient("1", "1.2") == patient("1", "1.3")
    assert len({patient(number, "1.2") for number in ("", "1", "2", "1x")}) == 4
    assert patient("", "1.2") != patient("", "1.3")
    assert patient("u\N{COMBINING DIAERESIS}", "1.2") == patient("ü", "1.2")
    assert re.fullmatch("FV[A-Z2-7]{16}", patient("1", "1.2"))


@pytest.mark.parametrize("placeholder", ["0", "UNKNOWN", "N/A", "000000", "ANONYMOUS", "99999", "--", "No ID"])
def test_a_placeholder_is_no_number_of_a_patient(tmp_path: Path, placeholder: str) -> None:
    patient = Identities(tmp_path).patient
    assert patient(placeholder, "1.2") == patient("", "1.2") != patient(placeholder, "1.3")
    assert len({patient(number, "1.2") for number in ("", "9", "10", "90", "UNKNOWN1")}) == 5


def test_a_crash_before_the_secret_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "identities.jsonl").touch(mode=0o600)
    first = pseudonyms(tmp_path)
    assert first == pseudonyms(tmp_path)


def test_the_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Identities(tmp_path / "ids").record([entry(1)])
    finally:
        os.umask(before)
    assert (tmp_path / "ids").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "ids").iterdir()} == {0o600}


def test_a_record_that_a_crash_cut_off_is_mended(tmp_path: Path) -> None:
    identities = Identities(tmp_path)
    identities.record([entry(1), entry(2)])
    file = tmp_path / "identities.jsonl"
    whole = file.read_bytes()
    for cut in range(whole.rfind(b"\n", 0, -1) + 2, len(whole)):
        file.write_bytes(whole[:cut])
        Identities(tmp_path).record([entry(2)])
        assert file.read_bytes() == whole
    identities.record([entry(3)])
    assert recorded(tmp_path) == [entry(1), entry(2), entry(3)]


def test_a_crash_before_the_first_entry_does_not_matter(tmp_path: Path) -> None:
    Identities(tmp_path)
    file = tmp_path / "identities.jsonl"
    whole = file.read_bytes()
    for cut in (0, 5, len(whole) - 1):
        file.write_bytes(whole[:cut])
        Identities(tmp_path)
        assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "secret").unlink(), "is missing"),
        (lambda folder: (folder / "identities.jsonl").unlink(), "jsonl: is missing"),
        (lambda folder: (folder / "secret").write_text("abc"), "is damaged"),
        (lambda folder: (folder / "secret").write_bytes(b"\xff\xfe"), "is damaged"),
        (lambda folder: (folder / "secret").write_text("00" * 32), "another secret"),
        (lambda folder: (folder / "secret").chmod(0o640), "others may read it"),
        (lambda folder: (folder / "identities.jsonl").write_text("nonsense\n"), "another secret"),
        (lambda folder: (folder / "identities.jsonl").open("a").write("nonsense\n"), "no entry"),
    ],
)
def test_what_is_damaged_or_foreign_is_refused(tmp_path: Path, damage: object, says: str) -> None:
    Identities(tmp_path).record([entry(1)])
    secret = (tmp_path / "secret").read_text().strip()
    damage(tmp_path)
    with pytest.raises(DamagedFileError, match=says) as caught:
        Identities(tmp_path)
    assert secret not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        Identities(tmp_path / "file" / "ids")


def test_a_secret_behind_a_link_is_not_followed(tmp_path: Path) -> None:
    Identities(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "secret").symlink_to(tmp_path / "a" / "secret")
    with pytest.raises(OutputError):
        Identities(tmp_path / "b")


def test_whom_a_file_is_about_is_recorded_before_it_can_be_written(tmp_path: Path) -> None:
    one = one_image(PatientID="P77", IssuerOfPatientID="Ward", AccessionNumber="A1 2")
    made = deidentified(tmp_path, one)
    patient, study, series = recorded(tmp_path / "identities")
    assert patient["original"] == "P77" and patient["pseudonym"] == made.patient and patient["issuer"] == "Ward"
    assert study["original"] == one.StudyInstanceUID and study["pseudonym"] == made.study
    assert study["accession_number"] == "A1 2" and study["patient"] == made.patient
    assert series["original"] == one.SeriesInstanceUID and series["pseudonym"] == made.series
    deidentified(tmp_path, one)
    assert len(recorded(tmp_path / "identities")) == 3


def test_choices_are_logged_and_have_one_text_in_every_process(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit.jsonl")
    log_choice(audit, Choices(allowed=ALLOWABLE), archive="pacs")
    log_choice(audit, None, archive="pacs")
    allowed, off = read_entries(tmp_path / "audit.jsonl")
    assert {allowed.event, off.event} == {CHOICE_EVENT}
    assert allowed.details["allowed"] == ["burned-in", "derived", "secondary-capture", "ultrasound"]
    assert (allowed.details["profile"], off.details) == ("basic", {"profile": None, "archive": "pacs"})
    assert repr(Choices(allowed=frozenset({Reason.DERIVED, Reason.BURNED_IN}))) == (
        "Choices(shifted, kept, ['burned-in', 'derived'])"
    )
