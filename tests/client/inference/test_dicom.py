"""Predictions for DICOM series: those of the same scan as NIfTI, on the grid of the series, as NIfTI and as DICOM."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from client.cli.entry import main
from client.inference.predict import Predictor, predict_path
from client.inference.results import ResultForms, SegmentationKind, counts_of
from common.errors import OutputError
from common.imaging.io.dicom.volume import read_series
from common.imaging.io.nifti import read_label, read_volume
from tests.client.inference.dicom.by_hand import on_grid
from tests.client.inference.test_predict import make_bundle
from tests.dicom_series import CT, make_series, only_series_in, save


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    return Predictor.open(make_bundle(tmp_path / "model"))


def write_series(folder: Path, seed: int = 0, **values: object) -> Path:
    voxels = np.random.default_rng(seed).integers(1, 500, (11, 18, 21), dtype=np.uint16)
    return save(folder, make_series(voxels, axes=np.array(((1.2, 0.1, 0), (-0.1, 1.2, 0), (0, 0, 1.5))), **values))


def test_a_series_is_labelled_as_the_same_scan_in_nifti(predictor: Predictor, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series")
    grid = read_series(only_series_in(folder)).source.grid
    voxels = np.random.default_rng(0).integers(1, 500, (11, 18, 21), dtype=np.uint16).transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), grid.affine), tmp_path / "scan.nii.gz")
    for scan, out in ((folder, "of_series.nii.gz"), (tmp_path / "scan.nii.gz", "of_nifti.nii.gz")):
        assert predict_path(predictor, scan, tmp_path / out).written == (tmp_path / out,)
    ours, theirs = (nibabel.load(tmp_path / name) for name in ("of_series.nii.gz", "of_nifti.nii.gz"))
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    assert len(np.unique(np.asarray(ours.dataobj))) > 1


@pytest.mark.parametrize("kind", ["binary", "labelmap", "fractional"])
def test_a_dicom_seg_has_the_voxels_of_the_nifti_prediction(
    predictor: Predictor, tmp_path: Path, kind: SegmentationKind
) -> None:
    write_series(tmp_path / "series")
    forms = ResultForms("both", kind, report=True, probabilities=True)
    report = predict_path(predictor, tmp_path / "series", tmp_path / "out", forms=forms)
    names = ["series.nii.gz", "series_seg.dcm", "series_sr.dcm"]
    assert report.written == tuple(tmp_path / "out" / name for name in names)
    kinds = "1 label map, 1 file with probabilities, 1 DICOM-SEG, 1 structured report"
    assert counts_of(report.done) == kinds
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "series.nii.gz",
        "series_probabilities.nii.gz",
        "series_seg.dcm",
        "series_sr.dcm",
    ]
    label, grid = read_label(tmp_path / "out" / "series.nii.gz")
    found = on_grid(pydicom.dcmread(tmp_path / "out" / "series_seg.dcm"), grid)
    if kind == "fractional":
        probabilities = read_volume(tmp_path / "out" / "series_probabilities.nii.gz").array[1:]
        assert np.abs(found / np.float32(255) - probabilities).max() <= 0.5 / 255 + 1e-6
    else:
        np.testing.assert_array_equal(found, [label == 1, label == 2])
        assert found.any()


def test_what_results_lack_is_told_and_nobodys_results_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a", StudyTime="99")
    write_series(tmp_path / "in" / "b", PatientID="x" * 65)
    report = predict_path(predictor, tmp_path / "in", tmp_path / "out")
    assert [path.name for path in report.written] == ["a_seg.dcm"]
    assert ["results are without StudyTime" in warning for warning in report.warnings] == [True]
    assert ["has a PatientID that no DICOM object may have" in str(error) for error in report.failures] == [True]
    assert report.exit_status == 1
    forms = ResultForms("nifti")
    report = predict_path(predictor, tmp_path / "in", tmp_path / "nifti", forms=forms)
    assert len(report.written) == 2 and not report.failures and not report.warnings


def test_the_command_lists_its_results_and_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_series(tmp_path / "in" / "a")
    write_series(tmp_path / "in" / "b", StudyInstanceUID="none")
    out = tmp_path / "out"
    options = [
        "--model",
        make_bundle(tmp_path / "model"),
        "--input",
        tmp_path / "in",
        "--output",
        out,
        "--report",
        "sr",
    ]
    assert main(["predict", *map(str, options), "--seg", "labelmap"]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(out / "a_seg.dcm"), str(out / "a_sr.dcm")]
    assert "predict: wrote 1 DICOM-SEG, 1 structured report\n" in said.err
    assert (
        "has a StudyInstanceUID that is none, so that no DICOM object can refer to it; write NIfTI instead" in said.err
    )
    assert "1 of 2 scans done" in said.err
    assert pydicom.dcmread(out / "a_seg.dcm").SegmentationType == "LABELMAP"


def test_an_output_may_be_one_dicom_file(predictor: Predictor, tmp_path: Path) -> None:
    write_series(tmp_path / "series")
    forms = ResultForms(report=True)
    report = predict_path(predictor, tmp_path / "series", tmp_path / "out" / "x.dcm", forms=forms)
    assert report.written == (tmp_path / "out" / "x.dcm", tmp_path / "out" / "x_sr.dcm")


def test_no_result_replaces_a_file_of_a_series(predictor: Predictor, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series")
    (folder / "000.dcm").rename(folder / "series_seg.dcm")
    content = (folder / "series_seg.dcm").read_bytes()
    with pytest.raises(OutputError, match=r"series_seg\.dcm: is one of the scans"):
        predict_path(predictor, folder, folder, overwrite=True)
    assert (folder / "series_seg.dcm").read_bytes() == content


def test_every_volume_of_a_folder_gets_a_result_and_every_refused_series_is_named(
    predictor: Predictor, tmp_path: Path
) -> None:
    for seed, name in enumerate(("one", "two")):
        write_series(tmp_path / "archive" / name, seed)
    (tmp_path / "archive" / "two" / "003.dcm").unlink()
    write_series(tmp_path / "archive" / "scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    report = predict_path(predictor, tmp_path / "archive", tmp_path / "out")
    assert report.written == (tmp_path / "out" / "one_seg.dcm",)
    assert [str(failure) for failure in report.failures] == [
        f"{tmp_path}/archive/two: series 7 'made up', 10 instances: lacks 1 slice: some are 1.5 mm apart, others 3 mm"
    ]
    assert report.exit_status == 1
    assert report.warnings == (f"{tmp_path}/archive/scout: series 7 'made up', 11 instances: is a localizer",)


def test_no_text_of_a_file_becomes_a_path(predictor: Predictor, tmp_path: Path) -> None:
    hostile = "../../escaped"
    for number in range(2):
        slices = make_series(axes=np.diag((1.2, 1.2, 1.5)), SeriesDescription=hostile, PatientID=hostile)
        for one in slices:
            one.StudyInstanceUID = one.SeriesInstanceUID = f"../../1.2.{number}"
            one.SOPInstanceUID = f"../{one.SOPInstanceUID}"
        save(tmp_path / "in" / "mixed", slices, names=[f"{number}-{index}" for index in range(8)])
    report = predict_path(predictor, tmp_path / "in", tmp_path / "out")
    assert not report.written
    assert all("has a StudyInstanceUID that is none" in str(failure) for failure in report.failures)
    report = predict_path(predictor, tmp_path / "in", tmp_path / "out", forms=ResultForms("nifti"))
    names = [path.name for path in report.written]
    assert len(names) == 2 and all(re.fullmatch(r"mixed\+series7-[0-9a-f]{12}\.nii\.gz", name) for name in names)
    assert not list(tmp_path.rglob("*escaped*"))
    assert [path.name for path in read_folders(tmp_path)] == ["in", "model", "out"]
    assert read_label(report.written[0])[0].shape == (16, 16, 8)


def read_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def test_several_volumes_need_a_folder_for_their_results(predictor: Predictor, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_series(tmp_path / "archive" / name)
    with pytest.raises(OutputError, match="give a folder for the results"):
        predict_path(predictor, tmp_path / "archive", tmp_path / "out.nii.gz")


def test_a_folder_without_any_volume_is_a_failure(predictor: Predictor, tmp_path: Path) -> None:
    write_series(tmp_path / "archive", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    report = predict_path(predictor, tmp_path / "archive", tmp_path / "out")
    assert (report.written, report.exit_status) == ((), 1)
    assert str(report.failures[0]) == f"{tmp_path}/archive: holds 1 series of DICOM, and none of them is a volume"
    assert "is a localizer" in report.warnings[0]


def test_a_series_of_another_modality_than_the_models_is_refused_and_the_others_go_on(
    predictor: Predictor, tmp_path: Path
) -> None:
    write_series(tmp_path / "in" / "a", kind=CT)
    write_series(tmp_path / "in" / "b")
    report = predict_path(predictor, tmp_path / "in", tmp_path / "out")
    assert report.written == (tmp_path / "out" / "b_seg.dcm",)
    assert [failure.problem.split("; ")[0] for failure in report.failures] == [
        "series 7 'made up', 11 instances: its Modality is CT, and MR is wanted"
    ]
