"""Labels of a tilted gantry move with the slices that they were drawn on."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import DataError
from common.imaging.io.dicom.find import find_series
from common.imaging.io.dicom.labels.label_map import read_label_map
from common.imaging.io.dicom.labels.matching import match_labels
from common.imaging.io.dicom.labels.objects import Structure
from common.imaging.io.dicom.volume import read_series
from tests.common.imaging.io.dicom.test_tilt import RESAMPLE, tilted
from tests.dicom_labels import segmentation, structure_set, write
from tests.dicom_series import CT, make_series, save

STRUCTURES = (Structure(1, "one"), Structure(2, "two"))
SHAPE = (9, 20, 24)  # slices, rows, columns


def masks() -> dict[str, NDArray[np.bool_]]:
    z, y, x = np.indices(SHAPE)
    one = (np.hypot(y - 8, x - 9) < 6) & (z > 0) & (z < 8)
    return {"one": one, "two": (np.hypot(y - 14, x - 18) < 4) & ~one}


def at_places(
    axes: NDArray[np.float64], label: NDArray[np.uint8], grid: tuple[NDArray[np.float64], tuple[int, ...]]
) -> NDArray[np.uint8]:
    """Each voxel's value: that of the pixel whose place is nearest on its slice. Slow and obvious."""
    affine, shape = grid
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    lps = (indices @ affine[:3, :3].T + affine[:3, 3]) * (-1, -1, 1)
    i, j, k = np.moveaxis(np.rint(lps @ np.linalg.inv(axes).T).astype(int), -1, 0)
    inside = (i >= 0) & (i < SHAPE[2]) & (j >= 0) & (j < SHAPE[1])
    return np.where(inside, label[k.clip(0, 8), j.clip(0, 19), i.clip(0, 23)], 0)


@pytest.mark.parametrize(("sideways", "down", "turned"), [(0.0, 0.53, False), (-0.31, 0.47, True), (0.27, -0.9, False)])
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "RTSTRUCT"])
def test_labels_are_where_their_pixels_are(
    tmp_path: Path, kind: str, sideways: float, down: float, turned: bool
) -> None:
    axes, stored = tilted(sideways, down, turned)
    slices = make_series(stored, kind=CT, axes=axes, origin=(0, 0, 0))
    save(tmp_path / "a", slices)
    drawn = masks()
    made = structure_set(slices, drawn) if kind == "RTSTRUCT" else segmentation(slices, drawn, kind=kind)
    write(tmp_path / "seg", made)
    found = find_series(tmp_path, RESAMPLE)
    (match,) = match_labels(found.labels, found.series)
    assert match.refusal == "" and match.series is not None and match.labels is not None
    label, grid = read_label_map(match.series, [match.labels], STRUCTURES, "refuse")
    assert grid.matches(read_series(match.series).grid)
    expected = at_places(axes, (drawn["one"] + 2 * drawn["two"]).astype(np.uint8), (grid.affine, grid.shape))
    np.testing.assert_array_equal(label, expected)
    assert np.bincount(label.ravel()).tolist()[1:] == [drawn["one"].sum(), drawn["two"].sum()]


def test_labels_of_the_upright_volume_are_refused(tmp_path: Path) -> None:
    axes, stored = tilted(0.0, 0.53)
    slices = make_series(stored, kind=CT, axes=axes)
    save(tmp_path / "a", slices)
    made = segmentation(slices, masks())
    for frame in made.PerFrameFunctionalGroupsSequence:
        x, _, z = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [x, 20, z]
    write(tmp_path / "seg", made)
    found = find_series(tmp_path, RESAMPLE)
    (match,) = match_labels(found.labels, found.series)
    assert match.series is not None and match.labels is not None
    with pytest.raises(DataError, match=r"on another grid than its series|beyond the grid"):
        read_label_map(match.series, [match.labels], STRUCTURES, "refuse")
