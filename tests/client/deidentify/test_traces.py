"""Identifiers planted anywhere: none of them is in what is written."""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from client.deidentify.traces import Traces
from client.deidentify.vocabulary import WORDS, words_of_the_field
from tests.client.deidentify.made import deidentified, deidentifier, elements, one_image, outside_pixels, read
from tests.dicom_series import save

TEXTS = {"LO", "LT", "PN", "SH", "ST", "UC", "UT"}
TAGS = sorted(
    tag for tag, (kind, _, _, retired, _) in DicomDictionary.items() if kind in TEXTS and not retired and tag >> 16 >= 8
)
KEPT_TEXTS = [
    *(
        "Manufacturer",
        "ManufacturerModelName",
        "StationName",
        "DeviceSerialNumber",
        "SequenceName",
        "SeriesDescription",
    ),
    *("ProtocolName", "ContrastBolusAgent", "CodeMeaning", "CodeValue", "SegmentLabel", "ROIName", "StackID"),
    *("SeriesDescription", "ConvolutionKernel", "SoftwareVersions", "RescaleType"),
]
NESTS: list[tuple[str, ...]] = [
    (),
    ("AnatomicRegionSequence",),
    ("SegmentSequence", "SegmentedPropertyTypeCodeSequence"),
    ("SharedFunctionalGroupsSequence", "RealWorldValueMappingSequence", "MeasurementUnitsCodeSequence"),
    ("StructureSetROISequence",),
    ("RequestAttributesSequence",),
    ("OriginalAttributesSequence", "ModifiedAttributesSequence"),
]
CHARACTER_SETS = {
    "ISO_IR 6": ("Featherstone^Octavia", "Featherstone"),
    "ISO_IR 100": ("Brückenbäcker^Jörg", "Brückenbäcker"),
    "ISO_IR 144": ("Люксембург^Роза", "Люксембург"),
    "ISO_IR 192": ("Šťastná^Žofie", "Šťastná"),
    "\\ISO 2022 IR 87": ("Yamada^Tarou=山田^太郎=やまだ^たろう", "山田"),
}
SECRETS = ["name", "id", "accession", "hospital", "physician", "birth"]


@dataclass(frozen=True)
class Planted:
    tag: int
    nest: tuple[str, ...]
    before: str
    after: str
    upper: bool


@st.composite
def plants(draw: st.DrawFn) -> Planted:
    named = st.sampled_from(KEPT_TEXTS).map(lambda keyword: int(Tag(keyword)))
    private = st.sampled_from([0x00091001, 0x00E11030, 0x7FE11001])
    filler = st.text("abc XYZ019_-.", max_size=6)
    return Planted(
        tag=draw(st.one_of(named, st.sampled_from(TAGS), private)),
        nest=draw(st.sampled_from(NESTS)),
        before=draw(filler),
        after=draw(filler),
        upper=draw(st.booleans()),
    )


def put(one: Dataset, planted: Planted, secret: str) -> None:
    place = one
    for keyword in planted.nest:
        if keyword not in place:
            setattr(place, keyword, [Dataset()])
        place = place[keyword].value[0]
    text = planted.before + (secret.upper() if planted.upper else secret) + planted.after
    private = Tag(planted.tag).is_private
    kind = "LO" if private else dictionary_VR(planted.tag)
    if private:
        place.add_new(planted.tag >> 16 << 16 | 0x10, "LO", "VENDOR")
    place.add_new(planted.tag, kind, text)


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="traces-"))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(CHARACTER_SETS)),
    st.lists(
        st.tuples(plants(), st.sampled_from(["name", "id", "accession", "hospital", "physician", "birth"])), max_size=6
    ),
)
def test_no_identifier_survives_wherever_it_is_planted(character_set: str, planted: list[tuple[Planted, str]]) -> None:
    name, part = CHARACTER_SETS[character_set]
    one = one_image(SpecificCharacterSet=character_set.split("\\"))
    secrets = {"name": part, "id": "QX-77120934", "accession": "ACC55120981", "hospital": "Klinik Wolkenheim"}
    secrets |= {"physician": "Quacksalver", "birth": "19630517"}
    for plant, which in planted:
        put(one, plant, secrets[which])
    # Only now, so that nothing took the place of a name: without it, nobody can tell that a word elsewhere is one.
    one.PatientName, one.PatientID, one.AccessionNumber = name, "QX-77120934", "ACC55120981"
    one.InstitutionName, one.ReferringPhysicianName = "Klinik Wolkenheim", "Quacksalver^Ferdinand"
    one.PatientBirthDate = "19630517"
    made = deidentified(folder(), one)
    found = outside_pixels(made.content)
    for secret in secrets.values():
        for encoding in ("utf-8", "latin-1", "iso2022_jp", "iso8859_5"):
            raw = secret.encode(encoding, "ignore").lower()
            assert len(raw) < 4 or raw not in found
    texts = " ".join(str(element.value) for element in elements(read(made.content)) if element.VR in TEXTS | {"CS"})
    assert not any(secret.casefold() in texts.casefold() for secret in secrets.values())


