"""Which instances make up one volume: split by the tag that tells them apart, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from common.imaging.io.dicom.rules import DicomRules
from common.imaging.io.dicom.volume import read_series
from tests.dicom_series import CT, make_series, only_series_in, save, series_in


def of_one_series(*stacks: Sequence[Dataset]) -> list[Dataset]:
    """All slices with the series, study and frame of reference of the first."""
    first = stacks[0][0]
    slices = [one for stack in stacks for one in stack]
    for one in slices:
        for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
            setattr(one, keyword, getattr(first, keyword))
    return slices


def stack(value: int, **values: object) -> list[Dataset]:
    """Eight slices in which every pixel has one value."""
    return make_series(np.full((8, 4, 4), value, dtype=np.uint16), **values)


@pytest.mark.parametrize(
    ("keyword", "values", "parts"),
    [
        ("EchoTime", (10, 2.5, 100), ["echo time 2.5", "echo time 10", "echo time 100"]),
        ("InversionTime", (900, 100, 500), ["inversion time 100", "inversion time 500", "inversion time 900"]),
        ("DiffusionBValue", (1000, 0, 50), ["b-value 0", "b-value 50", "b-value 1000"]),
        ("TemporalPositionIdentifier", (3, 1, 2), ["time point 1", "time point 2", "time point 3"]),
        ("AcquisitionNumber", (12, 2, 7), ["acquisition 2", "acquisition 7", "acquisition 12"]),
        ("AcquisitionTime", ("1030", "0930", "1130"), ["acquisition time 0930", "acquisition time 1030"]),
        ("KVP", (140, 80, 100), ["tube voltage 80", "tube voltage 100", "tube voltage 140"]),
    ],
)
def test_volumes_of_one_series_are_split_by_the_tag_that_tells_them_apart(
    tmp_path: Path, keyword: str, values: tuple[object, ...], parts: list[str]
) -> None:
    stacks = [stack(10 + index, **{keyword: value}) for index, value in enumerate(values)]
    found = series_in(save(tmp_path, of_one_series(*stacks)))
    assert [one.part for one in found][: len(parts)] == parts
    assert [one.instances for one in found] == [8, 8, 8]
    ordered = sorted(range(3), key=lambda index: float(str(values[index])))
    for one, index in zip(found, ordered, strict=True):
        assert (read_series(one).array == 10 + index).all()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"PatientID": ("P1", "P2")}, "2 patients (PatientID)"),
        ({"PatientID": ("", ""), "PatientName": ("Alpha^A", "Beta^B")}, "several names"),
        ({"PatientID": ("", ""), "PatientName": ("Alpha^A", "")}, "several names"),
        ({"PatientID": ("", ""), "PatientBirthDate": ("19500101", "19990101")}, "several names or birth dates"),
        ({"IssuerOfPatientID": ("H1", "H2"), "PatientName": ("Alpha^A", "Beta^B")}, "several names"),
        ({"IssuerOfPatientID": ("H1", ""), "PatientName": ("Müller^A", "Möller^A")}, "several names"),
        ({"PatientID": ("", ""), "PatientName": ("Müller^A", "MüLLER^A^ =ミュラー^A")}, ""),
        ({"PatientName": ("Alpha^A", "Alpha^A^^Dr")}, ""),
        ({"IssuerOfPatientID": ("H1", "H2")}, ""),
    ],
)
def test_slices_of_two_patients_are_no_volume(tmp_path: Path, values: dict[str, tuple[str, str]], told: str) -> None:
    slices = stack(1, SpecificCharacterSet="ISO_IR 192")
    for keyword, (first, second) in values.items():
        for index, one in enumerate(slices):
            setattr(one, keyword, first if index < 4 else second)
    series = only_series_in(save(tmp_path, slices))
    assert told in series.refusal and bool(told) == bool(series.refusal)


def test_magnitude_and_phase_are_two_volumes(tmp_path: Path) -> None:
    magnitude, phase = (
        stack(1, ImageType=["ORIGINAL", "PRIMARY", "M"]),
        stack(2, ImageType=["ORIGINAL", "PRIMARY", "P"]),
    )
    found = series_in(save(tmp_path, of_one_series(magnitude, phase)))
    assert [one.part for one in found] == [r"image type ORIGINAL\PRIMARY\M", r"image type ORIGINAL\PRIMARY\P"]


def test_echoes_at_several_time_points_are_split_by_both(tmp_path: Path) -> None:
    stacks = [
        stack(10 * echo + time, EchoTime=echo, TemporalPositionIdentifier=time) for time in (1, 2) for echo in (5, 8)
    ]
    found = series_in(save(tmp_path, of_one_series(*stacks)))
    assert [one.part for one in found] == [
        *("echo time 5, time point 1", "echo time 5, time point 2"),
        *("echo time 8, time point 1", "echo time 8, time point 2"),
    ]
    assert [int(read_series(one).array[0, 0, 0, 0]) for one in found] == [51, 52, 81, 82]


def test_a_counter_that_runs_with_the_slices_splits_nothing(tmp_path: Path) -> None:
    slices = make_series()
    for index, one in enumerate(slices):
        one.AcquisitionNumber, one.TriggerTime, one.AcquisitionTime = index, 10.5 * index, f"10{index:02d}00"
    series = only_series_in(save(tmp_path, slices))
    assert (series.refusal, series.part, len(series.slices)) == ("", "", 8)


def test_volumes_that_no_tag_tells_apart_are_refused(tmp_path: Path) -> None:
    slices = of_one_series(stack(1), stack(2))
    for index, one in enumerate(slices):
        one.AcquisitionNumber = index  # every slice its own: no help
    series = only_series_in(save(tmp_path, slices))
    assert series.refusal == "has 8 slices at the position of another, and no tag that tells them apart"
    assert not series.left_out


def test_a_time_series_that_ended_early_loses_only_its_last_volume(tmp_path: Path) -> None:
    stacks = [stack(time, TemporalPositionIdentifier=time) for time in (1, 2, 3)]
    found = series_in(save(tmp_path, of_one_series(*stacks[:2], stacks[2][:3])))
    assert [one.refusal for one in found] == ["", "", "has 3 slices, fewer than 5"]


def test_time_points_between_each_others_slices_are_two_volumes(tmp_path: Path) -> None:
    first, second = (stack(time, TemporalPositionIdentifier=time) for time in (1, 2))
    for one in second:
        x, y, z = map(float, one.ImagePositionPatient)
        one.ImagePositionPatient = [x, y, z + 0.5]
    found = series_in(save(tmp_path, of_one_series(first, second)))
    assert [one.part for one in found] == ["time point 1", "time point 2"]


def test_a_second_that_two_volumes_share_makes_no_third_one(tmp_path: Path) -> None:
    """The second half of one volume and the first of the next one have the same time."""
    first, second = stack(1), stack(2)
    for index in range(8):
        first[index].ContentTime = "101500" if index < 4 else "101501"
        second[index].ContentTime = "101501" if index < 4 else "101502"
    for one in (*first, *second):
        one.AcquisitionTime = one.ContentTime
    series = only_series_in(save(tmp_path, of_one_series(first, second)), DicomRules(min_slices=2))
    assert "no tag that tells them apart" in series.refusal


def test_copies_of_instances_are_refused(tmp_path: Path) -> None:
    slices = make_series()
    save(tmp_path / "export", slices)
    save(tmp_path / "again", slices[:2])
    series = only_series_in(tmp_path)
    assert series.refusal == "holds 2 instances more than once: remove the copies"
    assert series.instances == 10 and series.folder == tmp_path


@pytest.mark.parametrize(("count", "rules", "is_read"), [(4, 5, False), (5, 5, True), (8, 9, False), (2, 2, True)])
def test_fewer_slices_than_the_rules_want_are_left_out(tmp_path: Path, count: int, rules: int, is_read: bool) -> None:
    series = only_series_in(save(tmp_path, make_series()[:count]), DicomRules(min_slices=rules))
    assert (series.grid is not None) == is_read
    assert series.left_out is not is_read
    assert is_read or series.refusal == f"has {count} slices, fewer than {rules}"


def test_a_localizer_in_three_planes_is_left_out(tmp_path: Path) -> None:
    planes = [np.eye(3)[:, order] * 2.0 for order in ((0, 1, 2), (1, 2, 0), (0, 2, 1))]
    slices = of_one_series(*(make_series(np.ones((3, 4, 4), dtype=np.uint16), axes=axes) for axes in planes))
    series = only_series_in(save(tmp_path, slices))
    assert series.refusal == "has slices in 3 orientations: a localizer, or turned around an axis"
    assert series.left_out


def test_series_of_all_subfolders_are_found_whatever_lies_where(tmp_path: Path) -> None:
    one, other = make_series(SeriesNumber=1), make_series(SeriesNumber=2)
    for index, slices in enumerate(zip(one, other, strict=True)):
        save(tmp_path / "in" / f"part{index % 3}", slices, names=[f"a{index}", f"b{index}.IMA"])
    (tmp_path / "in" / "part1" / "loop").symlink_to(tmp_path / "in", target_is_directory=True)
    found = series_in(tmp_path / "in")
    assert [(series.number, len(series.slices), series.folder) for series in found] == [
        ("1", 8, tmp_path / "in"),
        ("2", 8, tmp_path / "in"),
    ]


def test_the_same_series_uid_in_two_studies_is_two_series(tmp_path: Path) -> None:
    uid = generate_uid()
    for name in ("a", "b"):
        save(tmp_path / name, make_series(SeriesInstanceUID=uid))
    assert [series.refusal for series in series_in(tmp_path)] == ["", ""]


def test_a_localizer_among_the_slices_is_split_off_and_told(tmp_path: Path) -> None:
    """In another plane, of another size, and without what its series else has: none of this matters."""
    slices = stack(7, kind=CT, RescaleIntercept="-1024", RescaleSlope="1")
    (scout,) = make_series(np.ones((1, 9, 5), dtype=np.uint16), kind=CT, axes=np.eye(3)[:, (1, 2, 0)] * 3.0)
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "CT_SOM5 TOP"]
    volume, localizer = series_in(save(tmp_path, of_one_series(slices, [scout])))
    assert (volume.refusal, volume.part, volume.instances) == ("", "", 8)
    assert (read_series(volume).array == 7 - 1024).all()
    assert (localizer.refusal, localizer.part, localizer.instances) == ("is a localizer", "localizer", 1)
    assert localizer.left_out


@pytest.mark.parametrize("lacking", [("RescaleSlope",), ("RescaleIntercept",), ("RescaleSlope", "RescaleIntercept")])
def test_slices_without_the_scaling_that_others_have_are_refused(tmp_path: Path, lacking: tuple[str, ...]) -> None:
    slices = stack(7, kind=CT, RescaleIntercept="-1024", RescaleSlope="1")
    for keyword in lacking:
        del slices[3][keyword]
    series = only_series_in(save(tmp_path, slices))
    assert series.refusal == "has 1 slice without slope or intercept among others with them"
    assert not series.left_out


def test_volumes_of_one_series_may_be_scaled_in_their_own_ways(tmp_path: Path) -> None:
    magnitude = stack(5, ImageType=["ORIGINAL", "PRIMARY", "M"])
    phase = stack(5, ImageType=["ORIGINAL", "PRIMARY", "P"], RescaleSlope="2", RescaleIntercept="-4096")
    found = series_in(save(tmp_path, of_one_series(magnitude, phase)))
    assert [float(read_series(one).array[0, 0, 0, 0]) for one in found] == [5, 10 - 4096]


TYPES = (["ORIGINAL", "PRIMARY", "AXIAL"], ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"])


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("EchoTime", ["98"] * 10 + ["98.01"] * 10),
        ("EchoTime", ["98"] * 17 + ["98.01"] * 3),
        ("EchoTime", ["98", "98.01"] * 10),
        ("KVP", ["120", None] * 10),
        ("ConvolutionKernel", [None] * 3 + ["B30f"] * 17),
        ("ImageType", [TYPES[0]] * 10 + [TYPES[1]] * 10),
        ("TemporalPositionIdentifier", list(range(1, 21))),
    ],
)
def test_noise_in_the_tags_that_tell_kinds_apart_shortens_no_volume(
    tmp_path: Path, keyword: str, values: list[object]
) -> None:
    slices = make_series(np.arange(20, dtype=np.uint16)[:, None, None] + np.zeros((20, 4, 4), dtype=np.uint16))
    for one, value in zip(slices, values, strict=True):
        if value is not None:
            setattr(one, keyword, value)
    series = only_series_in(save(tmp_path, slices))
    assert (series.refusal, series.part, len(series.slices)) == ("", "", 20)
    np.testing.assert_array_equal(read_series(series).array[0, 0, 0], np.arange(20))


@pytest.mark.parametrize(
    ("keyword", "values", "words"),
    [
        ("EchoTime", ["98"] * 17 + ["20"] * 3, "echo time"),
        ("KVP", ["120", "80"] * 10, "tube voltage"),
        ("ImageType", [*TYPES] * 10, "image type"),
        ("TemporalPositionIdentifier", [1, 2] * 10, "time point"),
    ],
)
def test_kinds_that_make_one_stack_only_together_are_refused(
    tmp_path: Path, keyword: str, values: list[object], words: str
) -> None:
    slices = make_series(np.zeros((20, 4, 4), dtype=np.uint16))
    for one, value in zip(slices, values, strict=True):
        setattr(one, keyword, value)
    series = only_series_in(save(tmp_path, slices))
    assert series.refusal.startswith(f"makes one stack of slices that differ in {words}") and not series.left_out


def test_echoes_with_noise_are_split_into_whole_volumes(tmp_path: Path) -> None:
    first, second = stack(1, EchoTime="98"), stack(2, EchoTime="20")
    for one in first[4:]:
        one.EchoTime = "98.01"
    found = series_in(save(tmp_path, of_one_series(first, second)))
    assert [(one.part, len(one.slices)) for one in found] == [("echo time 20", 8), ("echo time 98", 8)]
