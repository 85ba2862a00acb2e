"""What de-identification leaves alone: pixels, geometry, references between objects, and validity."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.sr.coding import CodedConcept
from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)

from client.deidentify.choices import Choices, Reason
from common.imaging.io.dicom.marks import MARKS
from common.imaging.io.dicom.volume import read_series
from tests.client.deidentify.made import deidentifier, elements, read
from tests.common.imaging.io.dicom.test_enhanced import enhance
from tests.dicom_series import CT, MR, PET, exact, make_series, need_tool, only_series_in, save

REAL = ("brain-ge", "hippocrop-1")
OTHERS = [
    *("693_J2KI", "CT_small", "MR_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_implicit"),
    *("MR_small_jp2klossless", "examples_overlay", "liver_1frame", "liver_expb_1frame", "rtstruct"),
]
"""Files that come with pydicom."""
ALL = Choices(allowed=frozenset({Reason.DERIVED}))


def through(folder: Path, source: Path, choices: Choices = ALL) -> Path:
    """De-identify all files of a folder into another."""
    (folder / "out").mkdir()
    one = deidentifier(folder, choices)
    for number, path in enumerate(sorted(source.rglob("*.dcm"))):
        one.deidentify(path).write(folder / "out" / f"{number:03}.dcm")
    return folder / "out"


def assert_same_volume(before: Path, after: Path) -> None:
    old, new = read_series(only_series_in(before)), read_series(only_series_in(after))
    assert np.array_equal(old.grid.affine, new.grid.affine)
    assert np.array_equal(old.array, new.array) and old.array.std() > 0


def oblique() -> np.ndarray:
    turned, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))
    return turned * [0.71, 0.83, 2.4]


@pytest.mark.parametrize("kind", [CT, MR, PET])
def test_geometry_and_values_stay(tmp_path: Path, kind: str) -> None:
    values = {"RescaleSlope": "0.25", "RescaleIntercept": "-7.5", "PixelPaddingValue": 3, "PatientID": "12"}
    slices = make_series(kind=kind, axes=oblique(), origin=(-93.1234567, 17.7654321, -401.25), **values)
    assert_same_volume(save(tmp_path / "in", slices), through(tmp_path, tmp_path / "in"))


@pytest.mark.parametrize("kind", [CT, MR])
def test_enhanced_images_stay(tmp_path: Path, kind: str) -> None:
    slices = make_series(
        kind=kind, axes=oblique(), PatientName="Featherstone^Octavia", RescaleSlope=2, RescaleIntercept=-9
    )
    one = enhance(slices)
    one.PatientName = "Featherstone^Octavia"
    frame = one.PerFrameFunctionalGroupsSequence[3].FrameContentSequence[0]
    frame.FrameComments, frame.FrameLabel, frame.FrameAcquisitionDateTime = "Octavia", "Octavia", "20200131101112"
    save(tmp_path / "in", [one])
    assert_same_volume(tmp_path / "in", through(tmp_path, tmp_path / "in"))
    content = (tmp_path / "out" / "000.dcm").read_bytes()
    assert b"Octavia" not in content
    (moved,) = values_of(read(content), "FrameAcquisitionDateTime")
    assert moved.endswith("101112") and moved < "20200101"


@pytest.mark.parametrize("name", REAL)
def test_real_series_stay(tmp_path: Path, real_dicom: Path, name: str) -> None:
    assert_same_volume(real_dicom / name, through(tmp_path, real_dicom / name))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_encoding_stays(tmp_path: Path, syntax: str) -> None:
    slices = make_series(PatientName="Featherstone^Octavia", SmallestImagePixelValue=3, ReferencedImageSequence=[])
    out = through(tmp_path, save(tmp_path / "in", slices, syntax))
    assert_same_volume(tmp_path / "in", out)
    result = read((out / "000.dcm").read_bytes())
    assert result.file_meta.TransferSyntaxUID == syntax and result.SmallestImagePixelValue == 3
    assert b"Octavia" not in (out / "000.dcm").read_bytes()


def test_a_file_without_preamble_stays_readable(tmp_path: Path) -> None:
    save(tmp_path / "in", make_series(), ImplicitVRLittleEndian)
    for path in (tmp_path / "in").iterdir():
        one = read(path.read_bytes())
        del one.file_meta
        one.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert_same_volume(tmp_path / "in", through(tmp_path, tmp_path / "in"))


def test_what_tells_volumes_of_a_series_apart_stays(tmp_path: Path) -> None:
    one, *_ = make_series()
    values = {"IS": 7, "DS": 7, "FD": 7.0, "CS": "A", "SH": "A", "LO": "A", "TM": "101112", "US": 7, "UL": 7}
    keywords = [keyword for keyword in MARKS if keyword not in one]
    for keyword in keywords:
        value = values.get(dictionary_VR(keyword), "20200102101112")
        setattr(one, keyword, [value] * int(dictionary_VM(keyword)[0]))
    save(tmp_path / "in", [one])
    result = read((through(tmp_path, tmp_path / "in") / "000.dcm").read_bytes())
    assert [keyword for keyword in MARKS if keyword not in result] == []


def segmentation(sources: list[Dataset], kind: str, label: str) -> Dataset:
    for one in sources:
        for keyword in ("PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber"):
            one.setdefault(keyword, "")
        one.setdefault("ReferringPhysicianName", "")
    mask = np.stack([one.pixel_array % 3 == 0 for one in sources])
    described = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label=label,
        segmented_property_category=CodedConcept("123037004", "SCT", "Anatomical Structure"),
        segmented_property_type=CodedConcept("10200004", "SCT", "Liver"),
        algorithm_type="MANUAL",
        tracking_uid=generate_uid(),
        tracking_id="Octavia's liver",
    )
    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=mask.astype(np.float32) / 2 if kind == "FRACTIONAL" else mask.astype(np.uint8),
        segmentation_type=kind,
        segment_descriptions=[described],
        series_instance_uid=generate_uid(),
        series_number=100,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Nobody",
        manufacturer_model_name="made up",
        software_versions="1",
        device_serial_number="1",
        content_creator_name="Quacksalver^Ferdinand",
    )


def structures(sources: list[Dataset], names: list[str]) -> Dataset:
    def item(**values: object) -> Dataset:
        found = Dataset()
        for keyword, value in values.items():
            setattr(found, keyword, value)
        return found

    images = [
        item(ReferencedSOPClassUID=one.SOPClassUID, ReferencedSOPInstanceUID=one.SOPInstanceUID) for one in sources
    ]
    series = item(SeriesInstanceUID=sources[0].SeriesInstanceUID, ContourImageSequence=images)
    study = item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=sources[0].StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    frame = sources[0].FrameOfReferenceUID
    points = exact(np.array([0.5, 1.25, 30, 5.5, 1.25, 30, 5.5, 9.75, 30]))
    contour = item(
        ContourImageSequence=images[:1],
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=3,
        ContourData=points,
    )
    one = item(
        SOPClassUID=RTStructureSetStorage,
        SOPInstanceUID=generate_uid(),
        StudyInstanceUID=sources[0].StudyInstanceUID,
        SeriesInstanceUID=generate_uid(),
        Modality="RTSTRUCT",
        Manufacturer="Nobody",
        PatientName=sources[0].PatientName,
        PatientID=sources[0].PatientID,
        SeriesNumber=1,
        OperatorsName="Quacksalver^Ferdinand",
        StructureSetLabel="Octavia",
        StructureSetDate="20200131",
        StructureSetTime="101112",
        ReferencedFrameOfReferenceSequence=[item(FrameOfReferenceUID=frame, RTReferencedStudySequence=[study])],
    )
    numbers = range(1, len(names) + 1)
    one.StructureSetROISequence = Sequence(
        item(ROINumber=n, ReferencedFrameOfReferenceUID=frame, ROIName=name, ROIGenerationAlgorithm="MANUAL")
        for n, name in zip(numbers, names, strict=True)
    )
    one.ROIContourSequence = Sequence(item(ReferencedROINumber=n, ContourSequence=[contour]) for n in numbers)
    one.RTROIObservationsSequence = Sequence(
        item(ObservationNumber=n, ReferencedROINumber=n, RTROIInterpretedType="ORGAN", ROIInterpreter="Quacksalver")
        for n in numbers
    )
    return one


def values_of(dataset: Dataset, *keywords: str) -> Iterator[str]:
    return (str(element.value) for element in elements(dataset) if element.keyword in keywords)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_segmentations_still_belong_to_their_images(tmp_path: Path, kind: str) -> None:
    slices = make_series(PatientName="Featherstone^Octavia", SpacingBetweenSlices="2.5")
    save(tmp_path / "in", slices)
    original = segmentation(slices, kind, "tumour")
    save(tmp_path / "in", [*slices, original])
    results = [read(path.read_bytes()) for path in sorted(through(tmp_path, tmp_path / "in").iterdir())]
    images, result = results[:-1], results[-1]
    sources = {one.SOPInstanceUID for one in images}
    assert len(sources) == 8
    assert set(values_of(result, "ReferencedSOPInstanceUID")) == sources
    assert result.StudyInstanceUID == images[0].StudyInstanceUID != slices[0].StudyInstanceUID
    assert result.FrameOfReferenceUID == images[0].FrameOfReferenceUID
    assert result.ReferencedSeriesSequence[0].SeriesInstanceUID == images[0].SeriesInstanceUID
    assert result.PixelData == original.PixelData
    assert [one.SegmentLabel for one in result.SegmentSequence][-1] == "tumour"
    assert result.SegmentSequence[-1].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    volume = highdicom.seg.Segmentation.from_dataset(result).get_volume()
    expected = highdicom.seg.Segmentation.from_dataset(original).get_volume()
    assert np.array_equal(volume.array, expected.array) and np.array_equal(volume.affine, expected.affine)


def test_structure_sets_still_belong_to_their_images(tmp_path: Path) -> None:
    slices = make_series(PatientName="Featherstone^Octavia", PatientID="OF-1234")
    original = structures(slices, ["Liver", "Octavia GTV", "of-1234", "Heart_L"])
    save(tmp_path / "in", [*slices, original])
    results = [read(path.read_bytes()) for path in sorted(through(tmp_path, tmp_path / "in").iterdir())]
    images, result = results[:-1], results[-1]
    assert [one.ROIName for one in result.StructureSetROISequence] == ["Liver", "REMOVED", "REMOVED", "Heart_L"]
    (frame,) = result.ReferencedFrameOfReferenceSequence
    (study,) = frame.RTReferencedStudySequence
    assert study.ReferencedSOPInstanceUID == images[0].StudyInstanceUID
    (series,) = study.RTReferencedSeriesSequence
    assert series.SeriesInstanceUID == images[0].SeriesInstanceUID
    assert [one.ReferencedSOPInstanceUID for one in series.ContourImageSequence] == [
        one.SOPInstanceUID for one in images
    ]
    assert {*values_of(result, "ReferencedFrameOfReferenceUID", "FrameOfReferenceUID")} == {
        images[0].FrameOfReferenceUID
    }
    before, after = original.ROIContourSequence[0], result.ROIContourSequence[0]
    assert before.ContourSequence[0].ContourData == after.ContourSequence[0].ContourData
    assert (result.StructureSetLabel, result.RTROIObservationsSequence[0].ROIInterpreter) == ("STRUCTURES", "")
    assert result.StructureSetTime == "101112" and result.StructureSetDate < "20200102"


def test_another_secret_makes_another_file(tmp_path: Path) -> None:
    one, *_ = make_series(StudyDate="20200131", ReferencedImageSequence=[])
    path = save(tmp_path / "in", [one]) / "000.dcm"
    first, again, other = (
        read(deidentifier(tmp_path / name).deidentify(path).content) for name in ("first", "first", "other")
    )
    ours = {"SOPClassUID", "MediaStorageSOPClassUID", "TransferSyntaxUID", "ImplementationClassUID"}
    uids, repeated, others = (
        {str(element.value) for element in elements(made) if element.VR == "UI" and element.keyword not in ours}
        for made in (first, again, other)
    )
    assert uids == repeated and len(uids) == 4 and uids.isdisjoint(others)
    assert first.PatientID == again.PatientID != other.PatientID
    assert first.StudyDate == again.StudyDate


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_programs_stay_readable_and_valid(tmp_path: Path, name: str) -> None:
    path = Path(pydicom.__file__).parent / "data" / "test_files" / f"{name}.dcm"
    out = tmp_path / "out.dcm"
    deidentifier(tmp_path, ALL).deidentify(path).write(out)
    before, after = pydicom.dcmread(path, force=True), read(out.read_bytes())
    if "PixelData" in before:
        assert np.array_equal(before.pixel_array, after.pixel_array)
    assert before.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian) == after.file_meta.TransferSyntaxUID
    assert {element.keyword for element in before if element.tag.group == 0x28} - {"", *after.dir()} == set()
    assert errors_of(out) - errors_of(path) == set()


def test_a_patient_keeps_the_distance_of_their_dates_and_others_get_another(tmp_path: Path) -> None:
    days = []
    for patient, date in (("A", "20200228"), ("A", "20200301"), ("B", "20200301")):
        one, *_ = make_series(PatientID=patient, StudyDate=date)
        path = save(tmp_path / patient / date, [one]) / "000.dcm"
        days.append(np.datetime64(_dashed(read(deidentifier(tmp_path).deidentify(path).content).StudyDate)))
    assert days[1] - days[0] == np.timedelta64(2, "D")
    assert days[2] != days[1]


def _dashed(date: str) -> str:
    return f"{date[:4]}-{date[4:6]}-{date[6:]}"


def errors_of(path: Path) -> set[str]:
    """What the validator calls an error, without numbers of items."""
    said = subprocess.run(
        [need_tool("dciodvfy"), "-new", str(path)], capture_output=True, text=True, check=False
    ).stderr
    return {re.sub(r"\[\d+\]", "", line) for line in said.splitlines() if line.startswith("Error")}


def test_no_error_of_validity_is_new(tmp_path: Path, real_dicom: Path) -> None:
    slices = make_series(PatientName="Featherstone^Octavia", kind=CT)
    save(tmp_path / "slices", slices)
    objects = [slices[0], segmentation(slices, "BINARY", "tumour"), segmentation(slices, "FRACTIONAL", "tumour")]
    save(tmp_path / "in", [*objects, structures(slices, ["Liver"])])
    for name in REAL:
        (tmp_path / "in" / f"{name}.dcm").write_bytes(min((real_dicom / name).rglob("*.dcm")).read_bytes())
    out = through(tmp_path, tmp_path / "in")
    for before, after in zip(sorted((tmp_path / "in").iterdir()), sorted(out.iterdir()), strict=True):
        assert errors_of(after) - errors_of(before) == set(), before.name
