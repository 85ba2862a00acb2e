"""Pixels stay bit by bit, and nothing stays beside them: in no element, fragment or segment."""

import struct
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames, parse_basic_offsets

from client.deidentify.choices import ALLOWABLE, Choices, InstanceRefusedError, Reason
from client.deidentify.jpeg import bare_jpeg
from client.deidentify.jpeg_2000 import bare_jpeg_2000
from client.deidentify.pixels import leave_pixels_alone
from client.deidentify.rle import bare_rle
from tests.client.deidentify.made import deidentified, deidentifier, one_image, read
from tests.common.imaging.io.dicom.test_compressed import compress
from tests.dicom_series import make_series, need_tool, save, set_pixels

TEXT = b"by Jo, 12/3 "
"""Too short for what is searched for in raw bytes: it must go because of where it stands."""
TOOLS = {
    "RLE": ["dcmcrle"],
    "JPEG Baseline": ["dcmcjpeg", "+eb"],
    "JPEG Extended": ["dcmcjpeg", "+ee"],
    "JPEG Lossless": ["dcmcjpeg", "+el"],
    "JPEG Lossless SV1": ["dcmcjpeg", "+e1"],
    "JPEG-LS": ["dcmcjpls", "+el"],
    "JPEG-LS near lossless": ["dcmcjpls", "+en"],
    "JPEG 2000 lossless": [uid.JPEG2000Lossless],
    "JPEG 2000": [uid.JPEG2000],
}
ALL = Choices(allowed=ALLOWABLE)


def pixels(bits: int = 12) -> np.ndarray:
    noise = np.random.default_rng(bits).integers(0, 2**bits // 8, (32, 32))
    noise[4:9, 3:12] += 2**bits // 2
    return noise.astype(np.uint8 if bits == 8 else np.uint16)


def compressed(folder: Path, how: str) -> Path:
    """A file whose pixels some other program compressed."""
    bits = 8 if how == "JPEG Baseline" else 12
    (one,) = make_series(pixels(bits)[None], bits_stored=bits)
    plain, path = save(folder / "plain", [one]) / "000.dcm", folder / "other.dcm"
    program, *options = TOOLS[how]
    if program.startswith("dcm"):
        subprocess.run([need_tool(program), *options, plain, path], check=True)
        return path
    original = pydicom.dcmread(plain)
    original.compress(uid.JPEG2000Lossless)
    original.file_meta.TransferSyntaxUID = uid.UID(program)
    original.save_as(path)
    return path


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">HH", 0xFF00 + marker, len(content) + 2) + content


def with_text(frame: bytes, syntax: str) -> bytes:
    """The same frame with text wherever one may stand in it."""
    if syntax == uid.RLELossless:
        count, *offsets = struct.unpack_from("<16I", frame)
        moved = [offset + len(TEXT) if offset else 0 for offset in offsets]
        return struct.pack("<16I", count, *moved) + TEXT + frame[64:] + TEXT
    if syntax not in (uid.JPEG2000, uid.JPEG2000Lossless):
        segments = (
            segment(0xFE, TEXT) + segment(0xED, b"Photoshop " + TEXT) + segment(0xE0, b"JFIF\0" + 9 * b"\0" + TEXT)
        )
        scan = frame.index(b"\xff\xda")
        return frame[:2] + segments + frame[2:scan] + b"\xff" + segment(0xEF, TEXT) + frame[scan:] + TEXT
    comment, first, start = segment(0x64, b"\0\1" + TEXT), frame.index(b"\xff\x90"), frame.index(b"\xff\x93")
    (size,) = struct.unpack_from(">I", frame, first + 6)
    tile = frame[first : first + 6] + struct.pack(">I", size + len(comment)) + frame[first + 10 : start] + comment
    return frame[:first] + comment + tile + frame[start:] + TEXT


