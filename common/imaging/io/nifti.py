"""Reading and writing NIfTI files.

Voxels are scaled by the file's slope and intercept, if it has them, and reordered to RAS+; nothing else changes them.
Files that cannot be interpreted unambiguously are rejected with an error that names the file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, OutputError
from common.imaging.geometry import Grid, reorient_from_ras, reorient_to_ras
from common.imaging.io.nifti_header import HEADER_BYTES, parse_header, shape_4d, stored_voxels
from common.imaging.io.stored_bytes import StoredFile
from common.imaging.volume import Source, Volume
from common.system.memory import MemoryLimitError, require_memory

NIFTI_SUFFIXES = (".nii.gz", ".nii")

GRID_TOLERANCE_MM = 0.01
"""Largest distance between corresponding corners of two files on the same grid. Orientations stored as float32
quaternions are off by up to some micrometres; a real mismatch is rarely below a tenth of a millimetre."""

LABEL_ROUNDING = 1e-3
"""Largest deviation from a whole number of a label that is stored as a float or scaled by a slope."""


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
    stored = _read_stored(files[0], 4 * len(files))
    if len(files) == 1:
        return Volume(_to_float32(stored), stored.source.grid.to_ras(), stored.source)
    source, grid = stored.source, stored.source.grid.to_ras()
    array = np.empty((len(files), *grid.shape), dtype=np.float32)
    for channel, path in enumerate(files):
        if channel > 0:
            stored = _read_stored(path, 0)
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
    stored = _read_stored(path, 1)
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
    return shape_4d(parse_header(StoredFile(path).start(HEADER_BYTES), path), path)[3]


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


def _read_stored(path: Path, voxel_bytes: int) -> _Stored:
    """Read a file's voxels, of which the caller makes an array with ``voxel_bytes`` each."""
    file = StoredFile(path)
    voxels = stored_voxels(file.start(HEADER_BYTES), path)
    promised = voxels.offset + voxels.size
    if promised <= file.most_bytes():
        try:
            wanted = voxels.count * voxel_bytes + (promised if file.is_compressed else 0)
            require_memory(
                wanted, f"a volume of {' x '.join(map(str, voxels.shape[:3]))} voxels", "crop or resample it"
            )
        except MemoryLimitError as error:
            raise DataError(path, str(error)) from error
    data = file.content(promised)
    found = max(0, len(data) - voxels.offset)
    if found < voxels.size:
        raise DataError(path, f"is truncated: it has {found} of {voxels.size} bytes of voxels. Copy it again")
    array = np.frombuffer(data, dtype=voxels.dtype, count=voxels.count, offset=voxels.offset)
    source = Source(voxels.grid(path), voxels.header)
    return _Stored(array.reshape(voxels.shape, order="F"), voxels.slope, voxels.intercept, source)


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
    # Free text may hold identifiers; NIfTI-2 has no db_name.
    for field in {"descrip", "aux_file", "db_name"} & set(result.keys()):
        result[field] = b""
    for field in ("cal_min", "cal_max"):
        result[field] = 0
    return result
