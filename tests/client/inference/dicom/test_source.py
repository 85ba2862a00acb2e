"""What results take over from odd sources: all that is valid, nothing that is not."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest

from client.inference.dicom.source import read_source
from common.errors import DataError
from common.imaging.io.dicom.find import find_series
from common.imaging.io.dicom.rules import USUAL_RULES
from common.imaging.io.dicom.volume import read_series
from common.plan.base import Code
from tests.client.inference.dicom.by_hand import errors_of_dciodvfy, made_up, model, write
from tests.common.imaging.io.dicom.test_enhanced import enhance
from tests.dicom_series import make_series, only_series_in, save

GREEK, JAPANESE = "Διονυσιος", "Yamada^Tarou=山田^太郎=やまだ^たろう"
REQUIRED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")


def written(tmp_path: Path, **values: object) -> tuple[pydicom.Dataset, pydicom.Dataset]:
    """Both objects for a series with these values, of which dciodvfy finds both valid."""
    series = only_series_in(save(tmp_path / "series", make_series(**values)))
    objects = write(tmp_path, series, made_up(read_series(series).grid))
    assert not errors_of_dciodvfy(tmp_path / "seg.dcm") and not errors_of_dciodvfy(tmp_path / "sr.dcm")
    return objects


def test_patient_and_study_are_those_of_the_source(tmp_path: Path) -> None:
    values = {
        "PatientBirthDate": "19700102",
        "PatientSex": "O",
        "PatientAge": "050Y",
        "StudyDate": "20200304",
        "StudyTime": "112233.4",
        "StudyID": "S7",
        "AccessionNumber": "A 17*",
        "ReferringPhysicianName": "Doc^The",
        "StudyDescription": "Head",
        "IssuerOfPatientID": "here",
        "PatientWeight": "70",
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": "some",
    }
    series = make_series(**values)
    save(tmp_path / "source", series)
    for one in written(tmp_path, StudyInstanceUID=series[0].StudyInstanceUID, **values):
        assert one.StudyInstanceUID == series[0].StudyInstanceUID
        assert {keyword: one.get(keyword) for keyword in values} == values
        assert (one.PatientName, one.PatientID) == ("Nobody^Here", "P1")


@pytest.mark.parametrize(("ratio", "method"), [("12.5", "ISO_10918_1"), (["4", "3"], ["ISO_10918_1", "ISO_15444_1"])])
def test_a_segmentation_of_what_lost_something_says_so(tmp_path: Path, ratio: object, method: object) -> None:
    slices = make_series()
    for one in slices[3:5]:
        one.LossyImageCompression = "01"
        one.LossyImageCompressionRatio, one.LossyImageCompressionMethod = ratio, method
    series = only_series_in(save(tmp_path / "series", slices))
    for kind in ("binary", "fractional"):
        segmentation, _ = write(tmp_path, series, made_up(read_series(series).grid), kind)
        assert segmentation.LossyImageCompression == "01"
        assert segmentation.LossyImageCompressionRatio == slices[3].LossyImageCompressionRatio
        assert segmentation.LossyImageCompressionMethod == method
        assert not errors_of_dciodvfy(tmp_path / "seg.dcm")


@pytest.mark.parametrize("flag", [None, "", "00", "02"])
def test_a_segmentation_of_what_lost_nothing_says_so(tmp_path: Path, flag: str | None) -> None:
    segmentation, _ = written(tmp_path, LossyImageCompression=flag)
    assert segmentation.LossyImageCompression == "00"
    assert "LossyImageCompressionMethod" not in segmentation


def test_a_ratio_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    folder = save(tmp_path / "series", make_series(LossyImageCompression="01", LossyImageCompressionRatio="12.5"))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"12.5", b"many"))
    assert read_source(only_series_in(folder)).compression == {"LossyImageCompression": "01"}


@pytest.mark.parametrize("method", [None, "one", ["one", "two"]])
def test_codes_of_how_the_source_was_deidentified_are_kept(tmp_path: Path, method: object) -> None:
    codes = []
    for value, meaning in (("113100", "Basic Application Confidentiality Profile"), ("113107", "x" * 65)):
        item = pydicom.Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
        codes.append(item)
    values = {} if method is None else {"DeidentificationMethod": method}
    with warnings.catch_warnings(action="ignore"):
        found = written(tmp_path, PatientIdentityRemoved="YES", DeidentificationMethodCodeSequence=codes, **values)
    for one in found:
        assert (one.PatientIdentityRemoved, one.get("DeidentificationMethod")) == ("YES", method)
        assert one.DeidentificationMethodCodeSequence == codes[:1]


@pytest.mark.parametrize(
    "correction",
    [{"PatientID": "P2"}, {"PatientName": "Some^Body"}, {"StudyDate": "20200101"}, {"AccessionNumber": "2"}],
)
def test_a_correction_of_patient_or_study_gives_other_uids(tmp_path: Path, correction: dict[str, str]) -> None:
    slices = make_series()
    found = []
    for values in ({}, correction, {}):
        for one in slices:
            one.update({"PatientID": "P1", "PatientName": "Nobody", "StudyDate": "", "AccessionNumber": "", **values})
        series = only_series_in(save(tmp_path / "series", slices))
        segmentation, report = write(tmp_path, series, made_up(read_series(series).grid))
        found.append({one.SOPInstanceUID for one in (segmentation, report)})
        found[-1] |= {one.SeriesInstanceUID for one in (segmentation, report)}
    assert found[0] == found[2] and not found[0] & found[1]


def test_what_is_missing_is_empty(tmp_path: Path) -> None:
    slices = make_series()
    for one in slices:
        del one.PatientName, one.PatientID, one.FrameOfReferenceUID
    series = only_series_in(save(tmp_path / "series", slices))
    for one in write(tmp_path, series, made_up(read_series(series).grid)):
        assert [one[keyword].value or "" for keyword in (*REQUIRED, "AccessionNumber")] == [""] * 8
    assert not errors_of_dciodvfy(tmp_path / "seg.dcm") and not errors_of_dciodvfy(tmp_path / "sr.dcm")
    assert pydicom.dcmread(tmp_path / "seg.dcm").FrameOfReferenceUID.startswith("2.25.")


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientName", "x" * 65),
        ("PatientName", "a=b=c=d"),
        ("PatientBirthDate", "19701345"),
        ("PatientBirthDate", "19700102-19800102"),
        ("PatientBirthDate", "2.1.1970"),
        ("PatientSex", "X"),
        ("PatientAge", "50"),
        ("StudyTime", "250000"),
        ("StudyTime", "11:22:33"),
        ("StudyID", "x" * 17),
        ("AccessionNumber", "x" * 17),
        ("StudyDescription", "x" * 200),
        ("PatientIdentityRemoved", "YES"),
    ],
)
def test_a_value_that_the_standard_does_not_allow_is_left_out(tmp_path: Path, keyword: str, value: str) -> None:
    for one in written(tmp_path, **{keyword: value}):
        assert str(one.get(keyword) or "") == ""
        assert one.PatientID == "P1"
    (doubt,) = read_source(only_series_in(tmp_path / "series")).doubts
    assert f"results are without {keyword}: the standard does not allow the value" in doubt and value not in doubt


@pytest.mark.parametrize("value", ["x" * 65, "one\\two", "P1\x1b[2J", "M\xfcller"])
def test_without_its_patient_id_a_series_has_no_results(tmp_path: Path, value: str) -> None:
    slices = make_series(SpecificCharacterSet="ISO_IR 100", PatientID=value)
    folder = save(tmp_path, slices)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", b"ISO_IR 6  "))
    series = only_series_in(folder)
    with pytest.raises(DataError, match=r"has a PatientID that no DICOM object may have .* write NIfTI") as error:
        read_source(series)
    assert value not in str(error.value)


def test_a_source_whose_values_all_are_kept_gives_no_doubts(tmp_path: Path) -> None:
    slices = make_series(PatientBirthDate=" ", StudyID="")
    for one in slices:
        del one.PatientID
    assert read_source(only_series_in(save(tmp_path, slices))).doubts == ()


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 126", GREEK),
        ("ISO_IR 192", "Müller^山田"),
        (["", "ISO 2022 IR 87"], JAPANESE),
        ("GB18030", "Wang^XiaoDong=王^小东"),
    ],
)
def test_names_in_any_character_set_stay_as_they_are(tmp_path: Path, character_set: str, name: str) -> None:
    for one in written(tmp_path, SpecificCharacterSet=character_set, PatientName=name):
        assert str(one.PatientName) == name
        assert one.SpecificCharacterSet == character_set


@pytest.mark.parametrize("words", ["name", "meaning"])
def test_labels_that_the_sources_character_set_lacks_make_it_unicode(tmp_path: Path, words: str) -> None:
    slices = make_series(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    series = only_series_in(save(tmp_path / "series", slices))
    code = Code(scheme="SCT", value="10200004", meaning="海馬")
    applied = model({1: "海馬", 2: "Schwanz"}) if words == "name" else model(codes={1: code})
    segmentation, report = write(tmp_path, series, made_up(read_series(series).grid), applied=applied)
    assert segmentation.SpecificCharacterSet == report.SpecificCharacterSet == "ISO_IR 192"
    assert str(segmentation.PatientName) == str(report.PatientName) == "Müller^Jörg"
    first = segmentation.SegmentSequence[0]
    assert "海馬" in (first.SegmentLabel, first.SegmentedPropertyTypeCodeSequence[0].CodeMeaning)
    assert not errors_of_dciodvfy(tmp_path / "seg.dcm")


@pytest.mark.parametrize("declared", [None, "LATIN1"])
def test_a_name_in_no_character_set_is_left_out(tmp_path: Path, declared: str | None) -> None:
    slices = make_series(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    folder = save(tmp_path / "series", slices)
    for path in folder.iterdir():
        content = path.read_bytes()
        path.write_bytes(content.replace(b"ISO_IR 100", b"ISO_IR 6  " if declared is None else b"LATIN1    "))
    series = only_series_in(folder)
    for one in write(tmp_path, series, made_up(read_series(series).grid)):
        assert not one.PatientName and one.PatientID == "P1"
        assert "SpecificCharacterSet" not in one
    assert not errors_of_dciodvfy(tmp_path / "seg.dcm")


def test_bytes_that_the_character_set_does_not_know_are_left_out(tmp_path: Path) -> None:
    folder = save(tmp_path / "series", make_series(SpecificCharacterSet="ISO_IR 192", PatientName="M__ller"))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"M__ller", b"M\xfcxller"))
    series = only_series_in(folder)
    segmentation, _ = write(tmp_path, series, made_up(read_series(series).grid))
    assert not segmentation.PatientName


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"StudyInstanceUID": "../../1.2"}, "StudyInstanceUID that is none"),
        ({"StudyInstanceUID": ""}, "has no StudyInstanceUID"),
        ({"SeriesInstanceUID": "1.2/3"}, "SeriesInstanceUID that is none"),
        ({"SeriesInstanceUID": "1." + "2" * 63}, "SeriesInstanceUID that is none"),
    ],
)
def test_nothing_refers_to_what_has_no_uid(tmp_path: Path, values: dict[str, str], problem: str) -> None:
    series = only_series_in(save(tmp_path, make_series(**values)))
    with pytest.raises(DataError, match=f"{problem}.*no DICOM object can refer to it; write NIfTI instead"):
        read_source(series)


def test_an_instance_without_uid_is_named_by_its_file(tmp_path: Path) -> None:
    slices = make_series()
    slices[3].SOPInstanceUID = "1.2.x"
    series = only_series_in(save(tmp_path, slices))
    with pytest.raises(DataError, match=r"003\.dcm: series 7.* has a SOPInstanceUID that is none"):
        read_source(series)


def test_no_warning_and_no_log_quotes_a_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        written(tmp_path, PatientName="Singlename", StudyID="x" * 70, StudyTime="99")
        doubts = read_source(only_series_in(tmp_path / "series")).doubts
    said = " ".join([*doubts, *(str(one.message) for one in caught), caplog.text, *capfd.readouterr()])
    assert "Singlename" not in said and "xxx" not in said


def test_enhanced_sources_without_patient_are_written(tmp_path: Path) -> None:
    series = only_series_in(save(tmp_path / "series", [enhance(make_series())]))
    write(tmp_path, series, made_up(read_series(series).grid))
    assert not errors_of_dciodvfy(tmp_path / "seg.dcm") and not errors_of_dciodvfy(tmp_path / "sr.dcm")


def test_damaged_headers_give_valid_objects_or_an_error_of_the_file(tmp_path: Path) -> None:
    voxels = np.arange(6 * 8 * 8, dtype=np.uint16).reshape(6, 8, 8)
    values = {"StudyDate": "20200304", "PatientSex": "O", "SpecificCharacterSet": "ISO_IR 100", "StudyID": "S7"}
    whole = [path.read_bytes() for path in sorted(save(tmp_path / "whole", make_series(voxels, **values)).iterdir())]
    random = np.random.default_rng(4)
    outcomes = Counter[str]()
    for number in range(60):
        folder = tmp_path / str(number)
        folder.mkdir()
        places = random.integers(132, whole[0].index(b"\xe0\x7f\x10\x00"), random.choice((1, 3)))
        for index, content in enumerate(whole):
            damaged = np.frombuffer(content, dtype=np.uint8).copy()
            damaged[places] = random.choice((0, 27, 46, 61, 92, 94, 255))
            (folder / f"{index}.dcm").write_bytes(damaged.tobytes())
        for series in find_series(folder, USUAL_RULES).series:
            if series.grid is None:
                outcomes["refused"] += 1
                continue
            try:
                segmentation, _ = write(tmp_path, series, made_up(series.grid.to_ras()))
            except DataError:
                outcomes["without results"] += 1
                continue
            outcomes["written"] += 1
            assert segmentation.SOPInstanceUID.is_valid
            assert not [one for one in errors_of_dciodvfy(tmp_path / "seg.dcm") if "Leading zeroes" not in one]
    assert min(outcomes[key] for key in ("refused", "without results", "written")) > 3
