"""Compressed frames are compared with their headers first, and no damaged one ends the process that reads it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless

from common.errors import DataError
from common.imaging.io.dicom.decoding.codestream import StreamSize, stream_size
from common.imaging.io.dicom.slices import Series
from common.imaging.io.dicom.volume import read_series
from tests.common.imaging.io.dicom.test_compressed import compress, head
from tests.dicom_series import make_series, need_tool, only_series_in, save

DCMTK = {"JPEG Baseline": ("dcmcjpeg", "+eb"), "JPEG Lossless": ("dcmcjpeg", "+e1")}
PYDICOM = {"JPEG-LS": JPEGLSLossless, "JPEG 2000": JPEG2000Lossless}
SIZES = {"JPEG Baseline": b"\xff\xc0", "JPEG Lossless": b"\xff\xc3", "JPEG-LS": b"\xff\xf7", "JPEG 2000": b"\xff\x51"}


def compressed(folder: Path, form: str, bits: int = 8) -> Path:
    """A series of six slices of 64 x 72 pixels in a compressed form."""
    slices = make_series(head("u1" if bits == 8 else "u2", bits), bits_stored=bits)
    if form in PYDICOM:
        for one in slices:
            compress(one, PYDICOM[form])
        return save(folder, slices, PYDICOM[form])
    plain = save(folder.with_name(f"{folder.name} plain"), slices)
    folder.mkdir()
    program, option = DCMTK[form]
    for path in plain.iterdir():
        subprocess.run([need_tool(program), option, path, folder / path.name], check=True)
    return folder


def frame_of(path: Path) -> bytes:
    return get_frame(dcmread(path).PixelData, 0, number_of_frames=1)


def replace_frame(path: Path, frame: bytes) -> None:
    one = dcmread(path)
    one.PixelData = encapsulate([frame])
    one.save_as(path)


def patched(frame: bytes, at: int, new: bytes) -> bytes:
    return frame[:at] + new + frame[at + len(new) :]


@pytest.mark.parametrize(("form", "bits"), [(form, 8) for form in SIZES] + [("JPEG-LS", 12), ("JPEG 2000", 16)])
def test_sizes_are_those_that_were_compressed(tmp_path: Path, form: str, bits: int) -> None:
    path = compressed(tmp_path / "in", form, bits) / "000.dcm"
    syntax = str(dcmread(path).file_meta.TransferSyntaxUID)
    assert stream_size(frame_of(path), syntax) == StreamSize(columns=72, rows=64, components=1, bits=bits)


@pytest.mark.parametrize("form", SIZES)
def test_a_stream_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path, form: str) -> None:
    """Decoders would take 3 GB for the 40,000 x 40,000 pixels of a stream of a few kilobytes."""
    folder = compressed(tmp_path / "in", form)
    frame = frame_of(folder / "003.dcm")
    at = frame.index(SIZES[form])
    if form == "JPEG 2000":
        frame = patched(frame, at + 6, 2 * (40_000).to_bytes(4, "big"))
    else:
        frame = patched(frame, at + 5, 2 * (40_000).to_bytes(2, "big"))
    replace_frame(folder / "003.dcm", frame)
    with pytest.raises(DataError, match=r"003\.dcm: holds pixels of another size .*: 40,000 x 40,000, not 72 x 64"):
        read_series(only_series_in(folder))


@pytest.mark.parametrize(
    ("form", "at", "new", "reason"),
    [
        ("JPEG Lossless", 4, b"\x10", "1 values of 16 bits, not 1 of 8"),
        ("JPEG Lossless", 9, b"\x03", "3 values of 8 bits, not 1 of 8"),
        ("JPEG 2000", 38, b"\x00\x04", "4 values of 8 bits, not 1 of 8"),
        ("JPEG 2000", 40, b"\x25", "1 values of 38 bits, not 1 of 8"),
    ],
)
def test_a_stream_of_other_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, form: str, at: int, new: bytes, reason: str
) -> None:
    folder = compressed(tmp_path / "in", form)
    frame = frame_of(folder / "000.dcm")
    replace_frame(folder / "000.dcm", patched(frame, frame.index(SIZES[form]) + at, new))
    with pytest.raises(DataError, match=rf"000\.dcm: holds other pixels than its header says: {reason}"):
        read_series(only_series_in(folder))


@pytest.mark.parametrize("form", SIZES)
@pytest.mark.parametrize(
    "content", [b"\0\0", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"GIF89a" + bytes(90), b"\xff\x4f\xff\x51"]
)
def test_a_stream_without_a_size_is_refused(tmp_path: Path, form: str, content: bytes) -> None:
    folder = compressed(tmp_path / "in", form)
    replace_frame(folder / "000.dcm", content)
    with pytest.raises(DataError, match=r"000\.dcm: is damaged: its pixel data has no header that"):
        read_series(only_series_in(folder))


@pytest.mark.parametrize(
    ("form", "name", "at"),
    [("JPEG Lossless", "004.dcm", 3), ("JPEG Baseline", "000.dcm", 129)],
    ids=["a marker that is none", "a quantisation step of zero"],
)
def test_damage_that_ends_the_decoder_is_an_error_of_its_file(tmp_path: Path, form: str, name: str, at: int) -> None:
    """GDCM calls abort() on these."""
    good = compressed(tmp_path / "good", form)
    before = read_series(only_series_in(good)).array
    bad = compressed(tmp_path / "bad", form)
    replace_frame(bad / name, patched(frame_of(bad / name), at, b"\0"))
    with pytest.raises(DataError, match=rf"{name}: is damaged: its pixel data ended the decoder \(SIGABRT\)"):
        read_series(only_series_in(bad))
    np.testing.assert_array_equal(read_series(only_series_in(good)).array, before)


def test_one_process_decodes_series_after_series_and_its_death_between_them_harms_none(tmp_path: Path) -> None:
    series = [only_series_in(compressed(tmp_path / name, "JPEG-LS")) for name in ("a", "b")]
    before = read_series(series[0]).array
    (process,) = decoders()
    read_series(series[1])
    assert decoders() == [process]
    os.kill(process, signal.SIGKILL)
    np.testing.assert_array_equal(read_series(series[0]).array, before)
    assert process not in decoders()


def decoders() -> list[int]:
    """Processes of this one that decode."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == os.getpid() and b"decoding.child" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.mark.long
@pytest.mark.parametrize("form", SIZES)
def test_bytes_damaged_at_random_end_in_a_volume_or_in_an_error(tmp_path: Path, form: str) -> None:
    folder = compressed(tmp_path / "in", form)
    series: Series = only_series_in(folder)
    frame = frame_of(folder / "002.dcm")
    chance = random.Random(5)
    for _ in range(10):
        damaged = bytearray(frame)
        for _ in range(chance.choice((1, 2, 4))):
            damaged[chance.randrange(2, 200)] = chance.choice((0, 255, chance.randrange(256)))
        replace_frame(folder / "002.dcm", bytes(damaged))
        with suppress(DataError):
            read_series(series)
