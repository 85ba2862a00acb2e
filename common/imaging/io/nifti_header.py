"""The header of a NIfTI file: parsed, repaired where the standard says how, and refused where it is ambiguous."""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from common.errors import DataError
from common.imaging.geometry import Grid

HEADER_BYTES = 540
"""Size of the larger of both headers, that of NIfTI-2."""

_NIFTI1_BYTES = 348
_MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI codes of metre, millimetre, micrometre; absent means mm
_SINGLE_FILE_MAGICS = (b"n+1", b"n+2")
_TWO_FILE_MAGICS = (b"ni1", b"ni2")


@dataclass(frozen=True, eq=False)
class StoredVoxels:
    """Where and how a file stores its voxels.

    Attributes
    ----------
    header
        nibabel's header.
    shape
        (x, y, z, channels) as stored.
    dtype
        Type of the stored numbers.
    slope, intercept
        Scaling of the stored numbers; 1 and 0 for none.
    offset
        Bytes in front of the voxels.
    """

    header: Any
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    slope: float
    intercept: float
    offset: int

    @property
    def count(self) -> int:
        """Voxels of all channels."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes of all voxels."""
        return self.count * self.dtype.itemsize

    def grid(self, path: Path) -> Grid:
        """Return the grid as stored, in mm.

        Raises
        ------
        DataError
            If the affine is unusable.
        """
        try:
            affine = np.array(self.header.get_best_affine(), dtype=np.float64)
            affine[:3] *= _MM_PER_UNIT.get(int(self.header["xyzt_units"]) & 7, 1.0)
            return Grid(self.shape[:3], affine)
        except (nibabel.spatialimages.HeaderDataError, ValueError) as error:
            raise DataError(path, f"its affine is unusable: {error}") from error


def stored_voxels(start: bytes, path: Path) -> StoredVoxels:
    """Parse the first ``HEADER_BYTES`` bytes of a file.

    Raises
    ------
    DataError
        If they are no NIfTI header, or it is damaged or ambiguous.
    """
    header = parse_header(start, path)
    shape = shape_4d(header, path)
    try:
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
    except (nibabel.spatialimages.HeaderDataError, KeyError) as error:
        raise DataError(path, f"its NIfTI header is damaged (voxel type or scaling: {error})") from error
    if dtype.kind not in "uif":
        raise DataError(path, f"stores voxels as {dtype}; convert it to an integer or float type")
    written = float(header["vox_offset"])
    if not 0 <= written < 2**62:
        raise DataError(path, f"its NIfTI header is damaged (vox_offset is {written:g}). Copy it again")
    offset = max(int(written), header.single_vox_offset)
    return StoredVoxels(
        header, shape, dtype, 1.0 if slope is None else slope, 0.0 if intercept is None else intercept, offset
    )


def parse_header(data: bytes, path: Path) -> Any:
    """Parse the fixed part of a header; sizes, handedness and orientation codes are repaired as the standard says.

    Raises
    ------
    DataError
        If the file is not a single-file NIfTI.
    """
    if len(data) < _NIFTI1_BYTES:
        raise DataError(path, "is not a NIfTI file, or is truncated: it is shorter than a NIfTI header")
    size = {data[:4], data[3::-1]}
    is_second = HEADER_BYTES.to_bytes(4, "little") in size and len(data) >= HEADER_BYTES
    header_class: Any = nibabel.Nifti2Header if is_second else nibabel.Nifti1Header
    # Only the fixed part: extensions may contain anything and are not copied to results.
    fixed = BytesIO(data[: HEADER_BYTES if is_second else _NIFTI1_BYTES])
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


def shape_4d(header: Any, path: Path) -> tuple[int, int, int, int]:
    """Return the stored shape as (x, y, z, channels); ITK stores channels on the fifth axis, after one time point.

    Raises
    ------
    DataError
        If the shape is damaged, or that of something else than a volume.
    """
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
