"""Structure sets become the label maps that their contours were drawn around, or are refused with the reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from common.errors import DataError
from common.imaging.datasets.comparison import SiteTerms, Wanted, compare
from common.imaging.datasets.dataset import find_dataset, scan_dataset
from tests.common.imaging.datasets.test_dicom_labels import label_of
from tests.dicom_labels import LIVER, TUMOUR, segmentation, structure_set, write
from tests.dicom_series import make_series, save

SHAPE = (8, 24, 28)  # slices, rows, columns
AXES = np.array(((0.0, 0.8, -0.6), (1.2, 0.0, 0.0), (0.0, -0.6, -0.8)))
WANTED = Wanted({1: "liver", 2: "tumour"}, codes={1: LIVER[:2]})


def shapes() -> dict[str, NDArray[np.bool_]]:
    """A ring of ragged width in several slices, and two separate blobs beside it."""
    z, y, x = np.indices(SHAPE)
    radius = np.hypot(y - 11, x - 10) + np.random.default_rng(0).uniform(-0.7, 0.7, SHAPE)
    ring = (radius > 3) & (radius < 8) & (z > 1) & (z < 7)
    blobs = ((np.hypot(y - 6, x - 23) < 3.3) | (np.hypot(y - 17, x - 23) < 2.4)) & (z != 4)
    return {"Leber": ring, "TUMOUR": blobs}


@pytest.fixture
def slices(tmp_path: Path) -> list[Dataset]:
    found = make_series(np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE), axes=AXES)
    save(tmp_path / "a", found)
    return found


def read(folder: Path) -> NDArray[np.uint8]:
    dataset, problems = compare(find_dataset(folder), WANTED)
    assert not problems
    return label_of(dataset, "a")


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.parametrize("digits", [1, 2, 4])
def test_a_label_map_comes_back_from_its_contours(tmp_path: Path, slices: list[Dataset], digits: int) -> None:
    masks = shapes()
    write(tmp_path / "x", structure_set(slices, masks, codes={"Leber": LIVER}, digits=digits))
    found = read(tmp_path)
    scores = [dice(found == value, mask) for value, mask in enumerate(masks.values(), start=1)]
    assert min(scores) >= (0.98 if digits == 1 else 0.9999)


def test_what_reaches_the_border_of_the_image_comes_back(tmp_path: Path, slices: list[Dataset]) -> None:
    masks = {"liver": np.ones(SHAPE, dtype=bool)}
    write(tmp_path / "x", structure_set(slices, masks, digits=1))
    dataset, _ = compare(find_dataset(tmp_path), WANTED)
    assert label_of(dataset, "a").all()


def test_regions_are_found_by_code_or_name_and_others_ignored(tmp_path: Path, slices: list[Dataset]) -> None:
    masks = shapes()
    more = {"liver": masks["TUMOUR"], "x": masks["Leber"]}
    write(tmp_path / "x", structure_set(slices, more, codes={"liver": TUMOUR, "x": LIVER}))
    dataset, problems = compare(find_dataset(tmp_path), WANTED)
    np.testing.assert_array_equal(label_of(dataset, "a"), masks["Leber"])
    assert [problem.text for problem in problems] == [
        "label 2 (tumour): 1 case of 1 without a segment of it, such as a",
        "segments that are no label and are ignored: 'liver' (SCT 108369006 Neoplasm)",
    ]


def test_a_region_without_contours_is_missing(tmp_path: Path, slices: list[Dataset]) -> None:
    masks = shapes() | {"TUMOUR": np.zeros(SHAPE, dtype=bool)}
    path = write(tmp_path / "x", structure_set(slices, masks, codes={"Leber": LIVER}))
    found = find_dataset(tmp_path)
    assert found.labels == {1: "Leber"}
    assert [problem.text for problem in compare(found, WANTED)[1]] == [
        "label 2 (tumour): 1 case of 1 without a segment of it, such as a"
    ]
    assert not [
        one for one in compare(found, WANTED, SiteTerms(labels_map={"TUMOUR": "tumour"}))[1] if one.severity == "error"
    ]
    one = structure_set(slices, masks, codes={"Leber": LIVER})
    one.ROIContourSequence = one.ROIContourSequence[1:]
    write(path, one)
    problems = [(problem.severity, problem.text) for problem in scan_dataset(tmp_path)[1]]
    assert ("warning", "has no contours") in problems


def test_a_structure_set_and_a_segmentation_with_different_labels_are_merged(
    tmp_path: Path, slices: list[Dataset]
) -> None:
    masks = shapes()
    write(tmp_path / "x", structure_set(slices, {"Leber": masks["Leber"]}, codes={"Leber": LIVER}))
    write(tmp_path / "y", segmentation(slices, {"tumour": masks["TUMOUR"]}))
    np.testing.assert_array_equal(read(tmp_path), masks["Leber"] + 2 * masks["TUMOUR"].astype(np.uint8))


def first_contour(one: Dataset) -> Dataset:
    return one.ROIContourSequence[0].ContourSequence[0]


def moved(one: Dataset, distance_mm: float) -> None:
    """Move a contour away from its slice, along the normal."""
    contour = first_contour(one)
    normal = AXES[:, 2] / np.linalg.norm(AXES[:, 2])
    points = np.array(contour.ContourData, float).reshape(-1, 3) + normal * distance_mm
    contour.ContourData = [f"{value:.5f}" for value in points.ravel()]


def of_another_frame(one: Dataset) -> None:
    one.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = generate_uid()


def in_two_places(one: Dataset) -> None:
    one.ROIContourSequence.append(copy.deepcopy(one.ROIContourSequence[0]))


def set_data(one: Dataset, values: list[float]) -> None:
    first_contour(one).ContourData = values


def shifted(one: Dataset, columns: float) -> None:
    """Move a contour within its slice."""
    contour = first_contour(one)
    points = np.array(contour.ContourData, float).reshape(-1, 3) + AXES[:, 0] * columns
    contour.ContourData = [f"{value:.5f}" for value in points.ravel()]


def stored_twice(one: Dataset) -> None:
    contours = one.ROIContourSequence[0].ContourSequence
    contours.append(contours[3])


def crossing(one: Dataset) -> None:
    """Put a copy of a contour beside it, so that they cross."""
    copied = copy.deepcopy(one)
    shifted(copied, 2)
    one.ROIContourSequence[0].ContourSequence.append(first_contour(copied))


def round_twice(one: Dataset) -> None:
    contour = first_contour(one)
    contour.ContourData = list(contour.ContourData) * 2
    contour.NumberOfContourPoints *= 2


def two_points(one: Dataset) -> None:
    set_data(one, list(first_contour(one).ContourData)[:6])
    first_contour(one).NumberOfContourPoints = 2


def tiny(one: Dataset) -> None:
    """Leave one contour, of a tenth of a pixel."""
    one.ROIContourSequence[0].ContourSequence = one.ROIContourSequence[0].ContourSequence[:1]
    data = np.array(first_contour(one).ContourData, float).reshape(-1, 3)
    set_data(one, (data[0] + (data - data[0]) / 300).ravel().round(5).tolist())


def of_other_images(one: Dataset) -> None:
    image = Dataset()
    image.ReferencedSOPInstanceUID = generate_uid()
    first_contour(one).ContourImageSequence = [image]


def two_codes(one: Dataset) -> None:
    again = copy.deepcopy(one.RTROIObservationsSequence[0])
    again.RTROIIdentificationCodeSequence[0].CodeValue = TUMOUR[1]
    one.RTROIObservationsSequence.append(again)


def no_instances(one: Dataset) -> None:
    study = one.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    study.RTReferencedSeriesSequence[0].ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


REFUSED: dict[str, tuple[Callable[[Dataset], object], str]] = {
    "between slices": (lambda one: moved(one, 0.5), "'Leber' .* that lies on no slice of its series"),
    "a little off": (lambda one: moved(one, 0.15), "lies on no slice"),
    "beyond the last slice": (lambda one: moved(one, 8.0), "lies on no slice"),
    "far away": (lambda one: moved(one, 1e9), "lies on no slice"),
    "a point": (lambda one: setattr(first_contour(one), "ContourGeometricType", "POINT"), r"no area \(POINT\)"),
    "no type": (lambda one: delattr(first_contour(one), "ContourGeometricType"), r"no area \(of no type\)"),
    "too many points": (
        lambda one: setattr(first_contour(one), "NumberOfContourPoints", 2**30),
        "has a ContourData that is not 3221225472 finite numbers",
    ),
    "another series": (of_other_images, "has a contour of 'Leber' .* that refers to instances outside of its series"),
    "outside": (lambda one: shifted(one, 100), "has a contour of 'Leber' .* outside of the image on slice"),
    "partly outside": (lambda one: shifted(one, -6), "outside of the image on slice"),
    "stored twice": (stored_twice, "has contours of 'Leber' .* on slice .* that fill the same pixels: correct them"),
    "crossing": (crossing, "that cross each other"),
    "round twice": (round_twice, "that go round a pixel more than once"),
    "two points": (two_points, r"that is no area \(2 points\)"),
    "no pixel": (tiny, "has contours of 'Leber' .* that fill no pixel"),
    "two codes": (two_codes, "describes region 1 with several codes"),
    "no points": (lambda one: set_data(one, []), "without points"),
    "not three numbers a point": (lambda one: set_data(one, [1.0, 2.0]), "that is not"),
    "two places": (in_two_places, "has contours of 'Leber' .* in two places"),
    "another frame of reference": (of_another_frame, "has another frame of reference than the series"),
    "instances": (no_instances, "refers to 8 instances, of which 1 are not there"),
    "no regions": (lambda one: delattr(one, "StructureSetROISequence"), "describes no segments"),
}


@pytest.mark.parametrize("way", REFUSED)
def test_what_is_no_area_on_a_slice_of_the_series_is_refused(tmp_path: Path, slices: list[Dataset], way: str) -> None:
    one = structure_set(slices, shapes(), codes={"Leber": LIVER})
    change, reason = REFUSED[way]
    change(one)
    write(tmp_path / "x", one)
    with pytest.raises(DataError, match=reason):
        read(tmp_path)


def test_contours_that_are_no_numbers_are_refused(tmp_path: Path, slices: list[Dataset]) -> None:
    path = write(tmp_path / "x", structure_set(slices, shapes(), codes={"Leber": LIVER}))
    content = path.read_bytes()
    at = content.index(b"\x06\x30\x50\x00DS") + 12
    for bad in (b"nan ", b"inf ", b"1e99", b"x\x1b[2"):
        path.write_bytes(content[:at] + bad + content[at + 4 :])
        with pytest.raises(DataError, match=r"has a ContourData that is n|lies on no slice"):
            read(tmp_path)
