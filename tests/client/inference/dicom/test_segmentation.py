"""DICOM-SEG: every voxel where the series has it, and references to what it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from client.inference.results import SegmentationKind
from common.imaging.io.dicom.slices import Series
from common.imaging.io.dicom.volume import read_series
from common.plan.base import Code
from tests.client.inference.dicom.by_hand import errors_of_dciodvfy, made_up, model, on_grid, planes, write
from tests.common.imaging.io.dicom.test_enhanced import enhance, noisy
from tests.common.imaging.io.dicom.test_geometry import write_shuffled
from tests.common.imaging.io.dicom.test_tilt import RESAMPLE, tilted
from tests.dicom_series import CT, make_series, only_series_in, save, series_in

KINDS: tuple[SegmentationKind, ...] = ("binary", "labelmap", "fractional")
OF_NOW = {"InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime", "ContributingEquipmentSequence"}


def assert_equal_on_grid(folder: Path, series: Series, kind: SegmentationKind, seed: int = 0) -> Dataset:
    grid = read_series(series).grid
    prediction = made_up(grid, seed=seed)
    segmentation, _ = write(folder, series, prediction, kind)
    found = on_grid(segmentation, grid)
    if kind == "fractional":
        assert np.abs(found / np.float32(255) - prediction.probabilities[1:]).max() <= 0.5 / 255 + 1e-6
    else:
        np.testing.assert_array_equal(found, [prediction.label == 1, prediction.label == 2])
    return segmentation


@pytest.mark.parametrize(
    ("seed", "kind"), [(0, "binary"), (3, "binary"), (4, "labelmap"), (7, "fractional"), (11, "binary")]
)
def test_every_voxel_is_where_the_prediction_has_it_in_turned_and_shuffled_series(
    tmp_path: Path, seed: int, kind: SegmentationKind
) -> None:
    write_shuffled(tmp_path / "series", seed)
    series = only_series_in(tmp_path / "series")
    segmentation = assert_equal_on_grid(tmp_path, series, kind, seed)
    positions = {one.SOPInstanceUID: one.ImagePositionPatient for one in map(pydicom.dcmread, files(series))}
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert source.SpatialLocationsPreserved == "YES"
        place = positions[source.ReferencedSOPInstanceUID]
        np.testing.assert_allclose(
            np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float), np.array(place, float)
        )
    assert {one.ReferencedSOPInstanceUID for one in segmentation.SourceImageSequence} == set(positions)
    (of_series,) = segmentation.ReferencedSeriesSequence
    assert of_series.SeriesInstanceUID == series.uid
    assert {one.ReferencedSOPInstanceUID for one in of_series.ReferencedInstanceSequence} == set(positions)


def files(series: Series) -> list[Path]:
    return [one.path for one in series.slices]


@pytest.mark.parametrize(("name", "kinds"), [("brain-ge/T1post", ["binary"]), ("hippocrop-1", KINDS)])
def test_real_series_give_valid_objects_with_every_voxel(
    real_dicom: Path, tmp_path: Path, name: str, kinds: Sequence[SegmentationKind]
) -> None:
    series = only_series_in(real_dicom / name)
    for kind in kinds:
        segmentation = assert_equal_on_grid(tmp_path / kind, series, kind)
        assert segmentation.PatientID == pydicom.dcmread(files(series)[0]).PatientID
        found = [errors_of_dciodvfy(tmp_path / kind / name) for name in ("seg.dcm", "sr.dcm")]
        if kind != "labelmap":
            assert found == [[], []]
            continue
        # Debian's dicom3tools are older than this kind: they know neither the object nor its background, number 0.
        assert [error.partition("> - ")[2] or error for error in found[0]] == [
            "SegmentNumber not monotonically increasing from one by one - "
            "have SegmentSequence item number 1 (from one) with SegmentNumber of 0",
            "Error - Information Object Not found",
        ]
        assert {error.partition("> - ")[2] for error in found[1]} == {
            "Shall not be present for Referenced SOP Class that is not segmentation"
        }


@pytest.mark.parametrize("kind", [CT, "1.2.840.10008.5.1.4.1.1.4"])
def test_frames_of_enhanced_images_are_referred_to(tmp_path: Path, kind: str) -> None:
    slices = noisy(kind)
    order = [int(index) for index in np.random.default_rng(1).permutation(9)]
    one = enhance(slices, order)
    series = only_series_in(save(tmp_path / "series", [one]))
    segmentation = assert_equal_on_grid(tmp_path, series, "binary")
    (reference,) = segmentation.SourceImageSequence
    assert (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID) == (
        one.SOPClassUID,
        one.SOPInstanceUID,
    )
    places = [groups.PlanePositionSequence[0].ImagePositionPatient for groups in one.PerFrameFunctionalGroupsSequence]
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert source.ReferencedSOPInstanceUID == one.SOPInstanceUID
        expected = np.array(places[source.ReferencedFrameNumber - 1], dtype=float)
        np.testing.assert_allclose(np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float), expected)
    assert not errors_of_dciodvfy(tmp_path / "seg.dcm")


def test_time_points_of_a_series_refer_to_their_own_instances(tmp_path: Path) -> None:
    uids = set()
    for point in (1, 2):
        one = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "FrameOfReferenceUID": "1.2.3.5"}
        slices = make_series(TemporalPositionIdentifier=point, **one)
        save(tmp_path / "series", slices, names=[f"{point}-{index}" for index in range(8)])
    for number, series in enumerate(series_in(tmp_path / "series")):
        segmentation, _ = write(tmp_path / str(number), series, made_up(read_series(series).grid))
        own = {pydicom.dcmread(path).SOPInstanceUID for path in files(series)}
        assert {one.ReferencedSOPInstanceUID for one in segmentation.SourceImageSequence} == own
        uids.add(segmentation.SOPInstanceUID)
    assert number == 1 and len(uids) == 2


@pytest.mark.parametrize("turned", [False, True])
def test_a_tilted_gantry_gives_the_upright_volume_and_says_that_pixels_were_moved(tmp_path: Path, turned: bool) -> None:
    axes, stored = tilted(-0.31, 0.47, turned)
    folder = save(tmp_path / "series", make_series(stored, kind=CT, axes=axes))
    series = only_series_in(folder, RESAMPLE)
    segmentation = assert_equal_on_grid(tmp_path, series, "binary")
    assert (segmentation.Columns, segmentation.Rows) == series.grid.shape[:2] != (24, 20)
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert source.SpatialLocationsPreserved == "NO"
    assert not errors_of_dciodvfy(tmp_path / "seg.dcm")


def test_an_empty_label_map_is_written_too(tmp_path: Path) -> None:
    series = only_series_in(save(tmp_path / "series", make_series()))
    prediction = made_up(read_series(series).grid)
    prediction.label[...] = 0
    segmentation, _ = write(tmp_path, series, prediction)
    assert len(segmentation.SegmentSequence) == 2
    assert not any(pixels.any() for _, _, pixels in planes(segmentation))
    assert not errors_of_dciodvfy(tmp_path / "seg.dcm") and not errors_of_dciodvfy(tmp_path / "sr.dcm")


def without_times(one: Dataset) -> Dataset:
    for keyword in OF_NOW & set(one.dir()):
        delattr(one, keyword)
    return one


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_scan_and_model_give_the_same_objects(tmp_path: Path, kind: SegmentationKind) -> None:
    folder = save(tmp_path / "series", make_series())
    series = only_series_in(folder)
    prediction = made_up(read_series(series).grid)
    first = write(tmp_path / "first", series, prediction, kind)
    again = write(tmp_path / "again", only_series_in(folder), prediction, kind)
    for one, other in zip(first, again, strict=True):
        assert one.file_meta == other.file_meta
        assert without_times(one) == without_times(other)


def test_whatever_may_change_a_result_changes_its_uid(tmp_path: Path) -> None:
    folder = save(tmp_path / "series", make_series())
    series = only_series_in(folder)
    prediction = made_up(read_series(series).grid)
    objects = [
        write(tmp_path, series, prediction),
        write(tmp_path, series, prediction, "labelmap"),
        write(tmp_path, series, prediction, applied=model(sha256="cd" * 32)),
        write(tmp_path, series, prediction, applied=model(settings="overlap=0.6")),
        write(tmp_path, series, prediction, applied=model({1: "head", 2: "other"})),
    ]
    (folder / "000.dcm").unlink()
    shorter = only_series_in(folder)
    objects.append(write(tmp_path, shorter, made_up(read_series(shorter).grid)))
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        uids = [one[keyword].value for pair in objects for one in pair]
        assert len(set(uids)) == 12
        assert all(uid.is_valid and uid.startswith("2.25.") for uid in uids)


def test_segments_are_coded_and_say_what_made_them(tmp_path: Path) -> None:
    codes = {
        1: Code(scheme="SCT", value="10200004", meaning="Liver"),
        2: Code(scheme="SCT", value="52988006", meaning="Lesion"),
    }
    name = "a structure with a long name \\ that has no code of its own, in more than sixty-four characters"
    series = only_series_in(save(tmp_path / "series", make_series()))
    prediction = made_up(read_series(series).grid, labels=3)
    segmentation, _ = write(tmp_path, series, prediction, applied=model({1: "liver", 2: "focus", 3: name}, codes))
    liver, focus, other = segmentation.SegmentSequence
    assert coded(liver.SegmentedPropertyTypeCodeSequence) == ("SCT", "10200004", "Liver")
    assert coded(liver.SegmentedPropertyCategoryCodeSequence)[2] == "Anatomical Structure"
    assert coded(focus.SegmentedPropertyCategoryCodeSequence)[2] == "Morphologically Abnormal Structure"
    assert coded(other.SegmentedPropertyTypeCodeSequence)[:2] == ("99FEDVOX", name.replace("\\", "/"))
    assert liver.SegmentLabel == "liver" and len(other.SegmentLabel) == 64
    (algorithm,) = liver.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmName == "Fedvox hippocampus"
    assert algorithm.AlgorithmVersion == segmentation.SoftwareVersions == model().version
    assert algorithm.AlgorithmParameters == f"federation=hippocampus,model_sha256={'ab' * 32},overlap=0.5"
    assert segmentation.DeviceSerialNumber == "ab" * 32
    assert segmentation.SeriesDescription == "NOT FOR CLINICAL USE: segmentation by Fedvox hippocampus"
    assert segmentation.SeriesNumber == 701
    assert not errors_of_dciodvfy(tmp_path / "seg.dcm")


def coded(sequence: list[Dataset]) -> tuple[str, str, str]:
    (item,) = sequence
    value = item.get("CodeValue") or item.LongCodeValue
    return item.CodingSchemeDesignator, value, item.CodeMeaning
