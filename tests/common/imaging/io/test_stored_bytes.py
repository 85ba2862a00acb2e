"""What a file holds is read up to what its header promises, and nothing that is no file is opened."""

from __future__ import annotations

import gzip
import os
import tracemalloc
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest

from common.errors import DataError
from common.imaging.io.nifti import channel_count, read_label, read_volume
from common.imaging.io.stored_bytes import StoredFile

VOXELS = np.arange(1000, dtype=np.int16).reshape(10, 10, 10)


def nifti(voxels: np.ndarray = VOXELS) -> bytes:
    return bytes(nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes())


def bomb(path: Path, megabytes: int) -> Path:
    """A small volume with zeros after it."""
    packer, zeros = zlib.compressobj(9, zlib.DEFLATED, 31), bytes(2**20)
    parts = [packer.compress(nifti()), *(packer.compress(zeros) for _ in range(megabytes)), packer.flush()]
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("read", [read_volume, read_label])
def test_refuses_a_bomb_without_unpacking_it(tmp_path: Path, read) -> None:
    path = bomb(tmp_path / "scan.nii.gz", 300)
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    with pytest.raises(DataError, match=r"scan\.nii\.gz: unpacks to far more than the 2,352 bytes"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20
    assert channel_count(path) == 1


def test_a_little_padding_and_several_members_are_read(tmp_path: Path) -> None:
    content = nifti()
    variants = {
        "padded": gzip.compress(content + bytes(5000)),
        "members": b"".join(gzip.compress(content[start : start + 100]) for start in range(0, len(content), 100)),
        "empty-members": gzip.compress(b"") * 5 + gzip.compress(content) + gzip.compress(b""),
        "zeros-after": gzip.compress(content) + bytes(300),
    }
    for name, data in variants.items():
        (tmp_path / f"{name}.nii.gz").write_bytes(data)
        np.testing.assert_array_equal(read_volume(tmp_path / f"{name}.nii.gz").array[0], VOXELS)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (gzip.compress(nifti()) + b"something else", "damaged gzip"),
        (gzip.compress(nifti())[:-5], "end-of-stream"),
        (gzip.compress(b"") * 3000 + gzip.compress(nifti()), "empty parts|not a NIfTI"),
        (b"\x1f\x8b", "damaged|shorter"),
        (b"", "is empty"),
    ],
)
def test_refuses_damaged_gzip_files(tmp_path: Path, data: bytes, text: str) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"scan\.nii\.gz: .*({text})"):
        read_volume(path)


def test_a_promise_that_the_file_cannot_keep_takes_no_memory(tmp_path: Path) -> None:
    for name, pack in (("a.nii", bytes), ("a.nii.gz", gzip.compress)):
        content = bytearray(nifti())
        content[40:48] = np.array([3, 32000, 32000, 32000], "<i2").tobytes()
        (tmp_path / name).write_bytes(pack(content))
        with pytest.raises(DataError, match=rf"{name}: is truncated: it has \d+ of 65536000000000 bytes"):
            read_volume(tmp_path / name)


def test_a_volume_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """Sparse: 16 TB that take no place on the disk."""
    content = bytearray(nifti())
    content[40:48] = np.array([3, 20000, 20000, 20000], "<i2").tobytes()
    path = tmp_path / "scan.nii"
    path.write_bytes(content)
    try:
        os.truncate(path, 352 + 2 * 20000**3)
    except OSError:
        pytest.skip("this file system has no files of this size")
    with pytest.raises(DataError, match=r"20000 x 20000 x 20000 voxels will not fit: .* GB wanted, .* GB free; crop"):
        read_volume(path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_opens_nothing_that_is_no_regular_file(tmp_path: Path, make) -> None:
    make(tmp_path / "scan.nii")
    for read in (StoredFile, read_volume, read_label, channel_count):
        with pytest.raises(DataError, match=r"scan\.nii: cannot be read: it is a"):
            read(tmp_path / "scan.nii")


@pytest.mark.parametrize("offset", [np.nan, np.inf, -np.inf, -1, 1e30])
def test_an_offset_that_is_no_place_in_a_file_is_damage(tmp_path: Path, offset: float) -> None:
    content = bytearray(nifti())
    content[108:112] = np.array([offset], "<f4").tobytes()
    (tmp_path / "scan.nii").write_bytes(content)
    with pytest.raises(DataError, match=r"scan\.nii: its NIfTI header is damaged \(vox_offset"):
        read_volume(tmp_path / "scan.nii")
