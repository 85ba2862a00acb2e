"""Reading and writing NIfTI files.

Voxels are scaled by the file's slope and intercept, if it has them, and reordered to RAS+; nothing else changes them.
Files that cannot be interpreted unambiguously are rejected with an error that names the file.
"""

from __future__ import annotations

import gzip
import mmap
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, OutputError
from common.imaging.geometry import Grid, reorient_from_ras, reorient_to_ras
from common.imaging.volume import Source, Volume

NIFTI_SUFFIXES = (".nii.gz", ".nii")

GRID_TOLERANCE_MM = 0.01
"""Largest distance between corresponding corners of two files on the same grid. Orientations stored as float32
quaternions are off by up to some micrometres; a real mismatch is rarely below a tenth of a millimetre."""

LABEL_ROUNDING = 1e-3
"""Largest deviation from a whole number of a label that is stored as a float or scaled by a slope."""

_MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI codes of metre, millimetre, micrometre; absent means mm
_GZIP_MAGIC = b"\x1f\x8b"
_SINGLE_FILE_MAGICS = (b"n+1", b"n+2")
_TWO_FILE_MAGICS = (b"ni1", b"ni2")


@dataclass(frozen=True, eq=False)
class _Stored:
    """Voxels (x, y, z, channels) as stored in the file, with their scaling and grid."""

    array: NDArray[Any]
    slope: float
    intercept: float
    source: Source

    @property
    def is_scaled(self) -> bool:
        return self.slope != 1.0 or self.intercept != 0.0


def nifti_stem(path: Path) -> str | None:
    """Return the file name without ``.nii`` or ``.nii.gz``; None for another suffix or a hidden file."""
    for suffix in NIFTI_SUFFIXES:
        if path.name.lower().endswith(suffix) and not path.name.startswith("."):
            return path.name[: -len(suffix)]
    return None


def read_volume(paths: Path | Sequence[Path]) -> Volume:
    """Read an image.

    Parameters
    ----------
    paths
        One file (3D, or 4D with channels last), or one 3D file per channel.

    Returns
    -------
    Volume
        The volume in RAS+; intensities are scaled by the file's slope and intercept. Voxel values are not checked.

    Raises
    ------
    DataError
        If a file is missing, truncated, not NIfTI, does not store plain numbers or has no usable affine, or if the
        channels' files are not on one grid.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    if not files:
        raise ValueError("a volume needs at least one file")
    stored = _read_stored(files[0])
    if len(files) == 1:
        return Volume(_to_float32(stored), stored.source.grid.to_ras(), stored.source)
    source, grid = stored.source, stored.source.grid.to_ras()
    array = np.empty((len(files), *grid.shape), dtype=np.float32)
    for channel, path in enumerate(files):
        if channel > 0:
            stored = _read_stored(path)
        if stored.array.shape[3] != 1:
            raise DataError(path, f"has {stored.array.shape[3]} channels, but each file of a case must have one")
        problem = grid_problem(grid, stored.source.grid.to_ras(), files[0])
        if problem:
            raise DataError(path, problem)
        _fill_float32(array[channel : channel + 1], stored)
    return Volume(array, grid, source)


def read_label(path: Path) -> tuple[NDArray[np.uint8], Grid]:
    """Read a label map.

    Returns
    -------
    tuple[NDArray[np.uint8], Grid]
        Label map (x, y, z) uint8 in RAS+ order, and its grid (to compare with ``Volume.grid``).

    Raises
    ------
    DataError
        As for :func:`read_volume`, and if a value is not a whole number from 0 to 255.
    """
    stored = _read_stored(path)
    if stored.array.shape[3] != 1:
        raise DataError(path, f"a label map has one channel, this file has {stored.array.shape[3]}")
    grid = stored.source.grid.to_ras()
    label = np.empty(grid.shape, dtype=np.uint8)
    view = reorient_to_ras(stored.array[..., 0], stored.source.grid)
    if stored.array.dtype == np.uint8 and not stored.is_scaled:
        label[...] = view
    else:
        for y in range(view.shape[1]):
            label[:, y] = _whole_numbers(_scaled(view[:, y], stored), path)
    return label, grid


def channel_count(path: Path) -> int:
    """Read the number of channels of a file from its header.

    Raises
    ------
    DataError
        If the header cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
            file.seek(0)
            data = gzip.GzipFile(fileobj=file).read(540) if start == _GZIP_MAGIC else file.read(540)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(path, f"cannot be read ({error})") from error
    return _shape_4d(_parse_header(data, path), path)[3]


