"""Labels of a real, oblique series come back voxel by voxel, and every voxel lies where another library says."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from common.imaging.datasets.case import load_case
from common.imaging.datasets.dataset import find_dataset
from tests.common.imaging.datasets.test_dicom_labels import label_of
from tests.dicom_labels import segmentation, structure_set, write


@pytest.fixture
def slices(real_dicom: Path, tmp_path: Path) -> list[Dataset]:
    """The slices in order along their normal; the series itself is linked into the folder of the test."""
    folder = real_dicom / "brain-ge" / "T1post"
    (tmp_path / "a").symlink_to(folder)
    found = [pydicom.dcmread(path) for path in folder.iterdir()]
    normal = np.cross(*np.reshape(np.array(found[0].ImageOrientationPatient, float), (2, 3)))
    return sorted(found, key=lambda one: float(normal @ np.array(one.ImagePositionPatient, float)))


def balls(slices: list[Dataset]) -> dict[str, NDArray[np.bool_]]:
    z, y, x = np.ogrid[: len(slices), : slices[0].Rows, : slices[0].Columns]
    one = (np.hypot(y - 200, x - 250) < 80) & (z > 4) & (z < 15)
    return {"one": one, "two": (np.hypot(y - 400, x - 350) < 40) & (z > 7)}


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP", "RTSTRUCT"])
def test_labels_come_back(tmp_path: Path, slices: list[Dataset], kind: str) -> None:
    masks = balls(slices)
    if kind == "RTSTRUCT":
        labels = structure_set(slices, masks, digits=2)
    else:
        values = {name: mask.astype(float) for name, mask in masks.items()} if kind == "FRACTIONAL" else masks
        labels = segmentation(slices, values, kind=kind)
    write(tmp_path / "x", labels)
    np.testing.assert_array_equal(label_of(find_dataset(tmp_path), "a"), masks["one"] + 2 * masks["two"])


def test_voxels_lie_where_highdicom_says(tmp_path: Path, slices: list[Dataset]) -> None:
    masks = balls(slices)
    path = write(tmp_path / "x", segmentation(slices, {"one": masks["one"]}))
    volume = highdicom.seg.segread(path).get_volume(segment_numbers=[1])
    expected = np.argwhere(np.asarray(volume.array)[..., 0]) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    (case,) = find_dataset(tmp_path).cases
    image, label = load_case(case, {1})
    assert label is not None
    inverse = np.linalg.inv(image.grid.affine)
    places = (expected * (-1, -1, 1)) @ inverse[:3, :3].T + inverse[:3, 3]
    nearest = np.rint(places).astype(int)
    assert (np.abs(places - nearest) * image.grid.spacing).max() < 0.01
    assert len(np.unique(nearest, axis=0)) == len(expected) == np.count_nonzero(label)
    assert label[tuple(nearest.T)].all()
