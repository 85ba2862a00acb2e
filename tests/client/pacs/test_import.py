"""``fedvox-client import`` from a real PACS."""

from __future__ import annotations

import csv
import json
import re
import socket
import stat
from pathlib import Path

import pytest
from pydicom import dcmread

from client.cli import main
from tests.client.pacs.site import Site
from tests.client.pacs.studies import BROKEN, study, write
from tests.orthanc import LOCAL_PORT, Orthanc


@pytest.mark.parametrize("way", ["dicom", "move", "web"])
def test_studies_become_a_dataset_and_a_second_call_does_nothing_new(
    orthanc: Orthanc, site: Site, tmp_path: Path, way: str
) -> None:
    orthanc.upload(write(tmp_path / "made", study("A1", 1), study("A 2/%", 2), study("A12/%", 3)))
    site.write_address(**site.peer(orthanc, way))
    site.write_cohort("A1", "A 2/% ", " A1")
    status, results = site.run()
    assert status == 0
    assert [(one["accession"], one["outcome"], one["received"]) for one in results] == [
        ("A1", "imported", 6),
        ("A 2/%", "imported", 6),
    ]
    files = {path: path.stat().st_ino for path in site.files}
    assert len(files) == 12
    assert not any(b"Muster" in path.read_bytes() for path in files)
    assert main(["check", "--data", str(site.out)]) == 0
    status, results = site.run()
    assert (status, {one["outcome"] for one in results}) == (0, {"already there"})
    assert {path: path.stat().st_ino for path in site.files} == files


def test_what_is_broken_is_named_with_the_reason_and_the_others_are_imported(
    orthanc: Orthanc, site: Site, tmp_path: Path
) -> None:
    made = [break_it(study(name, seed)) for seed, (name, (break_it, _)) in enumerate(BROKEN.items())]
    orthanc.upload(write(tmp_path / "made", *made, study("good", 99)))
    site.write_address(**site.peer(orthanc))
    site.write_cohort(*BROKEN, "good")
    status, results = site.run()
    assert status == 1
    found = {one["accession"]: one for one in results}
    assert found["good"]["outcome"] == "imported"
    for name, (_, reason) in BROKEN.items():
        assert found[name]["outcome"] == "refused"
        assert re.search(reason, found[name]["reason"])


@pytest.mark.parametrize("way", ["dicom", "web"])
def test_keys_choose_studies_and_series(orthanc: Orthanc, site: Site, tmp_path: Path, way: str) -> None:
    knee, late, head = study("A1", 1), study("A2", 2, StudyDate="20240302"), study("A3", 3, StudyDescription="Head")
    other = study("A1", 4, StudyInstanceUID=knee[0].StudyInstanceUID, PatientID="P1", SeriesDescription="scout")
    orthanc.upload(write(tmp_path / "made", knee, late, head, other))
    site.write_address(**site.peer(orthanc, way))
    dates = {"first_date": "2024-01-01", "last_date": "2024-02-29"}
    site.write_cohort(**dates, study_description="Kn*", modality="MR", series_description="MADE ?p")
    status, results = site.run()
    assert status == 0
    assert [(one["accession"], one["outcome"], one["expected"]) for one in results] == [("A1", "imported", 6)]
    site.write_cohort("A1", modality=["CT", "MR"], body_part="?")
    assert [one["reason"] for one in site.run()[1]] == ["none of its 2 series is wanted"]
    site.write_cohort("A1", "A3", modality="CT")
    status, results = site.run()
    assert status == 1
    assert [(one["outcome"], one["reason"]) for one in results] == [("not found", "the archive has no such study")] * 2