def test_nothing_of_the_beginning_of_the_file_stays(tmp_path: Path) -> None:
    path = save(tmp_path / "in", [one_image()]) / "000.dcm"
    with path.open("r+b") as file:
        file.write(b"Octavia Featherstone was here")
    original = read(path.read_bytes())
    original.file_meta.SourceApplicationEntityTitle = "FEATHERSTONE"
    original.file_meta.PrivateInformationCreatorUID, original.file_meta.PrivateInformation = "1.2.3.4.5", b"Octavia "
    original.preamble = path.read_bytes()[:128]
    original.save_as(path)
    content = deidentifier(tmp_path).deidentify(path).content
    assert content[:128] == bytes(128) and b"octavia" not in content.lower() and b"featherstone" not in content.lower()
    assert {element.tag.elem for element in read(content).file_meta} == {0x0, 0x1, 0x2, 0x3, 0x10, 0x12, 0x13}


@pytest.mark.parametrize("character_set", CHARACTER_SETS)
def test_kept_texts_are_the_same_in_every_character_set(tmp_path: Path, character_set: str) -> None:
    labels = {"ISO_IR 100": "Läsion", "ISO_IR 144": "Печень", "ISO_IR 192": "肝臓 ďŕ", "\\ISO 2022 IR 87": "肝臓"}
    label = labels.get(character_set, "lesion")
    item = Dataset()
    item.SegmentNumber, item.SegmentLabel = 1, label
    one = one_image(SpecificCharacterSet=character_set.split("\\"), PatientName=CHARACTER_SETS[character_set][0])
    one.SegmentSequence = [item]
    result = read(deidentified(tmp_path, one).content)
    assert result.SegmentSequence[0].SegmentLabel == label
    assert result.get("SpecificCharacterSet", "") == ("" if label.isascii() else "ISO_IR 192")


def test_kept_texts_have_no_control_characters_and_the_length_of_their_type(tmp_path: Path) -> None:
    item = Dataset()
    item.add_new("SegmentLabel", "LO", "\x1b[31mtumour\r\n")
    item.add_new("SegmentAlgorithmName", "LO", "x" * 70)
    item.add_new("StackID", "SH", "for Octavia Featherstone")  # longer than its type allows
    item.add_new("SegmentNumber", "US", 1)
    one = one_image(PatientName="Featherstone^O")
    one.SegmentSequence = [item]
    (result,) = read(deidentified(tmp_path, one).content).SegmentSequence
    assert (result.SegmentLabel, result.SegmentAlgorithmName) == (" [31mtumour", "x" * 64)
    assert result.StackID == "REMOVED"


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("Lee^Ann", "Lee", True),
        ("Lee^Ann", "sleeve", False),  # too short to look for within words
        ("Lee^Ann", "AB_LEE-2", True),
        ("Mary", "PRIMARY", False),
        ("Head^Otto", "HEAD", False),  # a word of the field
        ("Head^Otto", "Otto", True),
        ("Featherstone", "xfeatherstonex", True),
        ("Müller-Groß^Änne", "Mueller", True),
        ("Müller-Groß^Änne", "MULLER", True),
        ("Müller-Groß^Änne", "gross", True),
        ("Li^X", "Li", False),
        ("李^明明", "患者明明", True),
        ("Philip", "Philips", False),
        ("Unknown", "UNKNOWN", False),
        ("Dr. 1234", "1234", False),
    ],
)
def test_names_are_found_as_people_write_them(name: str, text: str, found: bool) -> None:
    one = Dataset()
    one.PatientName = name
    assert Traces(one).are_in_text(text) is found


