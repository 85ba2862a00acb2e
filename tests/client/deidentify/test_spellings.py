"""Identifiers and dates as people write them, in texts, codes and numbers that are kept."""

from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from client.deidentify.choices import Choices
from client.deidentify.traces import Traces
from client.deidentify.vocabulary import holds_date_or_number
from tests.client.deidentify.made import deidentified, one_image, read
from tests.client.deidentify.test_unchanged import structures
from tests.dicom_series import make_series, save

CHECKED = "BodyPartExamined"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MUELLER^HANS", "Müller GTV"),
        ("JOERGENSEN^A", "Jörgensen"),
        ("LINDSTROEM^A", "Lindstrøm"),
        ("Lindstrøm^A", "Lindstrom"),
        ("Łukasz^A", "Lukasz"),
        ("Lukasz^A", "Łukasz"),
        ("Zolty^J", "GTV Żółty"),
        ("Strasse^J", "Straße"),
        ("Lee^Ann", "LeeTumor"),
        ("Wang^Fang", "tumorWang"),
        ("Kim^Jo", "KimGTV"),
        ("Kim^Jo", "GTVKim"),
        ("Kim^Jo", "Kim2"),
        ("김^지수", "종양지수"),
        ("王^明", "肝王明"),
    ],
)
def test_a_name_is_found_in_every_spelling(name: str, text: str) -> None:
    one = Dataset()
    one.PatientName = name
    assert Traces(one).are_in_text(text)
    assert not Traces(one).are_in_text("Liver left tumorous T2 GTV")


@pytest.mark.parametrize(
    ("keyword", "value", "text"),
    [
        ("PatientID", "12345", "MRN12345"),
        ("PatientID", "4711", "P4711tumor"),
        ("PatientID", "12-34567", "1234567"),
        ("PatientID", "1234567", "12-34567"),
        ("PatientID", "12345678", "12 345 678"),
        ("OtherPatientIDs", "ZX-998877", "ZX998877"),
        ("OtherPatientIDs", "ZX998877", "zx-998 877"),
        ("InstitutionName", "Charité Berlin", "Charite GTV"),
        ("PatientAddress", "Oak Street 5, Springfield", "Springfield"),
        ("CurrentPatientLocation", "Ward 7B Bed 3", "ward 7b bed 3"),
        ("FrameOfReferenceUID", "1.2.3.4.6", "of 1.2.3.4.6"),
        *[
            ("PatientBirthDate", "19850312", text)
            for text in ("12/03/1985", "12-03-1985", "12.3.1985", "850312", "03121985", "3/12/1985", "1985 03 12")
        ],
        ("StudyDate", "20230115", "patched 2023-01-15"),
    ],
)
def test_an_identifier_is_found_in_every_spelling(keyword: str, value: str, text: str) -> None:
    one = Dataset()
    setattr(one, keyword, value)
    assert Traces(one).are_in_text(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("GTV 20230115", True),
        ("PTV 2023-01-15", True),
        ("1/2/34", True),
        ("15 Jan 23", True),
        ("März 23", True),
        ("12May", True),
        ("\N{FULLWIDTH DIGIT ONE}234", True),
        ("PTV margin 5", False),
        ("Vertebra L4/5, 1 of 2", False),
        ("Marker 12", False),
        ("Discovery MR750w", False),
    ],
)
def test_what_looks_like_a_date_or_a_number_of_somebody_is_found(text: str, found: bool) -> None:
    assert holds_date_or_number(text) is found


@pytest.mark.parametrize(
    ("text", "encoding", "character_set"),
    [
        ("Müller", "utf-8", "ISO_IR 192"),
        ("Müller", "latin-1", "ISO_IR 100"),
        ("王小明", "utf-8", "ISO_IR 192"),
        ("王小明", "gb18030", "GB18030"),
    ],
)
def test_text_that_is_no_ascii_is_no_code(tmp_path: Path, text: str, encoding: str, character_set: str) -> None:
    raw = text.encode(encoding)
    raw += b" " * (len(raw) % 2)
    path = save(tmp_path / "in", [one_image(SpecificCharacterSet=character_set, BodyPartExamined="X" * len(raw))])
    content = (path / "000.dcm").read_bytes()
    assert content.count(b"X" * len(raw)) == 1
    (path / "000.dcm").write_bytes(content.replace(b"X" * len(raw), raw))
    original = read((path / "000.dcm").read_bytes())
    assert original.get_item(CHECKED).value == raw
    made = deidentified(tmp_path, original)
    assert read(made.content)[CHECKED].value == "REMOVED" and raw.strip() not in made.content