def test_a_dry_run_counts_and_fetches_nothing(
    orthanc: Orthanc, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orthanc.upload(write(tmp_path / "made", study("A1", 1), study("A2", 2)))
    site.write_address(**site.peer(orthanc))
    site.write_cohort("A1")
    assert site.run()[0] == 0
    before = site.beside.joinpath("report.csv").read_bytes()
    site.write_cohort("A1", "A2", "A3")
    assert main(site.arguments("--dry-run")) == 1
    assert "3 studies: 1 already there, 1 to import, 1 not found; 12 instances" in capsys.readouterr().out
    assert len(site.files) == 6
    assert site.beside.joinpath("report.csv").read_bytes() == before


def test_files_stay_as_they_are_only_by_a_choice_that_is_logged(orthanc: Orthanc, site: Site, tmp_path: Path) -> None:
    made = write(tmp_path / "made", study("A1", 1))
    orthanc.upload(made)
    site.write_address(**site.peer(orthanc))
    site.write_cohort("A1")
    status, (result,) = site.run("--anonymise", "off")
    assert (status, result["outcome"]) == (0, "imported")
    names = {str(dcmread(path).PatientName) for path in site.files}
    assert names == {"Muster^Anna1"}
    entry = json.loads((site.beside / "audit.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert entry["event"] == "deidentification_chosen"
    assert entry["profile"] is None
    assert main(site.arguments("--anonymise", "off", "--dates", "removed")) == 2
    # The same study without identities would be there twice.
    status, (result,) = site.run()
    assert (status, result["outcome"]) == (1, "refused")
    assert "options have changed" in result["reason"]


def test_a_study_that_changed_in_the_archive_is_not_taken_for_the_one_that_is_there(
    orthanc: Orthanc, site: Site, tmp_path: Path
) -> None:
    slices = study("A1", 1)
    orthanc.upload(write(tmp_path / "first", slices[:5]))
    site.write_address(**site.peer(orthanc))
    site.write_cohort("A1")
    assert site.run()[1][0]["outcome"] == "imported"
    orthanc.upload(write(tmp_path / "second", slices[5:]))
    status, (result,) = site.run()
    assert (status, result["outcome"], result["expected"]) == (1, "refused", 6)
    assert len(site.files) == 5


def test_reports_and_what_they_name_are_for_the_owner_alone(orthanc: Orthanc, site: Site, tmp_path: Path) -> None:
    orthanc.upload(write(tmp_path / "made", study("=A1", 1)))
    site.write_address(**site.peer(orthanc))
    site.write_cohort("=A1")
    assert site.run()[0] == 0
    report = site.beside / "report.csv"
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    assert stat.S_IMODE(site.beside.stat().st_mode) == 0o700
    with report.open(newline="", encoding="utf-8") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["outcome"], row["accession"], row["received"]) == ("imported", "'=A1", "6")
    assert "Muster" not in report.read_text(encoding="utf-8")


def test_an_archive_that_is_not_there_is_one_error(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.write_address(ae_title="PACS", host="127.0.0.1", port=1)
    site.write_cohort("A1", "A2")
    assert main(site.arguments()) == 1
    assert "PACS@127.0.0.1:1 cannot be reached" in capsys.readouterr().err


def test_a_store_that_cannot_listen_is_told_and_a_sender_that_was_not_named_is_refused(
    orthanc: Orthanc, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orthanc.upload(write(tmp_path / "made", study("A1", 1)))
    peer = site.peer(orthanc, "move")
    site.write_cohort("A1")
    site.write_address(**peer)
    with socket.create_server(("127.0.0.1", LOCAL_PORT)):
        assert main(site.arguments()) == 2
    assert "store: 127.0.0.1, port 11112: cannot listen there" in capsys.readouterr().err
    for limits in ({"sender_titles": ["OTHER"]}, {"sender_networks": ["10.0.0.0/8"]}):
        site.write_address(**peer | {"store": {**peer["store"], **limits}}, attempts=1)
        status, (result,) = site.run()
        assert (status, result["received"]) == (1, 0)
        assert result["outcome"] in ("failed", "incomplete")


def test_texts_of_any_letters_and_length_are_shown_and_not_obeyed(
    orthanc: Orthanc, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    letters = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Müller^Jürgen", "StudyDescription": "Knie für Ü"}
    good = study("A1", 1, **letters)
    bad = study("A2", 2, **letters, SeriesDescription="\x1b[31mred" + 50 * "x")
    orthanc.upload(write(tmp_path / "made", good, BROKEN["tilted"][0](bad)))
    site.write_address(**site.peer(orthanc))
    site.write_cohort("A1", "A2")
    assert [one["outcome"] for one in site.run()[1]] == ["imported", "refused"]
    printed = capsys.readouterr()
    for text in (printed.out, printed.err, (site.beside / "report.csv").read_text(encoding="utf-8")):
        assert "\x1b" not in text
        assert "ller" not in text
    assert not any("Müller".encode() in path.read_bytes() for path in site.files)


def test_what_may_show_names_is_taken_only_if_it_is_allowed(orthanc: Orthanc, site: Site, tmp_path: Path) -> None:
    orthanc.upload(write(tmp_path / "made", BROKEN["burned in"][0](study("A1", 1))))
    site.write_address(**site.peer(orthanc))
    site.write_cohort("A1")
    assert site.run()[1][0]["outcome"] == "refused"
    assert site.run("--allow", "derived")[1][0]["outcome"] == "refused"
    assert site.run("--allow", "burned-in", "--allow", "derived")[1][0]["outcome"] == "imported"
    assert site.run("--allow", "derived", "--allow", "burned-in")[1][0]["outcome"] == "already there"
