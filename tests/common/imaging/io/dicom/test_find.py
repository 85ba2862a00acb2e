"""Everything that lies among DICOM files, and DICOM files as no one should write them."""

from __future__ import annotations

import os
import resource
import zipfile
import zlib
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from common.errors import DataError
from common.imaging.io.dicom.find import find_series, holds_dicom
from common.imaging.io.dicom.header import looks_like_dicom, read_header
from common.imaging.io.dicom.rules import USUAL_RULES
from common.imaging.io.dicom.volume import read_series
from tests.dicom_series import make_series, only_series_in, save


def test_other_files_are_named_and_in_nobodys_way(tmp_path: Path) -> None:
    save(tmp_path, make_series())
    (tmp_path / "notes.txt").write_text("three scans of the head")
    (tmp_path / "empty").touch()
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(tmp_path / "000.dcm", "000.dcm")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    found = find_series(tmp_path, USUAL_RULES)
    assert {path.name for path in found.others} == {"notes.txt", "empty", "more.zip", "pipe", "broken"}
    assert [series.refusal for series in found.series] == [""]


def test_a_dicomdir_is_no_image(tmp_path: Path) -> None:
    save(tmp_path, make_series())
    directory = Dataset()
    directory.SOPClassUID, directory.SOPInstanceUID = UID("1.2.840.10008.1.3.10"), generate_uid()
    directory.SeriesInstanceUID = generate_uid()
    save(tmp_path / "root", [directory], names=["DICOMDIR"])
    found = find_series(tmp_path, USUAL_RULES)
    assert [path.name for path in found.others] == ["DICOMDIR"]
    assert len(found.series) == 1


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("1.2.840.10008.5.1.4.1.1.481.3", "RT Structure Set"),
        ("1.2.840.10008.5.1.4.1.1.66.4", "Segmentation"),
        ("1.2.840.10008.5.1.4.1.1.88.33", "Comprehensive SR"),
        ("1.2.840.10008.5.1.4.1.1.7", "Secondary Capture Image"),
        ("1.3.46.670589.5.0.3", "private"),
    ],
)
def test_objects_that_are_no_images_of_volumes_are_left_out_by_name(tmp_path: Path, kind: str, name: str) -> None:
    series = only_series_in(save(tmp_path, make_series(SOPClassUID=UID(kind))))
    assert series.left_out and f"holds {name} objects, which are not read as images" in series.refusal


@pytest.mark.parametrize(
    ("syntax", "reason"),
    [
        ("1.2.840.113619.5.2", "private transfer syntax (1.2.840.113619.5.2)"),
        ("1.2.3.4", "private transfer syntax (1.2.3.4)"),
        ("1.2.840.10008.1.2.4.51", "the transfer syntax JPEG Extended"),
        ("1.2.840.10008.1.2.4.102", "the transfer syntax MPEG-4"),
    ],
)
def test_other_transfer_syntaxes_are_refused_by_name(tmp_path: Path, syntax: str, reason: str) -> None:
    save(tmp_path, make_series())
    for path in tmp_path.iterdir():
        path.write_bytes(with_syntax(path.read_bytes(), syntax))
    refusal = only_series_in(tmp_path).refusal
    assert reason in refusal and "which is not read: export it uncompressed" in refusal


def with_syntax(content: bytes, syntax: str) -> bytes:
    """A file with another transfer syntax than it is in."""
    old = ExplicitVRLittleEndian.encode() + b"\0"
    new = syntax.encode() + b"\0" * (len(syntax) % 2)
    element = b"\x02\x00\x10\x00UI"
    assert element + len(old).to_bytes(2, "little") + old in content
    changed = content.replace(
        element + len(old).to_bytes(2, "little") + old, element + len(new).to_bytes(2, "little") + new, 1
    )
    length = int.from_bytes(changed[140:144], "little") + len(new) - len(old)
    return changed[:140] + length.to_bytes(4, "little") + changed[144:]


