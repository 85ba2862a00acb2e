"""Masks of one structure each become one label map."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from common.errors import DataError
from common.imaging.datasets.bids.rules import BidsRules
from common.imaging.datasets.case import load_case
from common.imaging.datasets.comparison import SiteTerms, Wanted, compare
from common.imaging.datasets.dataset import find_dataset, scan_dataset
from tests.bids import AFFINE, SHAPE, validate, write_dataset, write_derivative, write_scan, write_text


def write_mask(
    folder: Path, name: str, where: tuple[slice, ...], value: int = 1, shape: tuple[int, ...] = SHAPE
) -> Path:
    voxels = np.zeros(shape, dtype=np.uint8)
    voxels[where] = value
    subject = name.split("_")[0]
    path = folder / subject / "anat" / f"{name}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), path)
    write_text(path.with_name(f"{name}.json"), {})
    return path


LIVER, SPLEEN = np.s_[1:4, 2:9, 1:7], np.s_[5:8, 2:6, 1:4]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    found = write_dataset(tmp_path / "study")
    labels = write_derivative(found, table="")
    for subject in ("01", "02"):
        write_scan(found, f"sub-{subject}_T1w")
        write_mask(labels, f"sub-{subject}_label-spleen_mask", SPLEEN)
        write_mask(labels, f"sub-{subject}_label-liver_mask", LIVER)
    return found


def masks_of(root: Path) -> Path:
    return root / "derivatives" / "manual"


def test_masks_of_one_scan_are_one_label_map(root: Path) -> None:
    assert validate(root) == []
    dataset, problems = scan_dataset(root)
    assert (dataset.labels, problems) == ({1: "liver", 2: "spleen"}, [])
    expected = np.zeros(SHAPE, dtype=np.uint8)
    expected[LIVER], expected[SPLEEN] = 1, 2
    for case in dataset.cases:
        assert [path.name for path in case.label_files] == [
            f"{case.name}_label-liver_mask.nii.gz",
            f"{case.name}_label-spleen_mask.nii.gz",
        ]
        np.testing.assert_array_equal(load_case(case, {1, 2})[1], expected)
    assert find_dataset(root, bids=BidsRules(labels="*_label-spleen_mask")).labels == {1: "spleen"}


def test_masks_are_labels_by_their_names(root: Path) -> None:
    stored = load_case(find_dataset(root).cases[0], {1, 2})[1]
    assert stored is not None
    for names, given, values in (
        ({1: "Spleen", 2: "liver"}, {}, [0, 2, 1]),
        ({1: "spleen", 2: "organ"}, {"liver": "organ"}, [0, 2, 1]),
        ({3: "spleen"}, {"liver": "background"}, [0, 0, 3]),
    ):
        found, problems = compare(find_dataset(root), Wanted(names), SiteTerms(labels_map=given))
        assert problems == []
        np.testing.assert_array_equal(load_case(found.cases[0], {*names})[1], np.array(values, np.uint8)[stored])
    _, (problem,) = compare(find_dataset(root), Wanted({1: "spleen"}))
    assert problem.severity == "error"
    assert problem.text == "masks of 'liver' are no label of the federation: map them by labels_map in site.yaml"


def test_a_mask_that_some_scans_lack_is_told(root: Path) -> None:
    (masks_of(root) / "sub-02" / "anat" / "sub-02_label-liver_mask.nii.gz").unlink()
    dataset, (problem,) = scan_dataset(root)
    assert (problem.severity, problem.text) == (
        "warning",
        "1 scan of 2 without a mask of liver, such as sub-02: it is background there",
    )
    label = load_case(dataset.cases[1], {1, 2})[1]
    assert label is not None and np.unique(label).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("where", "value", "shape", "text"),
    [
        (np.s_[3:6, 2:4, 1:2], 1, SHAPE, "has 2 voxels in common with sub-02_label-liver_mask.nii.gz: correct them"),
        (SPLEEN, 2, SHAPE, "holds the value 2, and a mask holds 0 and 1"),
        (SPLEEN, 1, (10, 12, 9), r"its shape \(10, 12, 9\) differs from \(10, 12, 8\) of sub-02_label-liver_mask"),
    ],
)
def test_masks_that_do_not_fit_together_are_refused(
    root: Path, where: tuple[slice, ...], value: int, shape: tuple[int, ...], text: str
) -> None:
    write_mask(masks_of(root), "sub-02_label-spleen_mask", where, value, shape)
    first, second = find_dataset(root).cases
    load_case(first, {1, 2})
    with pytest.raises(DataError, match=rf"sub-02_label-spleen_mask\.nii\.gz: {text}"):
        load_case(second, {1, 2})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sub-02_desc-expert_label-liver_mask", "is a label map of sub-02, and so is"),
        ("sub-02_hemi-L_label-kidney_mask", "is of another kind than sub-01_label-liver_mask.nii.gz by its name"),
        ("sub-02_desc-expert_label-kidney_mask", "is of another kind than sub-01_label-liver_mask.nii.gz by its name"),
    ],
)
def test_masks_of_which_nobody_knows_what_they_are_together_are_errors(root: Path, name: str, text: str) -> None:
    write_mask(masks_of(root), name, np.s_[:1])
    assert any(one.severity == "error" and text in one.text for one in scan_dataset(root)[1])