def with_fragments(*fragments: bytes) -> bytes:
    """Fragments behind an offset table that is none."""
    items = [TEXT, *fragments]
    return b"".join(
        b"\xfe\xff\0\xe0" + struct.pack("<I", len(one) + len(one) % 2) + one + b"\0" * (len(one) % 2) for one in items
    )


def decoded(path: Path) -> np.ndarray:
    if read(path.read_bytes()).file_meta.TransferSyntaxUID == uid.JPEGExtended12Bit:
        plain = path.with_suffix(".plain")
        subprocess.run([need_tool("dcmdjpeg"), path, plain], check=True)
        path = plain
    return pydicom.dcmread(path).pixel_array


@pytest.mark.parametrize("how", TOOLS)
def test_text_beside_compressed_pixels_goes_and_pixels_stay(tmp_path: Path, how: str) -> None:
    path = compressed(tmp_path, how)
    expected = decoded(path)
    original = pydicom.dcmread(path)
    syntax = original.file_meta.TransferSyntaxUID
    assert len(np.unique(expected)) > 50
    (frame,) = generate_frames(original.PixelData, number_of_frames=1)
    original["PixelData"].value = with_fragments(with_text(frame, syntax), TEXT)
    original.ExtendedOffsetTable, original.ExtendedOffsetTableLengths = TEXT + bytes(4), TEXT + bytes(4)
    original.save_as(path)
    deidentifier(tmp_path).deidentify(path).write(tmp_path / "out.dcm")
    content = (tmp_path / "out.dcm").read_bytes()
    assert TEXT.strip() not in content and b"Photoshop" not in content
    result = read(content)
    assert result.file_meta.TransferSyntaxUID == syntax and "ExtendedOffsetTable" not in result
    assert parse_basic_offsets(result.PixelData) == [0]
    assert np.array_equal(decoded(tmp_path / "out.dcm"), expected)


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian]
)
def test_bytes_behind_uncompressed_pixels_are_cut_off(tmp_path: Path, syntax: str) -> None:
    one = one_image()
    expected, one.PixelData = one.PixelData, one.PixelData + TEXT
    save(tmp_path / "in", [one], syntax)
    assert read(deidentifier(tmp_path).deidentify(tmp_path / "in" / "000.dcm").content).PixelData == expected


