"""Series of DICOM with label maps beside them: the same dataset as the same cases in NIfTI."""

from __future__ import annotations

import re
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
    series = only_series_in(
        save(root / "dicom" / "images" / name, make_series(voxels, axes=axes, PatientID=f"P1{name}"))
    )
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


def names_in(root: Path) -> dict[str, str]:
    """Names of cases by the folders of their series."""
    return {str(case.series.folder.relative_to(root)): case.name for case in scan_dataset(root)[0].cases if case.series}


FOLDERS = ("p1/a", "p1/a_2", "p1_a", "p1__a", "p1_/a", "p1/_a", "p 1/a", "p_1/a", "p1/a/series3", ".p1/a", "Schädel")


def test_names_of_cases_are_unique_and_the_same_whatever_else_is_there(tmp_path: Path) -> None:
    for folder in FOLDERS:
        save(tmp_path / "all" / folder, make_series())
        save(tmp_path / "alone" / folder.replace("/", "%") / folder, make_series())
    names = names_in(tmp_path / "all")
    assert set(names) == set(FOLDERS) and len(set(names.values())) == len(FOLDERS)
    for folder in FOLDERS:
        assert names_in(tmp_path / "alone" / folder.replace("/", "%")) == {folder: names[folder]}
    assert [names[folder] for folder in ("p1/a", "p1_a", "p1/a/series3")] == ["p1__a", "p1_a", "p1__a__series3"]
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) for name in names.values())


def test_a_folder_that_looks_like_another_ones_name_has_a_name_of_its_own(tmp_path: Path) -> None:
    save(tmp_path / "p 1", make_series())
    (taken,) = names_in(tmp_path).values()
    save(tmp_path / taken, make_series())
    assert len(set(names_in(tmp_path).values())) == 2


def test_volumes_of_one_folder_are_told_apart_by_number_and_else_by_digest(tmp_path: Path) -> None:
    for index, number in enumerate((3, 4, 4)):
        save(tmp_path / "p1", make_series(SeriesNumber=number), names=[f"{index}-{file}" for file in range(8)])
    save(tmp_path / "p1" / "series3", make_series())
    names = sorted(case.name for case in scan_dataset(tmp_path)[0].cases)
    assert names[0] == "p1+series3" and names[3] == "p1__series3"
    assert len(set(names)) == 4
    assert all(re.fullmatch(r"p1\+series4-[0-9a-f]{12}", name) for name in names[1:3])