@pytest.mark.parametrize("dates", ["shifted", "removed"])
def test_the_date_of_the_study_stays_in_no_text_and_no_number(tmp_path: Path, dates: str) -> None:
    slices = make_series(StudyDate="20230115")
    original = structures(slices, ["GTV 20230115", "PTV 2023-01-15", "Liver", "15 Jan 23"])
    original.SeriesNumber, original.StudyDate = 20230115, "20230115"
    original.SoftwareVersions = "patched 2023-01-15 by J. Doe"
    result = read(deidentified(tmp_path, original, Choices(dates=dates)).content)
    assert [one.ROIName for one in result.StructureSetROISequence] == ["REMOVED", "REMOVED", "Liver", "REMOVED"]
    assert result.SeriesNumber is None
    assert result.SoftwareVersions == "REMOVED"
    result = read(deidentified(tmp_path, one_image(AcquisitionNumber=850312, SeriesNumber=1201)).content)
    assert (result.AcquisitionNumber, result.SeriesNumber) == (None, 1201)


@pytest.mark.parametrize(
    ("keyword", "before", "after"),
    [
        ("StationName", "Müller CT", None),
        ("ReceiveCoilName", "tel 555 1234", "REMOVED"),
        ("ReceiveCoilName", "Head coil of Betty", "Head coil of"),
        ("ContrastBolusRoute", "IV by nurse Betty", "IV by"),
        ("SequenceName", "dob 12/03/1985", "REMOVED"),
        ("ConvolutionKernel", ["Br40d", "3"], ["Br40d", "3"]),
        ("ConvolutionKernel", "BONEPLUS", "BONEPLUS"),
        ("RescaleType", "HU", "HU"),
        ("ImagedNucleus", "1H", "1H"),
        ("DeviceSerialNumber", "ZX-4711", "ZX-4711"),
        ("DeviceSerialNumber", "of nurse Betty", "REMOVED"),
        ("ManufacturerModelName", "Optima CT660", "Optima CT660"),
        ("ManufacturerModelName", "Biograph64_mCT", "Biograph64 mCT"),
        ("ManufacturerModelName", "DISCOVERY MR750w", "DISCOVERY MR750w"),
        ("ManufacturerModelName", "Avanto of Mrs Mary", "Avanto of"),
        ("ManufacturerModelName", "Mary's scanner", "s"),
        ("ManufacturerModelName", "Betty", "REMOVED"),
        ("BodyPartExamined", "CHEST2301", "REMOVED"),
    ],
)
def test_free_text_is_reduced_and_codes_stay(tmp_path: Path, keyword: str, before: object, after: object) -> None:
    result = read(deidentified(tmp_path, one_image(**{keyword: before})).content)
    assert result.get(keyword) == after


@pytest.mark.parametrize(
    ("scheme", "meaning", "after"),
    [
        ("SCT", "Liver parenchyma", "Liver parenchyma"),
        ("SCT", "Knee of 12.03.1985", "REMOVED"),
        ("99HOSP", "Knee of Mrs Betty Doe", "Knee of"),
        ("99HOSP", "Betty", "REMOVED"),
    ],
)
def test_meanings_of_private_codes_keep_words_of_the_field(
    tmp_path: Path, scheme: str, meaning: str, after: str
) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "10200004", scheme, meaning
    result = read(deidentified(tmp_path, one_image(AnatomicRegionSequence=[code])).content)
    assert result.AnatomicRegionSequence[0].CodeMeaning == after
    assert result.AnatomicRegionSequence[0].CodeValue == "10200004"


def test_terms_of_the_standard_stay_whoever_bears_a_part_of_one_as_a_name(tmp_path: Path) -> None:
    slices = make_series(PatientName="Plana^Linea")
    original = structures(slices, ["Liver"])
    result = read(deidentified(tmp_path, original).content)
    (contour,) = result.ROIContourSequence[0].ContourSequence
    assert contour.ContourGeometricType == "CLOSED_PLANAR"
    one = one_image(PatientName="Plana^Linea", VOILUTFunction="LINEAR")
    assert read(deidentified(tmp_path, one).content).VOILUTFunction == "LINEAR"


def test_a_number_that_is_a_date_of_the_patient_is_found() -> None:
    one = Dataset()
    one.PatientBirthDate = "19850312"
    assert Traces(one).are_in_numbers("1.5\\19850312")
    assert Traces(one).are_in_numbers("+0850312.0")
    assert not Traces(one).are_in_numbers("1985\\0.850312\\100000\\x")