@pytest.mark.parametrize(("interpretation", "size"), [("RGB", 16 * 16 * 3), ("YBR_FULL_422", 16 * 16 * 2)])
def test_bytes_behind_pixels_in_colour_are_cut_off(tmp_path: Path, interpretation: str, size: int) -> None:
    one = one_image()
    set_pixels(one, pixels(8)[:16, :16])
    one.SamplesPerPixel, one.PhotometricInterpretation, one.PlanarConfiguration = 3, interpretation, 0
    one.PixelData = bytes(range(256)) * (size // 256) + TEXT
    assert read(deidentified(tmp_path, one, ALL).content).PixelData == one.PixelData[:size]


def test_bytes_behind_pixels_in_floating_point_are_cut_off(tmp_path: Path) -> None:
    one = one_image()
    values = np.linspace(0, 1, 256, dtype=np.float32).tobytes()
    del one.PixelData
    one.add_new("FloatPixelData", "OF", values + TEXT)
    assert read(deidentified(tmp_path, one).content).FloatPixelData == values


def test_further_elements_of_pixels_are_refused_and_those_of_items_go(tmp_path: Path) -> None:
    item = Dataset()
    item.CodeMeaning = "Brain"
    item.add_new("PixelData", "OW", TEXT)
    one = one_image(AnatomicRegionSequence=[item])
    result = read(deidentified(tmp_path, one).content)
    assert "PixelData" in result and "PixelData" not in result.AnatomicRegionSequence[0]
    one.add_new("FloatPixelData", "OF", TEXT)
    with pytest.raises(InstanceRefusedError, match="pixels twice"):
        deidentified(tmp_path, one)


def rle_frames(number: int) -> tuple[Dataset, list[bytes]]:
    """The first of some slices, for the frames of all of them."""
    slices = make_series()[:number]
    for one in slices:
        compress(one, uid.RLELossless)
    return slices[0], [next(generate_frames(one.PixelData, number_of_frames=1)) for one in slices]


def test_frames_are_as_many_as_stated(tmp_path: Path) -> None:
    one, frames = rle_frames(4)
    one["PixelData"].value, one.NumberOfFrames = encapsulate(frames), 3
    save(tmp_path / "in", [one], uid.RLELossless)
    result = read(deidentifier(tmp_path).deidentify(tmp_path / "in" / "000.dcm").content)
    assert list(generate_frames(result.PixelData)) == frames[:3]
    assert result.pixel_array.tobytes() == b"".join(each.PixelData for each in make_series()[:3])
    one.NumberOfFrames = 5
    save(tmp_path / "in", [one], uid.RLELossless)
    with pytest.raises(InstanceRefusedError, match=r"cannot be parsed|fewer pixels"):
        deidentifier(tmp_path).deidentify(tmp_path / "in" / "000.dcm")


def test_compressed_pixels_that_cannot_be_looked_through_are_refused() -> None:
    one, frames = rle_frames(1)
    for syntax, value, reason in (
        (uid.RLELossless, encapsulate([frames[0][:-4]]), Reason.DAMAGED),
        (uid.RLELossless, TEXT, Reason.DAMAGED),
        (uid.JPEGLSLossless, encapsulate(frames), Reason.DAMAGED),
        (uid.JPEG2000Lossless, encapsulate(frames), Reason.DAMAGED),
        (uid.MPEG4HP41, encapsulate(frames), Reason.KIND),
        (uid.DeflatedExplicitVRLittleEndian, encapsulate(frames), Reason.DAMAGED),
    ):
        one["PixelData"].value = value
        with pytest.raises(InstanceRefusedError) as caught:
            leave_pixels_alone(one, syntax)
        assert caught.value.reason is reason and "Jo" not in str(caught.value)


@pytest.mark.parametrize("how", ["RLE", "JPEG Baseline", "JPEG Lossless", "JPEG-LS", "JPEG 2000"])
def test_a_stream_that_is_cut_anywhere_is_refused_and_a_bare_one_stays(tmp_path: Path, how: str) -> None:
    original = pydicom.dcmread(compressed(tmp_path, how))
    (frame,) = generate_frames(original.PixelData, number_of_frames=1)
    bare: Callable[[bytes], bytes] = (
        bare_jpeg if how in ("JPEG Baseline", "JPEG Lossless", "JPEG-LS") else bare_jpeg_2000
    )
    bare = partial(bare_rle, planes=2, pixels=32 * 32) if how == "RLE" else bare
    stream = bare(frame)
    assert bare(stream) == stream
    if how == "JPEG 2000":
        assert bare(struct.pack(">I4s", 8 + len(TEXT), b"uuid") + TEXT + stream) == stream  # in a JP2 file
    for length in range(len(stream) - 2):
        with pytest.raises((ValueError, IndexError, struct.error)):
            bare(stream[:length])


def test_runs_end_with_the_last_pixel() -> None:
    header, text = struct.pack("<16I", 1, 64, *[0] * 14), b"by Jo"
    assert bare_rle(header + b"\xf7A" + text, 1, 10) == header + b"\xf7A"
    assert bare_rle(header + b"\xf7A\x80\x03bcde" + text, 1, 12) == header + b"\xf7A\x80\x01bc"
    assert bare_rle(header + b"\xf7A" + text, 1, 4) == header + b"\x03AAAA\0"


def test_segments_of_numbers_hold_no_more_than_their_numbers(tmp_path: Path) -> None:
    original = pydicom.dcmread(compressed(tmp_path, "JPEG Baseline"))
    (frame,) = generate_frames(original.PixelData, number_of_frames=1)
    for marker in (0xDB, 0xC4, 0xC0, 0xDA):
        at = frame.index(bytes((0xFF, marker))) + 2
        length = int.from_bytes(frame[at : at + 2], "big")
        longer = (length + len(TEXT)).to_bytes(2, "big") + frame[at + 2 : at + length] + TEXT + frame[at + length :]
        with pytest.raises((ValueError, IndexError)):
            bare_jpeg(frame[:at] + longer)


def test_kinds_of_colour_stay_without_what_else_their_segments_hold(tmp_path: Path) -> None:
    original = pydicom.dcmread(compressed(tmp_path, "JPEG Baseline"))
    (frame,) = generate_frames(original.PixelData, number_of_frames=1)
    plain = bare_jpeg(frame)
    adobe = segment(0xEE, b"Adobe" + b"\0d" + b"byJo" + b"\1" + TEXT)
    kept = segment(0xEE, b"Adobe" + b"\0d" + bytes(4) + b"\1")
    assert bare_jpeg(plain[:2] + adobe + plain[2:]) == plain[:2] + kept + plain[2:]
    hp = segment(0xE8, b"mrfx\1")
    assert bare_jpeg(plain[:2] + hp + plain[2:]) == plain[:2] + hp + plain[2:]


def table(keyword: str, descriptor: list[int], data: bytes) -> Dataset:
    one = one_image(PhotometricInterpretation="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        one.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", descriptor)
        one.add_new(f"{colour}PaletteColorLookupTableData", "OW", data if colour == keyword else data[:8])
    return one


@pytest.mark.parametrize(("descriptor", "size"), [([4, 0, 16], 8), ([8, 0, 8], 8)])
def test_tables_that_are_longer_than_their_descriptor_says_are_refused(
    tmp_path: Path, descriptor: list[int], size: int
) -> None:
    kept = read(deidentified(tmp_path, table("Blue", descriptor, bytes(range(size)))).content)
    assert kept.BluePaletteColorLookupTableData == bytes(range(size))
    with pytest.raises(InstanceRefusedError, match="another length than it says in BluePaletteColorLookupTableData"):
        deidentified(tmp_path, table("Blue", descriptor, bytes(range(size)) + TEXT))


def test_binary_numbers_are_as_many_as_the_standard_says_and_no_identifiers(tmp_path: Path) -> None:
    numbers = struct.unpack("<2d", b"Featherstone 12 ")
    one = one_image(PatientName="Featherstone^Octavia")
    one.add_new("DiffusionBValue", "FD", list(numbers))
    one.add_new("DiffusionGradientOrientation", "FD", [1.0, 0.0, 0.0])
    one.add_new("DimensionIndexValues", "UL", [1, 2, 3, 4])
    result = read(deidentified(tmp_path, one).content)
    assert "DiffusionBValue" not in result
    assert result.DiffusionGradientOrientation == [1, 0, 0] and result.DimensionIndexValues == [1, 2, 3, 4]
    one.add_new("DiffusionGradientOrientation", "FD", [1.0, *numbers])
    with pytest.raises(InstanceRefusedError, match="DiffusionGradientOrientation") as caught:
        deidentified(tmp_path, one)
    assert caught.value.reason is Reason.IDENTIFIERS


def test_a_binary_number_of_an_odd_length_goes(tmp_path: Path) -> None:
    path = save(tmp_path / "in", [one_image(DiffusionBValue=1000.0)]) / "000.dcm"
    number = struct.pack("<HH2sHd", 0x0018, 0x9087, b"FD", 8, 1000)
    content = path.read_bytes()
    assert number in content
    path.write_bytes(content.replace(number, struct.pack("<HH2sH", 0x0018, 0x9087, b"FD", len(TEXT)) + TEXT))
    content = deidentifier(tmp_path).deidentify(path).content
    assert "DiffusionBValue" not in read(content) and TEXT not in content
