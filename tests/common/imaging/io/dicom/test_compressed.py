"""Compressed pixels equal the uncompressed ones, bit by bit, in every lossless transfer syntax that is read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import JPEG2000, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from common.errors import DataError
from common.imaging.io.dicom.volume import read_series
from tests.dicom_series import make_series, need_tool, only_series_in, save

FORMS = [("u1", 8), ("u2", 16), ("i2", 16), ("u2", 12), ("i2", 12)]
TOOLS = {
    "JPEG Lossless": ("dcmcjpeg", "+el"),
    "JPEG Lossless SV1": ("dcmcjpeg", "+e1"),
    "JPEG-LS": ("dcmcjpls", "+el"),
    "RLE": ("dcmcrle",),
    "deflated": ("dcmconv", "+td"),
}


def head(dtype: str, bits: int) -> NDArray[np.integer]:
    """Voxels (slices, rows, columns): a round thing with noise, over the whole range of its bits."""
    z, y, x = np.ogrid[-1:1:6j, -1:1:64j, -1:1:72j]
    noise = np.random.default_rng(3).uniform(0, 0.1, (6, 64, 72))
    shape = np.clip(1 - x**2 - y**2 - z**2, 0, 0.9) + noise
    low = -(2 ** (bits - 1)) if dtype.startswith("i") else 0
    return np.asarray((low + shape * (2**bits - 1)).astype(dtype))


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(("dtype", "bits"), [("u1", 8), ("u2", 16), ("i2", 12)])
def test_what_dcmtk_compresses_is_read_bit_by_bit(tmp_path: Path, tool: str, dtype: str, bits: int) -> None:
    plain = save(tmp_path / "plain", make_series(head(dtype, bits), bits_stored=bits))
    (tmp_path / "other").mkdir()
    program, *options = TOOLS[tool]
    for path in plain.iterdir():
        subprocess.run([need_tool(program), *options, path, tmp_path / "other" / path.name], check=True)
    assert_equal(tmp_path / "other", plain)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEG2000], ids=lambda one: one.name)
@pytest.mark.parametrize(("dtype", "bits"), FORMS)
def test_what_pydicom_compresses_is_read_bit_by_bit(tmp_path: Path, syntax: str, dtype: str, bits: int) -> None:
    plain = save(tmp_path / "plain", make_series(head(dtype, bits), bits_stored=bits))
    slices = make_series(head(dtype, bits), bits_stored=bits)
    for one in slices:
        compress(one, syntax)
    assert_equal(save(tmp_path / "other", slices, syntax), plain)


def compress(one: Dataset, syntax: str) -> None:
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.set_original_encoding(False, True)
    one.compress(JPEG2000Lossless if syntax == JPEG2000 else syntax, generate_instance_uid=False)


def assert_equal(folder: Path, plain: Path) -> None:
    series, expected = only_series_in(folder), read_series(only_series_in(plain))
    assert series.refusal == ""
    np.testing.assert_array_equal(read_series(series).array, expected.array)
    assert len(np.unique(expected.array)) > 100


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_compressed_pixels_that_are_cut_are_an_error_of_their_file(tmp_path: Path, keep: float) -> None:
    slices = make_series(head("u2", 16))
    for one in slices:
        compress(one, JPEG2000Lossless)
    save(tmp_path, slices, JPEG2000Lossless)
    path = tmp_path / "003.dcm"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(DataError, match=r"003\.dcm: is damaged: its pixel data cannot be read"):
        read_series(only_series_in(tmp_path))


def test_a_compressed_file_that_promises_what_it_cannot_hold_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    slices = make_series(head("u2", 16))
    for one in slices:
        compress(one, RLELossless)
        one.Rows, one.Columns = 60_000, 60_000
    assert (
        "promises 60,000 x 60,000 pixels, which its file cannot hold"
        in only_series_in(save(tmp_path, slices, RLELossless)).refusal
    )


def test_pixels_of_another_size_than_the_header_says_are_an_error(tmp_path: Path) -> None:
    slices = make_series(head("u2", 16))
    for one in slices:
        compress(one, JPEG2000Lossless)
        one.Rows = 60
    with pytest.raises(DataError, match=r"\.dcm: (is damaged: its pixel data|holds pixels of another size)"):
        read_series(only_series_in(save(tmp_path, slices, JPEG2000Lossless)))


def test_a_stream_of_another_size_is_an_error_and_does_not_end_the_process(tmp_path: Path) -> None:
    """It says 40000 x 40000 in its own header, where DICOM's says 64 x 72; GDCM aborts on it."""
    slices = make_series(head("u2", 16))
    for one in slices:
        compress(one, JPEGLSLossless)
        at = one.PixelData.index(b"\xff\xf7") + 5
        one.PixelData = one.PixelData[:at] + 2 * (40_000).to_bytes(2, "big") + one.PixelData[at + 4 :]
    with pytest.raises(DataError, match=r"\.dcm: (is damaged: its pixel data|holds pixels of another size)"):
        read_series(only_series_in(save(tmp_path, slices, JPEGLSLossless)))


@pytest.mark.parametrize("tool", ["JPEG Lossless SV1", "JPEG-LS", "RLE"])
def test_a_real_slice_is_the_same_compressed(real_dicom: Path, tmp_path: Path, tool: str) -> None:
    program, *options = TOOLS[tool]
    for path in (one.path for one in only_series_in(real_dicom / "brain-ge").slices[:6]):
        (tmp_path / "plain").mkdir(exist_ok=True)
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "plain" / path.name).write_bytes(path.read_bytes())
        subprocess.run([need_tool(program), *options, path, tmp_path / "other" / path.name], check=True)
    assert_equal(tmp_path / "other", tmp_path / "plain")
