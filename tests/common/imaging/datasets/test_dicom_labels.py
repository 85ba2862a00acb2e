"""Datasets whose labels are DICOM segmentations: one archive, or images and labels in two folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import DataError
from common.imaging.cache.case_cache import CaseCache
from common.imaging.datasets.case import load_case
from common.imaging.datasets.comparison import SiteTerms, Wanted, compare
from common.imaging.datasets.dataset import Dataset, find_dataset, scan_dataset
from common.imaging.geometry import reorient_from_ras
from common.imaging.io.dicom.rules import DicomRules
from common.plan.plan import PreprocessingPlan
from tests.dicom_labels import LIVER, SPLEEN, TUMOUR, segmentation, write
from tests.dicom_series import CT, MR, PET, make_series, save

CODES = {"Leber": LIVER, "Milz": SPLEEN, "Tumour": TUMOUR}
WANTED = Wanted({1: "spleen", 2: "liver"}, codes={1: SPLEEN[:2], 2: LIVER[:2]})


def masks(*names: str) -> dict[str, NDArray[np.bool_]]:
    """One box for each name, side by side."""
    found = {}
    for index, name in enumerate(names):
        found[name] = np.zeros((8, 16, 16), dtype=bool)
        found[name][2:6, 4:9, 4 * index + 1 : 4 * index + 4] = True
    return found


def write_case(root: Path, name: str, *segments: str, at: str | None = None, **options: Any) -> Path:
    """A series in a folder, and its segmentation beside it or elsewhere."""
    slices = make_series(
        np.random.default_rng(len(name)).integers(0, 900, (8, 16, 16), dtype=np.uint16), PatientID=f"P1{name}"
    )
    save(root / name, slices)
    one = segmentation(slices, masks(*segments), codes=CODES, **options)
    return write(root / (at or f"{name}/seg.dcm"), one)


def label_of(dataset: Dataset, name: str) -> NDArray[np.uint8]:
    """Label map (slices, rows, columns) of a case."""
    case = next(case for case in dataset.cases if case.name == name)
    _, label = load_case(case, dataset.labels)
    assert label is not None and case.series is not None and case.series.grid is not None
    return reorient_from_ras(label, case.series.grid).transpose(2, 1, 0)


def texts(root: Path, severity: str, wanted: Wanted = WANTED) -> list[str]:
    dataset, problems = scan_dataset(root)
    problems += compare(dataset, wanted)[1]
    return [problem.text for problem in problems if problem.severity == severity]


def test_an_archive_with_segmentations_is_a_dataset_for_training(tmp_path: Path) -> None:
    write_case(tmp_path, "a", "Leber", "Milz")
    write_case(tmp_path, "b", "Milz", at="elsewhere/x")
    save(tmp_path / "c", make_series())
    dataset = find_dataset(tmp_path)
    assert dataset.layout == "dicom_labels" and dataset.has_labels
    assert [case.name for case in dataset.cases] == ["a", "b"]
    assert dataset.labels == {1: "Leber", 2: "Milz"}
    np.testing.assert_array_equal(label_of(dataset, "b"), 2 * masks("Milz")["Milz"])
    read, problems = compare(dataset, WANTED)
    boxes = masks("Leber", "Milz")
    np.testing.assert_array_equal(label_of(read, "a"), 2 * boxes["Leber"] + boxes["Milz"])
    assert [problem.text for problem in problems] == ["label 2 (liver): 1 case of 2 without a segment of it, such as b"]
    assert texts(tmp_path, "warning")[0] == "no segmentation refers to 1 series, such as c: left out"


def test_who_predicts_gets_all_series_and_no_labels(tmp_path: Path) -> None:
    write_case(tmp_path, "a", "Leber")
    write_case(tmp_path, "b", "Milz").rename(tmp_path / "seg")
    save(tmp_path / "c", make_series())
    (tmp_path / "a" / "003.dcm").rename(tmp_path / "a" / "x")
    dataset, problems = scan_dataset(tmp_path, labelled=False)
    assert dataset.layout == "dicom" and [case.name for case in dataset.cases] == ["a", "b", "c"]
    assert all(case.label is None and not case.objects for case in dataset.cases)
    assert {problem.severity for problem in problems} == {"warning"}


def test_who_predicts_gets_all_series_of_two_folders_too(tmp_path: Path) -> None:
    write_case(tmp_path / "images", "a", "Milz", at="../labels/x.dcm")
    write_case(tmp_path / "images", "b", "Milz")
    dataset, problems = scan_dataset(tmp_path, labelled=False)
    assert [(case.name, case.label) for case in dataset.cases] == [("a", None), ("b", None)]
    assert not dataset.has_labels and {problem.severity for problem in problems} == {"warning"}


def test_segmentations_in_a_folder_of_labels_beside_label_maps_in_nifti(tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    write_case(images, "a", "Milz", at="../labels/deep/er/x.dcm")
    write_case(images, "b", "Milz", at="../labels/y.dcm")
    save(images / "c", make_series())
    case = next(case for case in scan_dataset(images, labelled=False)[0].cases if case.name == "c")
    assert case.series is not None and case.series.grid is not None
    grid = case.series.grid.to_ras()
    nibabel.save(nibabel.Nifti1Image(np.ones(grid.shape, np.uint8), grid.affine), labels / "c.nii.gz")
    dataset, problems = scan_dataset(tmp_path)
    assert [case.name for case in dataset.cases] == ["a", "b", "c"] and not problems
    read, _ = compare(dataset, WANTED)
    assert [int(label_of(read, name).max()) for name in ("a", "b", "c")] == [1, 1, 1]
    nibabel.save(nibabel.Nifti1Image(np.ones(grid.shape, np.uint8), grid.affine), labels / "a.nii.gz")
    with pytest.raises(DataError, match=r"labels a, and so does x.dcm: keep one of them"):
        find_dataset(tmp_path)


def test_files_with_different_labels_are_merged_and_with_the_same_refused(tmp_path: Path) -> None:
    slices = make_series()
    save(tmp_path / "a", slices)
    for name in ("Leber", "Milz"):
        write(tmp_path / f"{name}.dcm", segmentation(slices, {name: masks("Leber", "Milz")[name]}, codes=CODES))
    read, problems = compare(find_dataset(tmp_path), WANTED)
    assert not problems
    boxes = masks("Leber", "Milz")
    np.testing.assert_array_equal(label_of(read, "a"), 2 * boxes["Leber"] + boxes["Milz"])
    write(tmp_path / "again.dcm", segmentation(slices, masks("Milz"), codes=CODES))
    (error,) = texts(tmp_path, "error")
    assert error == "label 1 (spleen) is in Milz.dcm and in again.dcm: keep one of them"


def test_segments_that_are_no_label_are_told_and_cases_without_any_left_out(tmp_path: Path) -> None:
    write_case(tmp_path, "a", "Leber", "Tumour")
    write_case(tmp_path, "b", "Tumour", algorithm="AUTOMATIC")
    read, _ = compare(find_dataset(tmp_path), WANTED)
    assert [case.name for case in read.cases] == ["a"]
    title = "'Tumour' (SCT 108369006 Neoplasm)"
    assert texts(tmp_path, "warning") == [
        f"is left out: none of its segments is a label that is wanted: {title}",
        "label 1 (spleen): 1 case of 1 without a segment of it, such as a",
        f"segments that are no label and are ignored: {title}",
    ]


def test_segments_that_a_program_made_are_told(tmp_path: Path) -> None:
    write_case(tmp_path, "a", "Leber", "Milz", algorithm="AUTOMATIC")
    assert texts(tmp_path, "warning") == [
        "1 case with segments that a program made (AUTOMATIC), such as a: train on them only if somebody looked at them"
    ]


def test_a_hospital_has_its_own_words(tmp_path: Path) -> None:
    write_case(tmp_path, "a", "Leber", "Tumour")
    terms = SiteTerms(labels_map={"tumour": "spleen", "Leber": "background"})
    read, problems = compare(find_dataset(tmp_path), WANTED, terms)
    np.testing.assert_array_equal(label_of(read, "a"), masks("Leber", "Tumour")["Tumour"])
    assert [problem.text for problem in problems] == ["label 2 (liver): 1 case of 1 without a segment of it, such as a"]
    _, problems = compare(find_dataset(tmp_path), WANTED, SiteTerms(labels_map={"Nieren": "kidney"}))
    assert [problem.text for problem in problems if problem.severity == "error"] == [
        "site.yaml: labels_map names 'Nieren', and the dataset declares Leber, Tumour",
        "site.yaml: labels_map leads to 'kidney', and the federation has spleen, liver, background",
    ]


def test_names_that_differ_in_a_sign_are_different_labels(tmp_path: Path) -> None:
    write_case(tmp_path, "a", "PTV+5", "PTV-5")
    terms = SiteTerms(labels_map={"PTV+5": "spleen", "ptv-5": "background"})
    read, problems = compare(find_dataset(tmp_path), WANTED, terms)
    assert not [problem for problem in problems if problem.severity == "error"]
    np.testing.assert_array_equal(label_of(read, "a"), masks("PTV+5")["PTV+5"])
    terms = SiteTerms(labels_map={"PTV+5": "spleen", "ptv_+5": "liver", "PTV 5": "liver"})
    found = [problem.text for problem in compare(find_dataset(tmp_path), WANTED, terms)[1]]
    assert "site.yaml: labels_map names 'PTV 5', and the dataset declares PTV+5, PTV-5" in found
    terms = SiteTerms(labels_map={"PTV+5": "spleen", "ptv+5": "liver"})
    found = [problem.text for problem in compare(find_dataset(tmp_path), WANTED, terms)[1]]
    assert "site.yaml: labels_map gives 'ptv+5', however it is spelled, two labels" in found


def test_segments_that_are_one_label_together_are_told(tmp_path: Path) -> None:
    write_case(tmp_path, "a", "Milz", "spleen")
    write_case(tmp_path, "b", "Milz", "Leber")
    names = "'Milz' (SCT 78961009 Spleen), 'spleen' (99TEST T2 spleen)"
    wanted = Wanted({1: "spleen", 2: "liver"}, codes={2: LIVER[:2]})
    terms = SiteTerms(labels_map={"Milz": "spleen"})
    _, problems = compare(find_dataset(tmp_path), wanted, terms)
    together = f"label 1 (spleen): 1 case with several segments that are it together, such as a: {names}"
    assert together in [problem.text for problem in problems]
    (tmp_path / "b" / "seg.dcm").unlink()
    write_case(tmp_path, "b2", "SPLEEN", "Leber")
    _, problems = compare(find_dataset(tmp_path), wanted, terms)
    assert (
        "label 1 (spleen): its segments have several names: 'spleen' (99TEST T2 spleen), 'SPLEEN' (99TEST T1 SPLEEN)"
        in [problem.text for problem in problems]
    )


def test_segments_of_the_code_of_3d_slicer_are_found_by_name(tmp_path: Path) -> None:
    tissue = dict.fromkeys(("Leber", "spleen"), ("SCT", "85756007", "Tissue"))
    slices = make_series()
    save(tmp_path / "a", slices)
    write(tmp_path / "x", segmentation(slices, masks("Leber", "spleen"), codes=tissue))
    assert find_dataset(tmp_path).labels == {1: "Leber", 2: "spleen"}
    read, problems = compare(find_dataset(tmp_path), WANTED, SiteTerms(labels_map={"Leber": "liver"}))
    assert not problems
    boxes = masks("Leber", "spleen")
    np.testing.assert_array_equal(label_of(read, "a"), 2 * boxes["Leber"] + boxes["spleen"])


def test_two_labels_of_one_name_are_refused(tmp_path: Path) -> None:
    write_case(tmp_path, "a", "Leber")
    (error,) = texts(tmp_path, "error", Wanted({1: "liver", 2: "Liver"}))
    assert error.startswith("labels 1 and 2 of the federation have one name")


def test_a_refused_segmentation_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write_case(tmp_path, "a", "Leber")
    write_case(tmp_path, "b", "Leber")
    (tmp_path / "b" / "005.dcm").unlink()
    (tmp_path / "b" / "004.dcm").unlink()
    (tmp_path / "b" / "006.dcm").unlink()
    (tmp_path / "b" / "007.dcm").unlink()
    problems = [problem for problem in scan_dataset(tmp_path)[1] if problem.severity == "error"]
    assert [(problem.path, problem.text) for problem in problems] == [
        (
            path.parents[1] / "b" / "seg.dcm",
            "refers to 8 instances, of which 4 are not there (series 7 'made up', 4 instances)",
        )
    ]


def test_what_is_cached_depends_on_the_labels_that_are_wanted_and_on_the_file(tmp_path: Path) -> None:
    path = write_case(tmp_path / "data", "a", "Leber", "Milz")
    cache = CaseCache(tmp_path / "cache", PreprocessingPlan(spacing=None, intensity=({},)), {1, 2})

    def cached(wanted: Wanted) -> list[int]:
        read, _ = compare(find_dataset(tmp_path / "data"), wanted)
        return np.bincount(cache.get(read.cases[0]).label.ravel(), minlength=3)[1:].tolist()

    assert cached(WANTED) == [60, 60]
    assert cached(Wanted({1: "liver", 2: "kidney"}, codes={1: LIVER[:2]})) == [60, 0]
    path.write_bytes(path.read_bytes().replace(b"78961009", b"99999999"))
    assert cached(WANTED) == [0, 60]


def test_patients_of_a_table_own_the_series_of_an_archive(tmp_path: Path) -> None:
    for name in "abc":
        write_case(tmp_path, name, "Leber")
    save(tmp_path / "unlabelled", make_series())
    path = tmp_path / "patients.csv"
    path.write_text("case,patient\na,X\nb,X\nc,Y\nunlabelled,Y\n")
    dataset, problems = scan_dataset(tmp_path)
    assert [(case.owner, case.patient_id) for case in dataset.cases] == [("X", None), ("X", None), ("Y", None)]
    assert [problem.text for problem in problems] == [
        "no segmentation refers to 1 series, such as unlabelled: left out"
    ]
    path.write_text("case,patient\na,X\nb,X\n")
    with pytest.raises(DataError, match=r"patients\.csv: has no row for case c"):
        find_dataset(tmp_path)
    path.write_text("case,patient\na,X\nb,X\nc,Y\nd,Y\n")
    with pytest.raises(DataError, match="line 5: there is no case 'd'"):
        find_dataset(tmp_path)


@pytest.mark.parametrize(
    ("kind", "wanted", "refused"),
    [
        (MR, Wanted(modality="CT"), "its Modality is MR, and CT is wanted"),
        (CT, Wanted(modality="MR"), "its Modality is CT, and MR is wanted"),
        (CT, Wanted(channels=("T1w",)), "its Modality is CT, and MR is wanted"),
        (PET, Wanted(channels=("CT",), modality="CT"), "its Modality is PT, and CT is wanted"),
        (PET, Wanted(channels=("PET",), modality="MR"), ""),
        (CT, Wanted(channels=("scan",), modality="other"), ""),
        (CT, Wanted(channels=("CT",), modality="CT"), ""),
    ],
)
def test_series_of_another_modality_are_refused(tmp_path: Path, kind: str, wanted: Wanted, refused: str) -> None:
    save(tmp_path / "a", make_series(kind=kind))
    dataset = find_dataset(tmp_path)
    errors = [problem for problem in compare(dataset, wanted)[1] if problem.severity == "error"]
    assert [(problem.case, problem.path) for problem in errors] == ([("a", tmp_path / "a")] if refused else [])
    assert all(problem.text.startswith(f"series 7 'made up', 8 instances: {refused}") for problem in errors)


def test_nifti_beside_an_archive_hides_it_and_that_is_told(tmp_path: Path) -> None:
    write_case(tmp_path, "a", "Leber")
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4)), tmp_path / "stray.nii.gz")
    dataset, (problem,) = scan_dataset(tmp_path)
    assert [case.name for case in dataset.cases] == ["stray"] and problem.severity == "warning"
    assert problem.text.startswith("9 DICOM files in it count for nothing, because it holds NIfTI files")


def test_rules_that_choose_nothing_are_told_to_have_chosen_nothing(tmp_path: Path) -> None:
    save(tmp_path / "a", make_series())
    rules = DicomRules.model_validate({"series": {"description": "nothing"}})
    last = scan_dataset(tmp_path, rules)[1][-1]
    assert last.text == "holds 1 series of DICOM, and the rules in site.yaml (dicom.series) choose none of 1 volume"