def write_label(path: Path, label: NDArray[np.integer[Any]], source: Source) -> None:
    """Write a label map on the grid of its scan.

    Parameters
    ----------
    path
        Ends in ``.nii`` or ``.nii.gz``; the file appears only once it is complete.
    label
        Whole numbers (x, y, z) in RAS+ order; stored as uint8, or as int16 if a value exceeds 255.
    source
        ``Volume.source`` of the scan; the file gets its shape, affine and orientation codes.

    Raises
    ------
    OutputError
        If the path cannot be written.
    ValueError
        If the shape differs from the scan's, or values are outside 0 to 32767.
    """
    if label.min() < 0 or label.max() > np.iinfo(np.int16).max:
        raise ValueError(f"labels run from {label.min()} to {label.max()}; 0 to 32767 can be stored")
    dtype = np.uint8 if label.max() <= 255 else np.int16
    _write(path, reorient_from_ras(label, source.grid).astype(dtype), source)


def write_image(path: Path, image: NDArray[Any], source: Source, dtype: np.dtype[Any]) -> None:
    """Write an image (x, y, z) in RAS+ order, rounded and clipped for integer types.

    Raises
    ------
    OutputError
        If the path cannot be written.
    ValueError
        If the shape is not that of ``source``.
    """
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        image = np.clip(np.rint(image), limits.min, limits.max)
    _write(path, reorient_from_ras(image, source.grid).astype(dtype), source)


def write_probabilities(path: Path, probabilities: NDArray[np.float32], source: Source) -> None:
    """Write class probabilities (classes, x, y, z) in RAS+ order as a 4D float32 file, classes last.

    Raises
    ------
    OutputError
        If the path cannot be written.
    ValueError
        If the spatial shape is not that of the scan.
    """
    stored = np.moveaxis(reorient_from_ras(probabilities, source.grid), 0, -1)
    _write(path, stored.astype(np.float32, copy=False), source)


def grid_problem(expected: Grid, found: Grid, expected_path: Path) -> str | None:
    """Describe how ``found`` differs from the grid of ``expected_path``; None if they are the same."""
    if expected.shape != found.shape:
        return f"its shape {found.shape} differs from {expected.shape} of {expected_path.name}"
    if not expected.matches(found, GRID_TOLERANCE_MM):
        return (
            f"its affine places voxels up to {expected.displacement_mm(found):.3g} mm away from those of "
            f"{expected_path.name}: resample one onto the other"
        )
    return None


def _read_stored(path: Path) -> _Stored:
    data = _file_content(path)
    header = _parse_header(data, path)
    shape = _shape_4d(header, path)
    try:
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
    except (nibabel.spatialimages.HeaderDataError, KeyError) as error:
        raise DataError(path, f"its NIfTI header is damaged (voxel type or scaling: {error})") from error
    if dtype.kind not in "uif":
        raise DataError(path, f"stores voxels as {dtype}; convert it to an integer or float type")
    offset = max(int(header.get_data_offset()), header.single_vox_offset)
    count = int(np.prod([int(size) for size in shape], dtype=object))
    expected, found = count * dtype.itemsize, max(0, len(data) - offset)
    if found < expected:
        raise DataError(path, f"is truncated: it has {found} of {expected} bytes of voxels. Copy it again")
    array = np.frombuffer(data, dtype=dtype, count=count, offset=offset).reshape(shape, order="F")
    source = Source(_stored_grid(header, shape, path), header)
    return _Stored(array, 1.0 if slope is None else slope, 0.0 if intercept is None else intercept, source)


def _file_content(path: Path) -> bytes | mmap.mmap:
    """Return the file's bytes; gzip content (whatever the file name) is decompressed and its checksum verified."""
    try:
        with path.open("rb") as file:
            if file.read(2) == _GZIP_MAGIC:
                file.seek(0)
                return gzip.decompress(file.read())
            if path.stat().st_size == 0:
                raise DataError(path, "is empty. Copy it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(path, f"is a truncated or damaged gzip file ({error}). Copy it again") from error
    except FileNotFoundError as error:
        raise DataError(path, "does not exist") from error
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror or error})") from error


def _parse_header(data: bytes | mmap.mmap, path: Path) -> Any:
    if len(data) < 348:
        raise DataError(path, "is not a NIfTI file, or is truncated: it is shorter than a NIfTI header")
    size = {bytes(data[:4]), bytes(data[3::-1])}
    is_second = (540).to_bytes(4, "little") in size and len(data) >= 540
    header_class: Any = nibabel.Nifti2Header if is_second else nibabel.Nifti1Header
    # Only the fixed part: extensions may contain anything and are not copied to results.
    fixed = BytesIO(bytes(data[: 540 if is_second else 348]))
    try:
        header = header_class.from_fileobj(fixed, check=False)
    except (nibabel.spatialimages.HeaderDataError, ValueError) as error:
        raise DataError(path, f"is not a NIfTI file ({error})") from error
    magic = bytes(header["magic"].item())[:3]
    if magic in _TWO_FILE_MAGICS:
        raise DataError(path, "is half of a two-file NIfTI (.hdr and .img): convert it to a single .nii or .nii.gz")
    if magic not in _SINGLE_FILE_MAGICS:
        raise DataError(path, "is not a NIfTI file: its header lacks the NIfTI signature")
    # As in the NIfTI-1 standard: sizes are magnitudes, and a missing handedness factor is +1.
    header["pixdim"][1:] = np.abs(header["pixdim"][1:])
    if header["pixdim"][0] not in (1, -1):
        header["pixdim"][0] = 1
    # A code that is not in the standard does not define an orientation.
    for code in ("qform_code", "sform_code"):
        if not 0 <= int(header[code]) <= 5:
            header[code] = 0
    return header