@pytest.mark.parametrize(
    ("keyword", "value", "text", "found"),
    [
        ("PatientID", "123", "123", False),
        ("PatientID", "1234", "(1234)", True),
        ("PatientID", "1234", "12345", False),
        ("PatientID", "A12", "a12", True),
        ("PatientID", "200004", "10200004", False),  # within a code
        ("PatientID", "200004", "X00200004", True),
        ("PatientID", "20000456", "1200004567", True),
        ("PatientBirthDate", "19630517", "born 17.05.1963", True),
        ("PatientBirthDate", "19630517", "1963-05-17", True),
        ("InstitutionName", "St. Elsewhere  General", "at st. elsewhere general", True),
        ("InstitutionName", "Hospital", "Hospital", False),
        ("PatientAddress", "Lane 5, Oxford", "x", False),
        ("SOPInstanceUID", "1.2.826.5.77", "made from 1.2.826.5.77", True),
    ],
)
def test_numbers_and_places_are_found(keyword: str, value: str, text: str, found: bool) -> None:
    one, item = Dataset(), Dataset()
    setattr(item, keyword, value)
    one.OtherPatientIDsSequence = [item]
    assert Traces(one).are_in_text(text) is found


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("t1_mprage_sag_p2_iso", "t1 mprage sag iso"),
        ("T1post", "T1post"),
        ("AX T2 FLAIR 3mm Smith", "AX T2 FLAIR 3mm"),
        ("Brain w/o contrast, Dr. Who, 12.04.1960", "Brain w contrast"),
        ("b1000 ep2d", "b1000 ep2d"),
        ("John 19600412", ""),
        ("T1 head 1/9 8-5", "T1 head"),
        ("T1 John 1 2 3 T2 1 2 3 4", "T1 1 2 3 T2"),
        ("", ""),
    ],
)
def test_descriptions_keep_words_of_the_field(before: str, after: str) -> None:
    assert words_of_the_field(before) == after


def test_a_word_of_the_field_that_is_the_name_of_the_patient_leaves_descriptions(tmp_path: Path) -> None:
    one = one_image(PatientName="Short^Head", SeriesDescription="Head short tau T2", BodyPartExamined="HEAD")
    result = read(deidentified(tmp_path, one).content)
    assert result.SeriesDescription == "T2" and result.BodyPartExamined == "HEAD"


@pytest.mark.parametrize(
    ("before", "after"),
    [("9ml Gadovist by Watson", "Gadovist"), ("9ml Watson", "REMOVED"), ("none", "none"), ("n/a", "none"), ("", "")],
)
def test_whether_a_contrast_agent_was_stated_stays(tmp_path: Path, before: str, after: str) -> None:
    one = one_image(ContrastBolusAgent=before, SeriesDescription="Watson")
    result = read(deidentified(tmp_path, one).content)
    assert (result.ContrastBolusAgent, result.SeriesDescription) == (after, "")


def test_words_of_the_field_are_lower_case_and_no_names_of_months_or_people() -> None:
    assert all(word == word.lower() for word in WORDS)
    assert WORDS.isdisjoint({"smith", "john", "mary", "anna", "miller", "may", "june", "lee", "kim"})


def test_an_attribute_of_another_type_than_the_standard_says_is_removed(tmp_path: Path) -> None:
    one = one_image(PatientName="Featherstone^Octavia")
    for keyword, kind, value in (
        ("EchoTime", "LO", "Octavia"),
        ("Modality", "UT", "Octavia"),
        ("FlipAngle", "UN", b"12"),
    ):
        one.add_new(Tag(keyword), kind, value)
    result = read(deidentified(tmp_path, one).content)
    assert "EchoTime" not in result and "Modality" not in result and result.FlipAngle == 12
