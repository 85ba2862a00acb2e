"""Values of voxels: the stored ones, scaled, whatever the form in which they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from common.errors import DataError
from common.imaging.io.dicom.volume import read_series
from tests.dicom_series import CT, MR, PET, make_series, only_series_in, save

SHAPE = (8, 10, 12)


def values_in(folder: Path) -> NDArray[np.float32]:
    """Voxels of the only series as (slices, rows, columns)."""
    volume = read_series(only_series_in(folder))
    assert volume.source.orientation == "LPS"
    return np.asarray(volume.array[0, ::-1, ::-1].transpose(2, 1, 0))


def random_voxels(dtype: str, bits: int) -> NDArray[np.integer]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if dtype.startswith("i") else (0, 2**bits)
    return np.random.default_rng(1).integers(low, high, SHAPE, dtype=np.int64).astype(dtype)


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize(("dtype", "bits"), [("u1", 8), ("u2", 16), ("i2", 16), ("u2", 12), ("i2", 12), ("u4", 20)])
def test_stored_values_are_read_in_all_uncompressed_forms(tmp_path: Path, syntax: str, dtype: str, bits: int) -> None:
    voxels = random_voxels(dtype, bits)
    stored = voxels.astype(voxels.dtype.newbyteorder(">")) if syntax == ExplicitVRBigEndian else voxels
    slices = make_series(stored, bits_stored=bits)
    save(tmp_path, slices, syntax)
    np.testing.assert_array_equal(values_in(tmp_path), voxels.astype(np.float32))


@pytest.mark.parametrize("dtype", ["u2", "i2"])
def test_bits_that_are_not_the_pixels_own_are_ignored(tmp_path: Path, dtype: str) -> None:
    voxels = random_voxels(dtype, 12)
    with_overlay = (voxels.view("u2") & 0x0FFF) | 0xA000  # an overlay plane of old in the upper bits
    slices = make_series(with_overlay.view(dtype), bits_stored=12)
    np.testing.assert_array_equal(values_in(save(tmp_path, slices)), voxels.astype(np.float32))


@pytest.mark.parametrize("dtype", ["u2", "i2"])
def test_pixels_in_the_upper_bits_are_shifted(tmp_path: Path, dtype: str) -> None:
    voxels = random_voxels(dtype, 12)
    slices = make_series((voxels << 4) | 5, bits_stored=12, HighBit=15)
    np.testing.assert_array_equal(values_in(save(tmp_path, slices)), voxels.astype(np.float32))


def test_every_slice_has_its_own_slope_and_intercept(tmp_path: Path) -> None:
    voxels = random_voxels("u2", 15)
    slices = make_series(voxels, kind=PET)
    for index, one in enumerate(slices):
        one.RescaleSlope, one.RescaleIntercept = f"{0.25 + index}", f"{index - 3.5}"
    factors = np.arange(8)[:, None, None]
    expected = (voxels * (0.25 + factors) + (factors - 3.5)).astype(np.float32)
    np.testing.assert_array_equal(values_in(save(tmp_path, slices)), expected)


@pytest.mark.parametrize(("dtype", "bits"), [("u2", 12), ("i2", 16)])
def test_monochrome1_is_turned_so_that_more_is_brighter(tmp_path: Path, dtype: str, bits: int) -> None:
    voxels = random_voxels(dtype, bits)
    slices = make_series(voxels, bits_stored=bits, PhotometricInterpretation="MONOCHROME1")
    darkest = (2**bits - 1) if dtype == "u2" else -1
    np.testing.assert_array_equal(values_in(save(tmp_path, slices)), (darkest - voxels.astype(int)).astype(np.float32))


@pytest.mark.parametrize("kind", [CT, PET])
def test_monochrome1_changes_no_physical_units(tmp_path: Path, kind: str) -> None:
    voxels = random_voxels("u2", 12)
    slices = make_series(
        voxels, kind=kind, bits_stored=12, PhotometricInterpretation="MONOCHROME1", RescaleIntercept=-1024
    )
    np.testing.assert_array_equal(values_in(save(tmp_path, slices)), voxels.astype(np.float32) - 1024)


@pytest.mark.parametrize(
    ("written", "limit", "expected"), [(-2000, None, [-2000]), (63536, None, [-2000]), (-2000, -1990, [-2000, -1995])]
)
def test_padding_gets_the_lowest_value_of_the_image(
    tmp_path: Path, written: int, limit: int | None, expected: list[int]
) -> None:
    voxels = np.random.default_rng(2).integers(-1000, 3000, SHAPE, dtype=np.int16)
    for value in expected:
        voxels[:, 0, :3] = value
        voxels[:, 1, 3:5] = expected[0]
    slices = make_series(voxels, kind=CT, RescaleIntercept=-24)
    for one in slices:
        one.add_new("PixelPaddingValue", "US" if written > 0 else "SS", written)
        if limit is not None:
            one.add_new("PixelPaddingRangeLimit", "SS", limit)
    real = voxels > -1990
    wanted = np.where(real, voxels, voxels[real].min()).astype(np.float32) - 24
    np.testing.assert_array_equal(values_in(save(tmp_path, slices)), wanted)


@pytest.mark.parametrize("implicit", [False, True])
def test_padding_below_the_bits_that_are_stored_is_found(tmp_path: Path, implicit: bool) -> None:
    """12 of 16 bits; without types in the file, the element is read as if it had no sign."""
    voxels = np.random.default_rng(2).integers(-900, 2000, SHAPE, dtype=np.int16)
    voxels[:, 0, :3] = -2000
    slices = make_series(voxels, kind=CT, bits_stored=12)
    for one in slices:
        one.add_new("PixelPaddingValue", "SS", -2000)
    folder = save(tmp_path, slices, ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian)
    wanted = np.where(voxels == -2000, voxels[voxels > -2000].min(), voxels).astype(np.float32)
    np.testing.assert_array_equal(values_in(folder), wanted)


def test_items_of_a_compressed_image_are_no_pixels(tmp_path: Path) -> None:
    folder = save(tmp_path, make_series())
    for path in folder.glob("**/*.dcm"):
        content = path.read_bytes()
        at = content.index(b"\xe0\x7f\x10\x00O")
        path.write_bytes(content[: at + 8] + b"\xff\xff\xff\xff" + content[at + 12 :])
    with pytest.raises(DataError, match="compressed pixel data under an uncompressed transfer syntax"):
        values_in(folder)


def test_nothing_but_padding_is_refused(tmp_path: Path) -> None:
    slices = make_series(np.full(SHAPE, 7, dtype=np.uint16), PixelPaddingValue=7)
    with pytest.raises(DataError, match=r"series 7 'made up', 8 instances: holds nothing but padding"):
        values_in(save(tmp_path, slices))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"SamplesPerPixel": 3}, "is in colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "no grey image (PALETTE COLOR)"),
        ({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, "stores 1 of 1 bits"),
        ({"BitsStored": 20}, "stores 20 of 16 bits"),
        ({"Rows": 65535, "Columns": 65535}, "truncated pixel data: 240 of 8,589,672,450 bytes"),
        ({"Rows": 0}, "empty shell"),
        ({"Rows": 11}, "truncated pixel data: 240 of 264 bytes"),
    ],
)
def test_pixels_that_cannot_be_read_refuse_the_series(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    slices = make_series(random_voxels("u2", 16))
    for keyword, value in change.items():
        setattr(slices[2], keyword, value)
    found = only_series_in(save(tmp_path, slices)).refusal
    assert reason in found and "(in 1 instance, such as 002.dcm)" in found


def test_a_file_that_is_cut_after_its_header_was_read_is_an_error(tmp_path: Path) -> None:
    series = only_series_in(save(tmp_path, make_series()))
    file = tmp_path / "004.dcm"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"004\.dcm: has truncated pixel data"):
        read_series(series)


def test_instances_without_pixels_are_an_empty_shell(tmp_path: Path) -> None:
    slices = make_series()
    for one in slices:
        del one.PixelData
    assert "no pixel data: an empty shell" in only_series_in(save(tmp_path, slices)).refusal


def test_a_file_without_preamble_is_read(tmp_path: Path) -> None:
    voxels = random_voxels("i2", 16)
    slices = make_series(voxels)
    for index, one in enumerate(slices):
        path = tmp_path / f"{index}"
        bare(one).save_as(path, implicit_vr=bool(index % 2), little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(values_in(tmp_path), voxels.astype(np.float32))


def bare(one: Dataset) -> Dataset:
    """The data set without file meta information."""
    return Dataset(one)


def test_mr_is_inverted_only_where_it_says_so(tmp_path: Path) -> None:
    voxels = random_voxels("u2", 12)
    assert (values_in(save(tmp_path, make_series(voxels, kind=MR, bits_stored=12))) == voxels).all()


def test_bytes_in_big_endian_words_are_refused(tmp_path: Path) -> None:
    """Two pixels change places in each word, as pydicom's own reading shows."""
    voxels = random_voxels("u1", 8)
    slices = make_series(voxels)
    for one in slices:
        one.add_new("PixelData", "OW", np.frombuffer(one.PixelData, "<u2").astype(">u2").tobytes())
    save(tmp_path, slices, ExplicitVRBigEndian)
    np.testing.assert_array_equal(pydicom.dcmread(tmp_path / "000.dcm").pixel_array, voxels[0])
    series = only_series_in(tmp_path)
    assert series.refusal.startswith("stores pixels of 8 bits in big-endian words, which is not read")
    assert not series.left_out