def _shape_4d(header: Any, path: Path) -> tuple[int, int, int, int]:
    """Return the stored shape as (x, y, z, channels); ITK stores channels on the fifth axis, after one time point."""
    try:
        shape = [int(size) for size in header.get_data_shape()]
    except (nibabel.spatialimages.HeaderDataError, ValueError) as error:
        raise DataError(path, f"its NIfTI header is damaged ({error})") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) == 5 and shape[3] == 1:
        shape.pop(3)
    if len(shape) == 3:
        shape.append(1)
    if len(shape) != 4 or min(shape) < 1:
        given = " x ".join(str(size) for size in shape)
        raise DataError(path, f"has the shape {given}; a volume has three axes, and a fourth for channels")
    return (shape[0], shape[1], shape[2], shape[3])


def _stored_grid(header: Any, shape: tuple[int, int, int, int], path: Path) -> Grid:
    try:
        affine = np.array(header.get_best_affine(), dtype=np.float64)
        affine[:3] *= _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
        return Grid(shape[:3], affine)
    except (nibabel.spatialimages.HeaderDataError, ValueError) as error:
        raise DataError(path, f"its affine is unusable: {error}") from error


def _to_float32(stored: _Stored) -> NDArray[np.float32]:
    x, y, z = stored.source.grid.to_ras().shape
    array = np.empty((stored.array.shape[3], x, y, z), dtype=np.float32)
    _fill_float32(array, stored)
    return array


def _fill_float32(target: NDArray[np.float32], stored: _Stored) -> None:
    view = reorient_to_ras(np.moveaxis(stored.array, -1, 0), stored.source.grid)
    # A float64 beyond the float32 range becomes infinite, which is rejected later with the file's name.
    with np.errstate(over="ignore", invalid="ignore"):
        # Plane by plane: files are contiguous along x, arrays along z. Copying between the two orders is twice as fast
        # in pieces that fit the processor's cache, and the float64 intermediates of scaling stay small.
        for y in range(view.shape[2]):
            target[:, :, y] = _scaled(view[:, :, y], stored)


def _scaled(values: NDArray[Any], stored: _Stored) -> NDArray[Any]:
    return values * np.float64(stored.slope) + stored.intercept if stored.is_scaled else values


def _whole_numbers(values: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    rounded = np.rint(values)
    # NaN compares false with everything, so test for valid rather than invalid values.
    if not np.all(np.abs(values - rounded) <= LABEL_ROUNDING):
        raise DataError(path, "holds label values that are not whole numbers: is this an image, or a probability map?")
    if rounded.min() < 0 or rounded.max() > 255:
        worst = rounded.min() if rounded.min() < 0 else rounded.max()
        raise DataError(path, f"holds the label value {worst:g}; labels run from 0 to 255")
    return np.asarray(rounded, dtype=np.uint8)


def _write(path: Path, stored: NDArray[Any], source: Source) -> None:
    if stored.shape[:3] != source.grid.shape:
        raise ValueError(f"the result has the shape {stored.shape[:3]}, its scan has {source.grid.shape}")
    suffix = next((suffix for suffix in NIFTI_SUFFIXES if path.name.endswith(suffix)), None)
    if suffix is None:
        raise OutputError(f"{path}: use a file name that ends in .nii.gz or .nii")
    if source.header is None:
        image = _image_class(None)(stored, source.grid.affine, dtype=stored.dtype)
        image.header.set_xyzt_units("mm")
    else:
        image = _image_class(source.header)(stored, None, _result_header(source.header, stored.dtype))
    partial = path.with_name(f".{path.name.removesuffix(suffix)}.{os.getpid()}.partial{suffix}")
    try:
        image.to_filename(partial)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)


def _image_class(header: Any) -> Any:
    """Return the nibabel image class (NIfTI-1 or NIfTI-2) for a header."""
    return nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image


def _result_header(header: Any, dtype: np.dtype[Any]) -> Any:
    """Copy the scan's header for a result: the same geometry, without the scan's scaling, intent and free text."""
    result = header.copy()
    result["magic"] = header.single_magic
    result["vox_offset"] = 0  # filled in when written
    result.set_data_dtype(dtype)
    result.set_slope_inter(1, 0)
    result.set_intent("none")
    for field in ("descrip", "aux_file"):
        result[field] = b""
    for field in ("cal_min", "cal_max"):
        result[field] = 0
    return result
