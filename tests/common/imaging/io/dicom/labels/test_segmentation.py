"""Segmentation objects become exactly the label maps that they were made from, or are refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from common.errors import DataError
from common.imaging.geometry import reorient_from_ras
from common.imaging.io.dicom.find import find_series
from common.imaging.io.dicom.labels.label_map import read_label_map
from common.imaging.io.dicom.labels.matching import match_labels
from common.imaging.io.dicom.labels.objects import Overlap, Structure
from common.imaging.io.dicom.rules import USUAL_RULES
from tests.dicom_labels import segmentation, write
from tests.dicom_series import make_series, save

SHAPE = (7, 15, 19)  # slices, rows, columns: frames of one bit a pixel do not end at bytes
STRUCTURES = (Structure(1, "one"), Structure(2, "two"))
OBLIQUE = np.array(((0.0, 0.8, -0.6), (1.2, 0.0, 0.0), (0.0, -0.6, -0.8)))
GEOMETRIES = {
    "axial": np.diag((0.7, 0.8, 2.5)),
    "from top to bottom, flipped": np.diag((-0.7, 0.8, -2.5)),
    "sagittal": np.array(((0, 0, 1.5), (0.9, 0, 0), (0, -0.9, 0))),
    "oblique": OBLIQUE,
}


def blobs(seed: int = 0) -> dict[str, NDArray[np.bool_]]:
    """Two labels with ragged edges that do not touch, in some slices only."""
    random = np.random.default_rng(seed).random(SHAPE)
    one, two = random < 0.3, random > 0.8
    one[:2], two[3:5] = False, False
    return {"one": one, "two": two}


def label_of(masks: dict[str, NDArray[np.bool_]]) -> NDArray[np.uint8]:
    return (masks["one"] + 2 * masks["two"]).astype(np.uint8)


def make(folder: Path, axes: NDArray[np.float64] = GEOMETRIES["axial"]) -> list[Dataset]:
    """A series whose files do not sort as its slices."""
    slices = make_series(np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE), axes=axes)
    save(folder, slices, names=[f"{(3 * index) % 7}.dcm" for index in range(7)])
    return slices


def read(folder: Path, overlap: Overlap = "refuse") -> NDArray[np.uint8]:
    """Label map (slices, rows, columns) of the only series and the only segmentation of a folder."""
    found = find_series(folder, USUAL_RULES)
    (match,) = match_labels(found.labels, found.series)
    if match.refusal:
        raise DataError(match.path, match.refusal)
    assert match.series is not None and match.labels is not None and match.series.grid is not None
    label, grid = read_label_map(match.series, [match.labels], STRUCTURES, overlap)
    assert grid.matches(match.series.grid.to_ras())
    return reorient_from_ras(label, match.series.grid).transpose(2, 1, 0)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_label_map_comes_back_as_it_was(tmp_path: Path, kind: str, geometry: str) -> None:
    slices = make(tmp_path, GEOMETRIES[geometry])
    masks = blobs()
    values = {name: mask.astype(float) for name, mask in masks.items()} if kind == "FRACTIONAL" else masks
    write(tmp_path / "seg", segmentation(slices, values, kind=kind))
    expected = label_of(masks)
    found = read(tmp_path)
    # The slices of a series are in order along its normal, which is that of the rows and columns.
    forward = np.linalg.det(GEOMETRIES[geometry]) > 0
    np.testing.assert_array_equal(found, expected if forward else expected[::-1])


@pytest.mark.parametrize(
    ("kind", "syntax"),
    [
        ("BINARY", ImplicitVRLittleEndian),
        ("BINARY", DeflatedExplicitVRLittleEndian),
        ("FRACTIONAL", RLELossless),
        ("LABELMAP", JPEGLSLossless),
    ],
)
def test_transfer_syntaxes(tmp_path: Path, kind: str, syntax: str) -> None:
    slices, masks = make(tmp_path), blobs()
    values = {name: mask.astype(float) for name, mask in masks.items()} if kind == "FRACTIONAL" else masks
    one = segmentation(slices, values, kind=kind)
    if UID(syntax).is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        one.compress(syntax, encoding_plugin="pydicom" if syntax == RLELossless else "pyjpegls")
    one.file_meta.TransferSyntaxUID = UID(syntax)
    write(tmp_path / "seg", one)
    np.testing.assert_array_equal(read(tmp_path), label_of(masks))


def test_half_of_the_largest_fraction_belongs_to_a_segment_and_less_does_not(tmp_path: Path) -> None:
    slices = make(tmp_path)
    fractions = np.zeros(SHAPE)
    fractions[3, 2, 2:6] = 0.51, 0.49, 1.0, 0.1
    one = segmentation(slices, {"one": fractions}, kind="FRACTIONAL", max_fractional_value=100)
    write(tmp_path / "seg", one)
    assert read(tmp_path)[3, 2, 2:6].tolist() == [1, 0, 1, 0]


def test_frames_lie_where_their_positions_say_whatever_their_order_and_number(tmp_path: Path) -> None:
    one, frames = label_map(tmp_path)
    groups, order = list(one.PerFrameFunctionalGroupsSequence), [4, 0, 6, 1, 5]
    set_frames(one, frames[order], [groups[index] for index in order])
    write(tmp_path / "seg", one)
    expected = label_of(blobs())
    expected[[2, 3]] = 0
    np.testing.assert_array_equal(read(tmp_path), expected)


def set_frames(one: Dataset, frames: NDArray[np.uint8], groups: list[Dataset]) -> None:
    """Give a label map other frames (frames, rows, columns)."""
    one.NumberOfFrames, one.Rows, one.Columns = frames.shape
    one.PerFrameFunctionalGroupsSequence = groups
    data = frames.tobytes()
    one.PixelData = data + b"\0" * (len(data) % 2)


def label_map(folder: Path, axes: NDArray[np.float64] = OBLIQUE) -> tuple[Dataset, NDArray[np.uint8]]:
    """A label map with all frames, in order of slices, and its frames."""
    slices = make(folder, axes)
    one = segmentation(slices, blobs(), kind="LABELMAP", omit_empty_frames=False)
    frames = np.frombuffer(one.PixelData, np.uint8)[: np.prod(SHAPE)].reshape(SHAPE)
    places = {slice_.SOPInstanceUID: index for index, slice_ in enumerate(slices)}
    groups = list(one.PerFrameFunctionalGroupsSequence)
    found = [
        places[group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID] for group in groups
    ]
    order = np.argsort(found)
    one.PerFrameFunctionalGroupsSequence = [groups[index] for index in order]
    return one, frames[order]


def move(one: Dataset, axes: NDArray[np.float64], column: float, row: float) -> None:
    """Move all frames by columns and rows."""
    for group in one.PerFrameFunctionalGroupsSequence:
        item = group.PlanePositionSequence[0]
        place = np.array(item.ImagePositionPatient, float) + axes[:, 0] * column + axes[:, 1] * row
        item.ImagePositionPatient = [f"{value:.9g}" for value in place]


def test_a_part_of_the_grid_is_placed(tmp_path: Path) -> None:
    one, frames = label_map(tmp_path)
    set_frames(one, frames[:, 4:12, 3:14], list(one.PerFrameFunctionalGroupsSequence))
    move(one, OBLIQUE, column=3, row=4)
    write(tmp_path / "seg", one)
    expected = np.zeros(SHAPE)
    expected[:, 4:12, 3:14] = label_of(blobs())[:, 4:12, 3:14]
    np.testing.assert_array_equal(read(tmp_path), expected)


def test_frames_that_are_turned_against_the_series_are_placed_voxel_by_voxel(tmp_path: Path) -> None:
    one, frames = label_map(tmp_path)
    across, down = (column / np.linalg.norm(column) for column in OBLIQUE.T[:2])
    set_frames(one, frames.transpose(0, 2, 1)[:, ::-1], list(one.PerFrameFunctionalGroupsSequence))
    move(one, OBLIQUE, column=SHAPE[2] - 1, row=0)
    shared = one.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [f"{value:.9g}" for value in (*down, *-across)]
    shared.PixelMeasuresSequence[0].PixelSpacing = [float(np.linalg.norm(OBLIQUE[:, axis])) for axis in (0, 1)]
    write(tmp_path / "seg", one)
    np.testing.assert_array_equal(read(tmp_path), label_of(blobs()))


OTHER_GRIDS = {
    "by half a pixel": lambda one: move(one, OBLIQUE, 0.5, 0),
    "by a fifth of a row": lambda one: move(one, OBLIQUE, 0, 0.2),
    "beyond": lambda one: move(one, OBLIQUE, 1, 0),
    "larger pixels": lambda one: setattr(
        one.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], "PixelSpacing", [2, 2]
    ),
    "turned": lambda one: setattr(
        one.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0],
        "ImageOrientationPatient",
        [0, 1, 0, 0.7, 0, -0.7],
    ),
    "no direction": lambda one: setattr(
        one.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0], "ImageOrientationPatient", [0] * 6
    ),
}


@pytest.mark.parametrize("way", OTHER_GRIDS)
def test_another_grid_than_the_series_is_refused(tmp_path: Path, way: str) -> None:
    one, _ = label_map(tmp_path)
    OTHER_GRIDS[way](one)
    write(tmp_path / "seg", one)
    with pytest.raises(DataError, match=r"is on another grid than its series|reaches beyond the grid of its series"):
        read(tmp_path)


def test_overlapping_labels_are_refused_or_the_later_one_wins(tmp_path: Path) -> None:
    masks = blobs()
    masks["two"][5, 3:5, 3:9] = masks["one"][5, 3:5, 3:9] = True
    write(tmp_path / "seg", segmentation(make(tmp_path), masks))
    with pytest.raises(DataError, match=r"gives 12 voxels both of the labels 1 and 2.*overlap: later"):
        read(tmp_path)
    expected = label_of(masks)
    expected[expected == 3] = 2
    np.testing.assert_array_equal(read(tmp_path, overlap="later"), expected)


def test_segments_of_one_label_are_that_label_together(tmp_path: Path) -> None:
    masks = blobs()
    write(tmp_path / "seg", segmentation(make(tmp_path), {"one": masks["one"], "ONE": masks["two"]}))
    np.testing.assert_array_equal(read(tmp_path), masks["one"] | masks["two"])


def binary(folder: Path) -> Dataset:
    return segmentation(make(folder), blobs())


def no_frame_groups(one: Dataset) -> None:
    one.PerFrameFunctionalGroupsSequence = one.PerFrameFunctionalGroupsSequence[:-1]


def doubled(one: Dataset) -> None:
    first, second, *_ = one.PerFrameFunctionalGroupsSequence
    second.PlanePositionSequence = first.PlanePositionSequence


def without_segment(one: Dataset) -> None:
    del one.PerFrameFunctionalGroupsSequence[1].SegmentIdentificationSequence


def no_position(one: Dataset) -> None:
    del one.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence


def bad_position(one: Dataset) -> None:
    one.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0].ImagePositionPatient = [1e300, -1e300, 1e300]


def outside(one: Dataset) -> None:
    source = one.PerFrameFunctionalGroupsSequence[1].DerivationImageSequence[0].SourceImageSequence[0]
    source.ReferencedSOPInstanceUID = "1.2.3"


def described_twice(one: Dataset) -> None:
    one.SegmentSequence[1].SegmentNumber = 1


def undescribed(one: Dataset) -> None:
    one.SegmentSequence[1].SegmentNumber = 3


def of_one_byte(one: Dataset) -> None:
    one.BitsAllocated = one.BitsStored = 8
    one.HighBit, one.PixelData = 7, bytes(one.Rows * one.Columns * int(one.NumberOfFrames))


def cut(one: Dataset) -> None:
    one.PixelData = one.PixelData[:100]


HOSTILE: dict[str, tuple[Callable[[Dataset], object], str]] = {
    "rows": (lambda one: setattr(one, "Rows", 60000), "has frames of 19 x 60,000 pixels, and its series 19 x 15 x 7"),
    "frames": (lambda one: setattr(one, "NumberOfFrames", 2**31 - 1), "has 2,147,483,647 frames of 2 segments"),
    "no frames": (lambda one: setattr(one, "NumberOfFrames", 0), "has 0 frames"),
    "fewer descriptions": (no_frame_groups, "frames and describes"),
    "doubled": (doubled, "has two frames of segment 1 at one position"),
    "no segment": (without_segment, "has no segment number for frame 2"),
    "no position": (no_position, "has frames without position"),
    "position": (bad_position, "is on another grid"),
    "outside": (outside, "has frames that refer to 1 instance outside of its series"),
    "not described": (undescribed, "holds the segment 2, which it does not describe"),
    "described twice": (described_twice, "describes segment 1 more than once"),
    "no segments": (lambda one: delattr(one, "SegmentSequence"), "describes no segments"),
    "type": (lambda one: setattr(one, "SegmentationType", "SURFACE"), "has the segmentation type SURFACE"),
    "bits": (of_one_byte, "is BINARY and has 8 bits for each pixel instead of 1"),
    "truncated": (cut, "has truncated pixel data"),
    "no pixels": (lambda one: delattr(one, "PixelData"), "has no pixel data"),
}


@pytest.mark.parametrize("way", HOSTILE)
def test_hostile_and_damaged_segmentations_are_refused_with_the_reason(tmp_path: Path, way: str) -> None:
    one = binary(tmp_path)
    change, reason = HOSTILE[way]
    change(one)
    write(tmp_path / "seg", one)
    with pytest.raises(DataError, match=reason):
        read(tmp_path)


def test_a_label_map_with_a_segment_that_it_does_not_describe_is_refused(tmp_path: Path) -> None:
    one, frames = label_map(tmp_path)
    frames[4, 4, 4] = 77
    set_frames(one, frames, list(one.PerFrameFunctionalGroupsSequence))
    write(tmp_path / "seg", one)
    with pytest.raises(DataError, match="holds the segment 77, which it does not describe"):
        read(tmp_path)


@pytest.mark.parametrize("largest", [None, 0, 300])
def test_fractions_of_nothing_are_refused(tmp_path: Path, largest: int | None) -> None:
    one = segmentation(make(tmp_path), {"one": blobs()["one"].astype(float)}, kind="FRACTIONAL")
    one.MaximumFractionalValue = largest
    write(tmp_path / "seg", one)
    with pytest.raises(DataError, match="has no MaximumFractionalValue from 1 to 255"):
        read(tmp_path)


def test_fractions_above_the_largest_are_refused(tmp_path: Path) -> None:
    one = segmentation(make(tmp_path), {"one": blobs()["one"].astype(float)}, kind="FRACTIONAL")
    one.MaximumFractionalValue = 100
    write(tmp_path / "seg", one)
    with pytest.raises(DataError, match="has values above its MaximumFractionalValue, 100"):
        read(tmp_path)


def test_a_file_that_is_cut_anywhere_is_refused_and_nothing_else_happens(tmp_path: Path) -> None:
    path = write(tmp_path / "seg", binary(tmp_path))
    whole = path.read_bytes()
    assert ExplicitVRLittleEndian.encode() in whole
    for length in range(400, len(whole) - 1, max(1, len(whole) // 25)):
        path.write_bytes(whole[:length])
        found = find_series(tmp_path, USUAL_RULES)
        if found.damaged or not found.labels:
            continue
        with pytest.raises(DataError):
            read(tmp_path)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_bytes_damaged_at_random_end_in_labels_or_in_an_error(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "seg", segmentation(make(tmp_path), blobs(), kind=kind))
    whole, random = path.read_bytes(), np.random.default_rng(0)
    ends = {"labels": 0, "error": 0}
    for _ in range(60):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[random.integers(132, len(whole), 3)] = random.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            if find_series(tmp_path, USUAL_RULES).labels:
                read(tmp_path)
            ends["labels"] += 1
        except DataError as error:
            assert str(error).isprintable()
            ends["error"] += 1
    assert all(ends.values())
