"""What `check` says about a folder of DICOM files: every study, every series, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from client.cli.entry import main
from client.data.dataset_check import check_dataset
from common.imaging.datasets.comparison import Wanted
from tests.common.imaging.datasets.test_dicom_cases import write_pair
from tests.common.imaging.datasets.test_dicom_labels import write_case
from tests.dicom_labels import segmentation, structure_set, write
from tests.dicom_series import make_series, save


def write_archive(root: Path) -> None:
    """Two studies: a volume and a localizer, and a volume that lacks a slice."""
    good, scout, holes = make_series(SeriesNumber=3), make_series(SeriesNumber=1), make_series(SeriesNumber=2)
    for one in scout:
        one.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        one.StudyInstanceUID = good[0].StudyInstanceUID
    save(root / "a", good, names=[f"g{index}" for index in range(8)])
    save(root / "a", scout, names=[f"s{index}" for index in range(8)])
    save(root / "b" / "deep", holes[:4] + holes[5:])


def test_studies_and_series_are_told_with_what_became_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_archive(tmp_path)
    assert main(["check", "--data", str(tmp_path)]) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [" ".join(row) for row in rows[1:3]] == [
        "1 1 made up MR - 8 - left out: is a localizer",
        "1 3 made up MR - 8 a read",
    ]
    assert " ".join(rows[3]).startswith("2 2 made up MR - 7 - refused: lacks 1 slice")


def test_the_same_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_archive(tmp_path)
    assert main(["check", "--data", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    outcomes = [
        [(one["number"], one["files"], one["outcome"]) for one in study["series"]] for study in found["studies"]
    ]
    assert outcomes == [[("1", 8, "left out"), ("3", 8, "read")], [("2", 7, "refused")]]
    assert found["studies"][0]["series"][1]["case"] == found["cases"][0]["name"] == "a"
    assert found["cases"][0]["spacing_mm"] == pytest.approx([0.7, 0.8, 2.5])
    assert [problem["severity"] for problem in found["problems"]].count("error") == 1


def test_the_site_file_says_how_few_slices_are_no_volume(tmp_path: Path) -> None:
    write_archive(tmp_path / "data")
    site = tmp_path / "site.yaml"
    for least, status in ((8, 0), (9, 1)):
        site.write_text(f"dicom: {{min_slices: {least}}}\n")
        assert main(["check", "--data", str(tmp_path / "data" / "a"), "--site", str(site)]) == status


def test_series_are_chosen_as_the_site_file_says_and_keep_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = generate_uid()
    for number, description in ((1, "T1 axial"), (2, "T2 axial"), (3, "T1 axial")):
        slices = make_series(SeriesNumber=number, SeriesDescription=description, StudyInstanceUID=study)
        save(tmp_path / "data" / "p1", slices, names=[f"{number}-{index}" for index in range(8)])
    site = tmp_path / "site.yaml"
    arguments = ["check", "--data", str(tmp_path / "data"), "--site", str(site)]
    site.write_text("dicom: {series: {description: t2*, modality: MR, contrast: no}}")
    assert main(arguments) == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert rows[1:4] == [
        "1 1 T1 axial MR - 8 - left out: is not chosen: its description is 'T1 axial', not t2*",
        "1 2 T2 axial MR - 8 p1+series2 read",
        "1 3 T1 axial MR - 8 - left out: is not chosen: its description is 'T1 axial', not t2*",
    ]
    site.write_text("dicom: {series: {description: T1*, choose: only}}")
    assert main(arguments) == 1
    assert "refused: cannot be chosen: series 3 fits as well, and only one may" in capsys.readouterr().out
    site.write_text("dicom: {series: {description: [T1*, 5], choose: best}}")
    assert main(arguments) == 2
    assert "dicom.series.0.choose: must be 'all'" in capsys.readouterr().err


def test_an_archive_of_volumes_and_localizers_is_usable(tmp_path: Path) -> None:
    write_archive(tmp_path)
    report = check_dataset(tmp_path / "a")
    assert report.usable and report.layout == "dicom"
    assert sorted(problem.severity for problem in report.problems) == ["warning", "warning"]


def test_an_archive_without_volumes_is_told_series_by_series(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "shell", [hollow(one) for one in make_series()])
    save(tmp_path / "scout", make_series(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    assert main(["check", "--data", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "left out: is a localizer" in out
    assert "refused: has no pixel data: an empty shell of an image (in 8 instances, such as 000.dcm)" in out
    assert "NOT USABLE: there is no complete case." in out


def hollow(one: Dataset) -> Dataset:
    del one.PixelData
    return one


def test_series_with_label_maps_are_checked_with_them(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", 1)
    write_pair(tmp_path, "b", 2)
    (tmp_path / "dicom" / "labels" / "b.nii.gz").unlink()
    report = check_dataset(tmp_path / "dicom")
    assert report.usable and report.cases[0].label_ml == {1: pytest.approx(5 * 6 * 4 * 2 * 1.22 / 1000, rel=1e-4)}
    assert [(one.case, one.outcome, one.reason) for one in report.series] == [
        ("a", "read", ""),
        ("", "left out", "has no labels"),
    ]


def test_the_table_says_what_labels_each_series(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_case(tmp_path / "data", "a", "Leber", "Milz")
    write_case(tmp_path / "data", "b", "Tumour")
    federation = tmp_path / "federation.yaml"
    federation.write_text("{name: f, rounds: 1, labels: {1: {name: liver, code: [SCT, 10200004, Liver]}}}")
    assert main(["check", "--data", str(tmp_path / "data"), "--federation", str(federation)]) == 0
    out = capsys.readouterr().out
    assert "read, labelled by seg.dcm (liver: 'Leber' by code)" in out and "labels: a" in out
    assert "segments that are no label and are ignored: 'Milz' (SCT 78961009 Spleen)" in out
    assert "left out: no segment is a label that is wanted" in out
    assert main(["check", "--data", str(tmp_path / "data"), "--json"]) == 0
    studies = json.loads(capsys.readouterr().out)["studies"]
    assert [[(one["outcome"], one["labels"]) for one in study["series"]] for study in studies] == [
        [("read", ["seg.dcm (Leber; Milz)"]), ("labels", [])],
        [("read", ["seg.dcm (Tumour)"]), ("labels", [])],
    ]


def test_segments_that_overlap_are_no_error_without_a_federation(tmp_path: Path) -> None:
    slices = make_series()
    save(tmp_path / "a", slices)
    body, liver = np.ones((8, 16, 16), dtype=bool), np.zeros((8, 16, 16), dtype=bool)
    liver[2:5, 3:7, 4:9] = True
    write(tmp_path / "x", structure_set(slices, {"BODY": body, "liver": liver}))
    report = check_dataset(tmp_path)
    assert report.usable
    (text,) = [problem.text for problem in report.problems if "overlap" in problem.text]
    assert text.startswith("segments overlap: 'BODY' and 'liver'. For a federation with both")
    report = check_dataset(tmp_path, Wanted({1: "liver", 2: "body"}))
    assert not report.usable
    assert check_dataset(tmp_path, Wanted({1: "liver"})).usable


@pytest.mark.parametrize("make", [segmentation, structure_set])
def test_a_label_on_every_second_slice_is_told(tmp_path: Path, make: Callable[..., Dataset]) -> None:
    slices = make_series()
    save(tmp_path / "a", slices)
    mask = np.zeros((8, 16, 16), dtype=bool)
    mask[1:6, 3:7, 4:9] = True
    for gaps in (False, True):
        mask[2::2] &= not gaps
        write(tmp_path / "x", make(slices, {"liver": mask}))
        report = check_dataset(tmp_path, Wanted({1: "liver"}))
        expected = "label 1 (liver) is on 3 of 5 slices from its first to its last: what lies between is background"
        assert [problem.text for problem in report.problems] == ([expected] if gaps else [])


def test_what_a_file_says_reaches_a_terminal_only_escaped_and_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b[2Jgone\nforged: line"
    save(tmp_path, make_series(SeriesDescription=evil + "x" * 5000, Modality="\x1b]0;title\x07"))
    save(tmp_path / "more", make_series(SeriesDescription=evil, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    main(["check", "--data", str(tmp_path)])
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "\nforged" not in out
    assert r"\x1b[2Jgone\nforged" in out
    assert max(len(line) for line in out.splitlines()) < 400


def test_names_in_other_character_sets_are_read(tmp_path: Path) -> None:
    save(tmp_path / "a", make_series(SpecificCharacterSet="ISO_IR 192", SeriesDescription="Schädel 頭部"))
    save(tmp_path / "b", make_series(SpecificCharacterSet="ISO_IR 144", SeriesDescription="Голова"))
    save(tmp_path / "c", make_series(SpecificCharacterSet="ISO_IR 100", SeriesDescription="Schädel"))
    found = [one.description for one in check_dataset(tmp_path).series]
    assert found == ["Schädel 頭部", "Голова", "Schädel"]
    unknown = make_series(SeriesDescription="head")
    for one in unknown:
        one.add_new("SpecificCharacterSet", "CS", "ISO_IR 100")
    save(tmp_path / "d", unknown)
    for path in (tmp_path / "d").iterdir():
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", b"NO_SUCHSET"))
    assert check_dataset(tmp_path / "d").usable


def test_nothing_of_a_patient_is_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_archive(tmp_path)
    for arguments in ([], ["--json"]):
        main(["check", "--data", str(tmp_path), *arguments])
        out = capsys.readouterr()
        assert "P1" not in out.out + out.err and "Nobody" not in out.out + out.err
