"""Series of DICOM with label maps beside them: the same dataset as the same cases in NIfTI."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from common.imaging.cache.case_cache import CaseCache
from common.imaging.datasets.case import load_case
from common.imaging.datasets.dataset import find_dataset, scan_dataset
from common.imaging.io.dicom.volume import read_series
from common.plan.plan import PreprocessingPlan
from common.planning.fingerprint import fingerprint_dataset
from tests.dicom_series import make_series, only_series_in, save

SHAPE = (9, 14, 16)  # slices, rows, columns


def write_pair(root: Path, name: str, seed: int) -> None:
    """One case as DICOM with its label map in ``dicom``, and all of it as NIfTI in ``nifti``."""
    random = np.random.default_rng(seed)
    voxels = random.integers(0, 900, SHAPE, dtype=np.uint16)
    axes = np.array(((1.1, 0.1, 0), (-0.1, 1.1, 0), (0, 0, 2.0)))
    series = only_series_in(save(root / "dicom" / "images" / name, make_series(voxels, axes=axes)))
    volume = read_series(series)
    label = np.zeros(volume.grid.shape, dtype=np.uint8)
    label[4:9, 3:9, 2:6] = 1
    for kind, array, folder in (
        *(("images", volume.array[0], "nifti"), ("labels", label, "nifti"), ("labels", label, "dicom")),
    ):
        (root / folder / kind).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, volume.grid.affine), root / folder / kind / f"{name}.nii.gz")


@pytest.fixture
def both(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a", "b", "c")):
        write_pair(tmp_path, name, seed)
    return tmp_path


def test_cases_fingerprint_and_training_arrays_equal_those_of_nifti(both: Path, tmp_path: Path) -> None:
    dicom, nifti = find_dataset(both / "dicom"), find_dataset(both / "nifti")
    assert dicom.layout == "dicom_nifti" and dicom.has_labels
    assert [case.name for case in dicom.cases] == [case.name for case in nifti.cases]
    for ours, theirs in zip(dicom.cases, nifti.cases, strict=True):
        (volume, label), (expected, expected_label) = load_case(ours, {1}), load_case(theirs, {1})
        np.testing.assert_array_equal(volume.array, expected.array)
        np.testing.assert_array_equal(label, expected_label)
    found = [fingerprint_dataset(dataset.cases, {1}, folder=tmp_path / "cache") for dataset in (dicom, nifti)]
    np.testing.assert_allclose(found[0].spacings, found[1].spacings, atol=1e-5)
    assert found[0].shapes == found[1].shapes and found[0].intensities == found[1].intensities
    cache = CaseCache(tmp_path / "cache", PreprocessingPlan(spacing=(1.5, 1.5, 2.0), intensity=({},)), {1})
    for ours, theirs in zip(dicom.cases, nifti.cases, strict=True):
        np.testing.assert_allclose(cache.get(ours).image, cache.get(theirs).image, atol=1e-4)


def test_a_changed_slice_changes_what_is_cached(both: Path, tmp_path: Path) -> None:
    cache = CaseCache(tmp_path / "cache", PreprocessingPlan(spacing=None, intensity=({},)), {1})
    before = np.array(cache.get(find_dataset(both / "dicom").cases[0]).image)
    path = both / "dicom" / "images" / "a" / "004.dcm"
    path.write_bytes(path.read_bytes()[:-2] + b"\xff\x7f")
    assert not np.array_equal(before, cache.get(find_dataset(both / "dicom").cases[0]).image)


def test_series_without_label_maps_are_left_out_and_label_maps_without_series_refused(both: Path) -> None:
    dicom = both / "dicom"
    (dicom / "labels" / "b.nii.gz").rename(dicom / "labels" / "x.nii.gz")
    dataset, problems = scan_dataset(dicom)
    assert [case.name for case in dataset.cases] == ["a", "c"]
    assert [(problem.case, problem.severity, problem.text) for problem in problems] == [
        ("b", "warning", "has no label map b.nii.gz and is left out"),
        ("x", "error", "has no series of its name; the names of series are: a, b, c"),
    ]
    assert len(dataset.series) == 3


def test_patients_of_a_table_own_their_series(both: Path) -> None:
    (both / "dicom" / "patients.csv").write_text("case,patient\na,P\nb,P\nc,Q\n")
    assert [case.owner for case in find_dataset(both / "dicom").cases] == ["P", "P", "Q"]


def test_a_label_map_on_another_grid_is_refused(both: Path) -> None:
    path = both / "dicom" / "labels" / "a.nii.gz"
    image, translation = nibabel.load(path), np.eye(4)
    translation[:3, 3] = 0.5
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine @ translation), path)
    (case, *_) = find_dataset(both / "dicom").cases
    with pytest.raises(Exception, match="mm away from those of a"):
        load_case(case, {1})
