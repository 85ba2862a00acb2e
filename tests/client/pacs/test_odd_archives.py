"""Archives that answer what was not asked for, break off, or refuse: nothing of it reaches the dataset."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from tests.client.pacs.odd_archive import OddArchive
from tests.client.pacs.relay import Fault, relay
from tests.client.pacs.site import Site
from tests.client.pacs.studies import study, write
from tests.dicom_series import save
from tests.orthanc import Orthanc, private_network


def import_from(site: Site, archive: OddArchive, *accessions: str, **values: object) -> list[dict[str, object]]:
    with private_network(), archive.running():
        peer = {"ae_title": "ODD", "host": "127.0.0.1", "port": archive.port, "attempts": 2, "idle_seconds": 5}
        site.write_address(**{**peer, **values})
        site.write_cohort(*accessions)
        return site.run()[1]


def prepared(slices: list[Dataset], folder: Path) -> list[Dataset]:
    """Slices with all that a peer needs to send them."""
    save(folder, slices)
    return slices


def test_an_archive_that_ignores_keys_widens_nothing(site: Site, tmp_path: Path) -> None:
    slices = prepared([*study("A1", 1), *study("A2", 2)], tmp_path / "made")
    archive = OddArchive(slices, ignores_keys=True)
    (result,) = import_from(site, archive, "A3")
    assert result["outcome"] == "not found"
    assert site.files == []


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
@pytest.mark.parametrize("text", ["../../etc/passwd", "..", "1." + 70 * "2"])
def test_a_uid_that_is_none_is_refused(site: Site, tmp_path: Path, keyword: str, text: str) -> None:
    def change(answer: Dataset) -> None:
        if keyword in answer and answer.get("QueryRetrieveLevel", "") == "":
            answer[keyword].value = text

    (result,) = import_from(site, OddArchive(prepared(study("A1"), tmp_path / "made"), change=change), "A1")
    assert result["outcome"] == "failed"
    assert "is no UID" in str(result["reason"])
    assert site.files == []


def test_an_account_without_a_name_imports(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "LOGNAME", "USERNAME", "LNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    (result,) = import_from(site, OddArchive(prepared(study("A1"), tmp_path / "made")), "A1")
    assert result["outcome"] == "imported"
    assert '"uid 54321"' in (site.beside / "audit.jsonl").read_text(encoding="utf-8")


def test_instances_of_another_study_are_refused(site: Site, tmp_path: Path) -> None:
    right, wrong = study("A1", 1), study("A2", 2)
    (result,) = import_from(site, OddArchive(prepared(right, tmp_path / "1"), prepared(wrong, tmp_path / "2")), "A1")
    assert result["outcome"] == "refused"
    assert "did not belong" in str(result["reason"])
    assert site.files == []


def test_an_instance_of_another_study_under_the_uid_of_a_right_one_is_refused(site: Site, tmp_path: Path) -> None:
    right, wrong = study("A1", 1), study("A2", 2)
    for one, other in zip(right, wrong, strict=True):
        other.SOPInstanceUID = one.SOPInstanceUID
    (result,) = import_from(site, OddArchive(prepared(right, tmp_path / "1"), prepared(wrong, tmp_path / "2")), "A1")
    assert result["outcome"] == "refused"
    assert site.files == []


def test_a_study_with_another_accession_number_than_its_archive_says_is_refused(site: Site, tmp_path: Path) -> None:
    def change(answer: Dataset) -> None:
        if "AccessionNumber" in answer:
            answer.AccessionNumber = "A1"

    slices = prepared(study("B2", 2), tmp_path / "made")
    (result,) = import_from(site, OddArchive(slices, ignores_keys=True, change=change), "A1")
    assert (result["outcome"], result["received"]) == ("refused", 0)
    assert "6 instances with another accession number" in str(result["reason"])
    assert site.files == []
    for one in slices:
        one.AccessionNumber = ""
    (result,) = import_from(site, OddArchive(slices, ignores_keys=True, change=change), "A1")
    assert result["outcome"] == "imported"


def test_a_study_of_which_less_comes_is_incomplete(site: Site, tmp_path: Path) -> None:
    slices = prepared(study("A1", 1), tmp_path / "1")
    (result,) = import_from(site, OddArchive(slices, slices[:4]), "A1")
    assert (result["outcome"], result["expected"], result["received"]) == ("incomplete", 6, 4)
    assert site.files == []


def test_an_instance_that_comes_twice_is_kept_once(site: Site, tmp_path: Path) -> None:
    slices = prepared(study("A1", 1), tmp_path / "1")
    (result,) = import_from(site, OddArchive(slices, [*slices, slices[0]]), "A1")
    assert result["outcome"] == "imported"
    assert len(site.files) == 6


@pytest.mark.parametrize(("status", "text"), [(0xA700, "0xA700"), (0xA900, "0xA900"), (0xFE00, "0xFE00")])
def test_the_status_of_a_peer_that_cannot_send_is_told(site: Site, tmp_path: Path, status: int, text: str) -> None:
    slices = prepared(study("A1", 1), tmp_path / "1")
    (result,) = import_from(site, OddArchive(slices, get_status=status), "A1")
    assert result["outcome"] == "failed"
    assert text in str(result["reason"])


def test_a_peer_that_aborts_is_told(site: Site, tmp_path: Path) -> None:
    archive = OddArchive(prepared(study("A1", 1), tmp_path / "1"), aborts_get=True)
    (result,) = import_from(site, archive, "A1")
    assert result["outcome"] == "failed"
    assert "ended the association" in str(result["reason"])


def test_accession_numbers_are_asked_for_exactly_or_not_at_all(site: Site, tmp_path: Path) -> None:
    slices = prepared([*study("A1", 1), *study("A 2", 2)], tmp_path / "made")
    archive = OddArchive(slices)
    results = import_from(site, archive, "A*", "?1", "A1\\A 2", " ", "A 2 ", "Ä1", "1" * 17)
    assert [(one["accession"], one["outcome"]) for one in results] == [
        ("A*", "refused"),
        ("?1", "refused"),
        ("A1\\A 2", "refused"),
        ("A 2", "imported"),
        ("Ä1", "refused"),
        ("1" * 17, "refused"),
    ]
    assert {one.AccessionNumber for one in archive.asked if one.QueryRetrieveLevel == "STUDY"} == {"A 2"}


def test_a_study_without_name_and_date_is_imported(site: Site, tmp_path: Path) -> None:
    slices = study("A1", 1)
    for one in slices:
        del one.PatientName, one.StudyDate
    (result,) = import_from(site, OddArchive(prepared(slices, tmp_path / "1")), "A1")
    assert result["outcome"] == "imported"


def test_several_studies_of_an_accession_number_are_all_told(site: Site, tmp_path: Path) -> None:
    slices = prepared([*study("A1", 1), *study("A1", 2)], tmp_path / "made")
    results = import_from(site, OddArchive(slices), "A1")
    assert [(one["accession"], one["outcome"], one["received"]) for one in results] == [("A1", "imported", 6)] * 2
    assert len(site.files) == 12


def test_a_study_for_which_the_disk_has_no_room_is_not_fetched(site: Site, tmp_path: Path) -> None:
    def change(answer: Dataset) -> None:
        if "Rows" in answer:
            answer.Rows = answer.Columns = 65535
            answer.NumberOfFrames = 1_000_000

    archive = OddArchive(prepared(study("A1", 1), tmp_path / "1"), change=change)
    (result,) = import_from(site, archive, "A1")
    assert result["outcome"] == "failed"
    assert "needs 103,076,069,936,870,912 bytes" in str(result["reason"])
    assert {one.QueryRetrieveLevel for one in archive.asked} == {"STUDY", "SERIES", "IMAGE"}


def test_a_series_of_which_no_instance_is_listed_is_not_taken_for_complete(site: Site, tmp_path: Path) -> None:
    slices = prepared(study("A1", 1), tmp_path / "1")
    (result,) = import_from(site, OddArchive(slices, hidden_level="IMAGE"), "A1")
    assert result["outcome"] == "failed"
    assert "lists no instances" in str(result["reason"])


@pytest.mark.parametrize("fault", ["silence", "close", "reset"])
@pytest.mark.parametrize("way", ["dicom", "web"])
def test_a_line_that_breaks_within_an_object_is_tried_again(
    orthanc: Orthanc, site: Site, tmp_path: Path, fault: Fault, way: str
) -> None:
    # In DICOM, each question and each study has a connection of its own.
    orthanc.upload(write(tmp_path / "made", study("A1", 1)))
    to = orthanc.port if way == "dicom" else 8042
    with relay(to, fault, after_bytes=2500, times=1) as port:
        site.write_address(**site.peer(orthanc, way, port), idle_seconds=1.0)
        site.write_cohort("A1")
        status, (result,) = site.run()
    assert (status, result["outcome"]) == (0, "imported")


@pytest.mark.parametrize("way", ["dicom", "web"])
def test_a_peer_that_stalls_in_every_study_holds_nobody_up(
    orthanc: Orthanc, site: Site, tmp_path: Path, way: str
) -> None:
    orthanc.upload(write(tmp_path / "made", study("A1", 1), study("A2", 2)))
    to = orthanc.port if way == "dicom" else 8042
    with relay(to, "silence", after_bytes=2500) as port:
        site.write_address(**site.peer(orthanc, way, port), idle_seconds=0.5, attempts=2)
        site.write_cohort("A1", "A2")
        status, results = site.run()
    assert status == 1
    assert {str(one["outcome"]) for one in results} <= {"failed", "incomplete"}
    assert all("silent" in str(one["reason"]) or "broke off" in str(one["reason"]) for one in results)
    assert site.files == []
