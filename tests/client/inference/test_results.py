"""Which files become of which forms: the usual ones, and what contradicts itself or the input."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.inference.results import CaseFiles, ResultForms, counts_of, targets_of
from common.errors import ConfigError, OutputError
from common.imaging.datasets.case import Case
from tests.dicom_series import make_series, only_series_in, save


@pytest.fixture
def series(tmp_path: Path) -> Case:
    folder = save(tmp_path / "knee", make_series())
    return Case("knee", (folder,), None, series=only_series_in(folder))


@pytest.fixture
def scan(tmp_path: Path) -> Case:
    return Case("knee", (tmp_path / "knee.nii.gz",), None)


def files_of(case: Case, output: Path, *forms: object) -> CaseFiles:
    (found,) = targets_of((case,), case.images[0], output, ResultForms(*forms))
    return found


def test_results_are_in_the_format_of_the_scan_unless_asked_otherwise(series: Case, scan: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    label, segmentation = out / "knee.nii.gz", out / "knee_seg.dcm"
    assert files_of(series, out) == CaseFiles(segmentation=segmentation)
    assert files_of(scan, out) == CaseFiles(label)
    assert files_of(series, out, "nifti") == CaseFiles(label)
    assert files_of(series, out, "both") == CaseFiles(label, segmentation=segmentation)
    assert files_of(series, tmp_path / "a.nii") == CaseFiles(tmp_path / "a.nii")
    assert files_of(series, tmp_path / "a.dcm") == CaseFiles(segmentation=tmp_path / "a.dcm")
    (tmp_path / "b.nii.gz").mkdir()
    assert files_of(series, tmp_path / "b.nii.gz") == CaseFiles(segmentation=tmp_path / "b.nii.gz" / "knee_seg.dcm")
    assert files_of(series, out, "both", "fractional", True, True).all == (
        label,
        out / "knee_probabilities.nii.gz",
        segmentation,
        out / "knee_sr.dcm",
    )


@pytest.mark.parametrize("forms", [("dicom",), ("both",)])
def test_nifti_files_give_no_dicom(scan: Case, tmp_path: Path, forms: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="refers to a DICOM series, but these scans are NIfTI"):
        files_of(scan, tmp_path / "out", *forms)


@pytest.mark.parametrize("forms", [("nifti", "binary", True), ("nifti", "labelmap"), (None, "fractional")])
def test_options_of_dicom_need_dicom(series: Case, tmp_path: Path, forms: tuple[object, ...]) -> None:
    with pytest.raises(ConfigError, match="are for DICOM results"):
        files_of(series, tmp_path / "a.nii.gz", *forms)


def test_probabilities_need_nifti(series: Case, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--format both, or use --seg fractional"):
        files_of(series, tmp_path / "out", None, "binary", False, True)


@pytest.mark.parametrize(
    ("name", "forms", "problem"),
    [
        ("a.nii.gz", ("both",), "there are several results"),
        ("a.nii.gz", ("dicom",), "ends in .dcm, or give a folder"),
        ("a.dcm", ("nifti",), "ends in .nii.gz, or give a folder"),
    ],
)
def test_one_name_is_for_one_file_of_its_format(
    series: Case, tmp_path: Path, name: str, forms: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(OutputError, match=problem):
        files_of(series, tmp_path / name, *forms)


def test_results_are_counted_by_kind() -> None:
    path = Path("x")
    assert counts_of([CaseFiles(path), CaseFiles(path, segmentation=path)]) == "2 label maps, 1 DICOM-SEG"
    assert counts_of([CaseFiles(segmentation=path, report=path)] * 2) == "2 DICOM-SEG, 2 structured reports"
    assert counts_of([]) == ""
