"""What is refused, each with the reason."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    EncapsulatedPDFStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    MediaStorageDirectoryStorage,
    RawDataStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    XRayAngiographicImageStorage,
)

from client.deidentify.choices import ALLOWABLE, Choices, InstanceRefusedError, Reason
from tests.client.deidentify.made import IDENTITIES, deidentified, deidentifier, one_image, outside_pixels, read
from tests.dicom_series import save

Change = Callable[[Dataset], object]


def setting(**values: object) -> Change:
    return lambda one: [setattr(one, keyword, value) for keyword, value in values.items()]


def with_overlay_in_pixels(one: Dataset) -> None:
    one.add_new(0x60000010, "US", 16)
    one.add_new(0x60000100, "US", 16)
    one.add_new(0x60000102, "US", 12)


RISKS: dict[str, tuple[Change, Reason]] = {
    "says so": (setting(BurnedInAnnotation="YES"), Reason.BURNED_IN),
    "says something else": (setting(BurnedInAnnotation="PERHAPS"), Reason.BURNED_IN),
    "secondary capture": (setting(SOPClassUID=SecondaryCaptureImageStorage), Reason.SECONDARY_CAPTURE),
    "converted": (setting(ConversionType="WSD"), Reason.SECONDARY_CAPTURE),
    "screen": (setting(ImageType=["ORIGINAL", "PRIMARY", "SCREEN SAVE"]), Reason.SECONDARY_CAPTURE),
    "colour": (setting(SamplesPerPixel=3, PixelData=bytes(3 * 512)), Reason.SECONDARY_CAPTURE),
    "ultrasound": (setting(SOPClassUID=UltrasoundImageStorage), Reason.ULTRASOUND),
    "derived": (setting(ImageType=["DERIVED", "SECONDARY", "MPR"]), Reason.DERIVED),
}
KINDS = {
    "report": BasicTextSRStorage,
    "PDF": EncapsulatedPDFStorage,
    "presentation state": GrayscaleSoftcopyPresentationStateStorage,
    "raw data": RawDataStorage,
    "angiography": XRayAngiographicImageStorage,
    "private": "1.2.826.0.1.3680043.9999.1",
}


def refusal(folder: Path, original: Dataset, choices: Choices | None = None) -> InstanceRefusedError:
    with pytest.raises(InstanceRefusedError) as caught:
        deidentified(folder, original, choices)
    assert "Nobody" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("case", RISKS)
def test_pixels_that_may_show_names_are_refused_unless_allowed(tmp_path: Path, case: str) -> None:
    change, reason = RISKS[case]
    one = one_image()
    change(one)
    others = Choices(allowed=ALLOWABLE - {reason})
    assert refusal(tmp_path, one).reason is reason
    assert refusal(tmp_path, one, others).reason is reason
    assert read(deidentified(tmp_path, one, Choices(allowed=frozenset({reason}))).content).PatientID != "P1"


def test_only_risks_of_pixels_can_be_allowed() -> None:
    with pytest.raises(ValueError, match="identifiers"):
        Choices(allowed=frozenset({Reason.IDENTIFIERS}))


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_objects_are_refused_whatever_is_allowed(tmp_path: Path, kind: str) -> None:
    found = refusal(tmp_path, one_image(SOPClassUID=KINDS[kind]), Choices(allowed=ALLOWABLE))
    assert found.reason is Reason.KIND and "only CT, MR and PET images" in str(found)
    assert kind != "private" or KINDS[kind] not in str(found)


def test_an_overlay_within_the_pixels_is_refused(tmp_path: Path) -> None:
    one = one_image()
    with_overlay_in_pixels(one)
    assert refusal(tmp_path, one).reason is Reason.OVERLAY


@pytest.mark.parametrize("missing", ["StudyInstanceUID", "SOPInstanceUID"])
def test_an_instance_without_its_uids_is_refused(tmp_path: Path, missing: str) -> None:
    one = one_image()
    save(tmp_path / "in", [one])
    delattr(one, missing)
    one.save_as(tmp_path / "in" / "000.dcm", enforce_file_format=False)
    with pytest.raises(InstanceRefusedError, match=f"no {missing}"):
        deidentifier(tmp_path).deidentify(tmp_path / "in" / "000.dcm")


@pytest.mark.parametrize(
    "size", [{"Rows": 0}, {"Rows": 17}, {"Columns": 65535}, {"NumberOfFrames": 2}, {"PixelData": b""}]
)
def test_an_image_with_fewer_pixels_than_it_says_is_refused(tmp_path: Path, size: dict[str, object]) -> None:
    found = refusal(tmp_path, one_image(**size))
    assert found.reason is Reason.DAMAGED and "fewer pixels" in str(found)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", Reason.DAMAGED),
        (b"PK\x03\x04" + bytes(400), Reason.DAMAGED),
        (b"Nobody was here\n" * 40, Reason.DAMAGED),
        (bytes(128) + b"DICM" + b"\xff" * 300, Reason.DAMAGED),
    ],
)
def test_what_is_no_dicom_is_refused(tmp_path: Path, content: bytes, reason: Reason) -> None:
    (tmp_path / "x.dcm").write_bytes(content)
    with pytest.raises(InstanceRefusedError) as caught:
        deidentifier(tmp_path).deidentify(tmp_path / "x.dcm")
    assert caught.value.reason in {Reason.DAMAGED, Reason.KIND} and "Nobody" not in str(caught.value)


@pytest.mark.parametrize("share", [0.2, 0.4, 0.5, 0.6, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    path = save(tmp_path / "in", [one_image()]) / "000.dcm"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InstanceRefusedError):
        deidentifier(tmp_path).deidentify(path)


def test_a_private_transfer_syntax_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "in", [one_image()]) / "000.dcm"
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.826.0.1.3680043\0"))
    with pytest.raises(InstanceRefusedError, match="transfer syntax"):
        deidentifier(tmp_path).deidentify(path)


def test_a_dicomdir_is_refused(tmp_path: Path) -> None:
    one = one_image()
    one.SOPClassUID = MediaStorageDirectoryStorage
    assert refusal(tmp_path, one).reason is Reason.KIND


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InstanceRefusedError, match="No such file"):
        deidentifier(tmp_path).deidentify(tmp_path / "none.dcm")


def test_an_identifier_that_would_stay_is_refused_and_only_the_attribute_named(tmp_path: Path) -> None:
    found = refusal(tmp_path, one_image(PatientID="48151623", WindowCenter="48151623", WindowWidth=1))
    assert found.reason is Reason.IDENTIFIERS
    assert "WindowCenter" in str(found) and "48151623" not in str(found)
    lut = Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType = [4, 0, 16], "US"
    lut.add_new("LUTData", "OW", b"ZEBULON ")
    lut.add_new("LUTExplanation", "LO", "none")
    found = refusal(tmp_path, one_image(PatientName="Zebulon^Quist", ModalityLUTSequence=[lut]))
    assert found.reason is Reason.IDENTIFIERS and "LUTData" in str(found)


def test_nothing_of_a_refused_instance_is_recorded(tmp_path: Path) -> None:
    refusal(tmp_path, one_image(PatientID="48151623", WindowCenter="48151623", WindowWidth=1))
    assert "48151623" not in (tmp_path / IDENTITIES / "identities.jsonl").read_text()


@functools.cache
def sound_file() -> bytes:
    item = Dataset()
    item.PatientName, item.CodeMeaning = "Zebulon^Quist", "Brain"
    one = one_image(PatientName="Zebulon^Quist", AnatomicRegionSequence=[item], RequestAttributesSequence=[item])
    return (save(Path(tempfile.mkdtemp(prefix="sound-")), [one]) / "000.dcm").read_bytes()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(132, 1100), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4))
def test_a_damaged_file_is_refused_or_clean(changes: list[tuple[int, bytes]]) -> None:
    content = bytearray(sound_file())
    for position, change in changes:
        content[position : position + len(change)] = change
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.dcm")
        path.write_bytes(content)
        try:
            made = deidentifier(Path(folder)).deidentify(path)
        except InstanceRefusedError as error:
            assert "Quist" not in str(error)
        else:
            assert b"zebulon" not in outside_pixels(made.content)


def test_sequences_without_end_are_refused(tmp_path: Path) -> None:
    item = bytes.fromhex("08001822") + b"SQ\0\0" + b"\xff" * 4 + bytes.fromhex("feff00e0") + b"\xff" * 4
    path = save(tmp_path / "in", [one_image()]) / "000.dcm"
    content = path.read_bytes()
    at = content.index(bytes.fromhex("10001000"))
    path.write_bytes(content[:at] + item * 5000 + content[at:])
    with pytest.raises(InstanceRefusedError):
        deidentifier(tmp_path).deidentify(path)