def test_a_deflated_file_that_fills_the_memory_is_refused_before(tmp_path: Path) -> None:
    (one,) = make_series(np.ones((1, 4, 4), dtype=np.uint16))
    save(tmp_path, [one], DeflatedExplicitVRLittleEndian)
    content = (tmp_path / "000.dcm").read_bytes()
    meta = content[: 144 + int.from_bytes(content[140:144], "little")]
    inner = zlib.decompress(content[len(meta) :], -zlib.MAX_WBITS)
    size = 3 * 2**29
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    head = inner + b"\xe0\x7f\x10\x00OW\0\0" + size.to_bytes(4, "little")
    start = deflater.compress(head) + deflater.flush(zlib.Z_FULL_FLUSH)
    zeros = deflater.compress(bytes(2**24)) + deflater.flush(zlib.Z_FULL_FLUSH)  # may be repeated as it is
    bomb = start + zeros * (size // 2**24) + deflater.flush()
    (tmp_path / "000.dcm").write_bytes(meta + bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"inflates to more than 1,073,741,824 bytes"):
        read_header(tmp_path / "000.dcm")
    (tmp_path / "000.dcm").write_bytes((meta + bomb)[132:])
    with pytest.raises(DataError, match=r"is deflated and has no preamble"):
        read_header(tmp_path / "000.dcm")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_a_series_that_does_not_fit_into_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    save(tmp_path, make_series(np.ones((150, 2, 2), dtype=np.uint16)))
    edge, size = 46_000, 2 * 46_000**2
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        for element in (b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x11\x00US\x02\x00"):
            at = content.index(element) + len(element)
            content = content[:at] + edge.to_bytes(2, "little") + content[at + 2 :]
        at = content.index(b"\xe0\x7f\x10\x00OW") + 8
        path.write_bytes(content[:at] + size.to_bytes(4, "little"))
        os.truncate(path, at + 4 + size)  # takes no room on disk
    series = only_series_in(tmp_path)
    assert series.refusal == ""
    with pytest.raises(DataError, match=r"a volume of 46000 x 46000 x 150 voxels will not fit: 1,270 GB wanted"):
        read_series(series)


def test_sequences_without_end_are_an_error_of_their_file(tmp_path: Path) -> None:
    save(tmp_path, make_series())
    content = (tmp_path / "003.dcm").read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    nested = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    (tmp_path / "003.dcm").write_bytes(content[:start] + nested * 5000)
    found = find_series(tmp_path, USUAL_RULES)
    assert [error.path.name for error in found.damaged] + [path.name for path in found.others] == ["003.dcm"]


@settings(max_examples=60)
@given(st.data())
def test_damage_anywhere_ends_in_a_volume_or_in_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    if not folder.exists():
        save(folder, make_series(np.arange(8 * 16, dtype=np.uint16).reshape(8, 4, 4), EchoTime=3))
        (folder / "003.dcm").rename(folder / "original")
    content = bytearray((folder / "original").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(128, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=4))
    path = folder / "003.dcm"
    path.write_bytes(content[: data.draw(st.sampled_from((len(content), data.draw(st.integers(0, len(content))))))])
    for series in find_series(folder, USUAL_RULES).series:
        if not series.refusal:
            with suppress(DataError):
                read_series(series)


@pytest.mark.parametrize("change", ["sequence", "letters", "order"])
def test_unusual_headers_are_read_as_usual_ones(tmp_path: Path, change: str) -> None:
    """The same elements, skimmed here and read by pydicom."""
    values = {"EchoTime": "3.25", "RescaleSlope": "2", "RescaleIntercept": "-7", "PixelPaddingValue": 3, "KVP": ""}
    (one,) = make_series(np.ones((1, 6, 6), dtype=np.int16), **values)
    usual = read_header(save(tmp_path / "usual", [one]) / "000.dcm")
    if change == "sequence":
        one.ReferencedImageSequence = [Dataset()]
        one["ReferencedImageSequence"].is_undefined_length = True
    elif change == "letters":
        one.SpecificCharacterSet, one.SeriesDescription = "ISO_IR 192", "头"
    save(tmp_path / "other", [one], ImplicitVRLittleEndian if change == "order" else ExplicitVRLittleEndian)
    other = read_header(tmp_path / "other" / "000.dcm")
    assert usual is not None and other is not None
    description = "头" if change == "letters" else "made up"
    assert other.description == description and usual.description == "made up"
    for name in ("study", "series", "uid", "kind", "number", "modality", "image_type", "problem"):
        assert getattr(other, name) == getattr(usual, name)
    ((ours,), (theirs,)) = usual.slices, other.slices
    for field in fields(ours):
        if field.name not in ("path", "form"):
            assert getattr(ours, field.name) == getattr(theirs, field.name)
    assert replace(ours.form, offset=0, syntax="") == replace(theirs.form, offset=0, syntax="")


def test_only_files_that_begin_as_dicom_does_are_opened_as_such(tmp_path: Path) -> None:
    save(tmp_path / "archive", make_series()[:1])
    assert looks_like_dicom(tmp_path / "archive" / "000.dcm") and holds_dicom(tmp_path)
    for content in (b"", b"DICM", bytes(132), b"PK\x03\x04" + bytes(200), b"\x08\x00\x05\x01", b"hello" * 100):
        (tmp_path / "file").write_bytes(content)
        assert not looks_like_dicom(tmp_path / "file")
        assert not holds_dicom(tmp_path / "file")


def test_meta_information_alone_is_no_series(tmp_path: Path) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    save(tmp_path, make_series()[:1])
    content = (tmp_path / "000.dcm").read_bytes()
    (tmp_path / "000.dcm").write_bytes(content[: 144 + int.from_bytes(content[140:144], "little")])
    assert [path.name for path in find_series(tmp_path, USUAL_RULES).others] == ["000.dcm"]
