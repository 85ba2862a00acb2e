"""DICOM series made in memory: small, exact, and as odd as a test wants them."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from common.imaging.io.dicom.find import find_series
from common.imaging.io.dicom.rules import USUAL_RULES, DicomRules
from common.imaging.io.dicom.slices import Series

CT, MR, PET = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"
KINDS = {CT: "CT", MR: "MR", PET: "PT"}


def make_series(
    voxels: NDArray[np.integer] | None = None,
    *,
    kind: str = MR,
    axes: NDArray[np.float64] | None = None,
    origin: Sequence[float] = (-10.0, 20.0, 30.0),
    bits_stored: int | None = None,
    **values: object,
) -> list[Dataset]:
    """Make a series, in order of its slices.

    Parameters
    ----------
    voxels
        Stored values (slices, rows, columns) of a type with 8, 16 or 32 bits; by default 8 x 16 x 16 different ones.
    kind
        SOP class.
    axes
        Columns: steps in mm, LPS+, from column to column, from row to row and from slice to slice.
    origin
        Position of the first voxel, LPS+.
    bits_stored
        By default all.
    values
        Further elements of all slices, by keyword.
    """
    voxels = np.arange(8 * 16 * 16, dtype=np.uint16).reshape(8, 16, 16) if voxels is None else voxels
    axes = np.diag((0.7, 0.8, 2.5)) if axes is None else axes
    across, down, step = axes.T
    spacing = (float(np.linalg.norm(down)), float(np.linalg.norm(across)))
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    found = []
    for index, plane in enumerate(voxels):
        one = Dataset()
        one.SOPClassUID, one.SOPInstanceUID = UID(kind), generate_uid()
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.Modality, one.SeriesNumber, one.InstanceNumber = KINDS[kind], 7, index + 1
        one.SeriesDescription, one.PatientID, one.PatientName = "made up", "P1", "Nobody^Here"
        one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        one.ImagePositionPatient = exact(np.asarray(origin) + index * step)
        one.ImageOrientationPatient = [*exact(across / spacing[1]), *exact(down / spacing[0])]
        one.PixelSpacing = exact(np.array(spacing))
        one.SliceThickness, one.SpacingBetweenSlices = 1, 1  # wrong, as they often are
        set_pixels(one, plane, bits_stored)
        for keyword, value in values.items():
            setattr(one, keyword, value)
        found.append(one)
    return found


def exact(values: NDArray[np.float64]) -> list[str]:
    """Decimal strings of at most 16 characters."""
    # Rounded first: the sixteenth character of a tiny number may lie within its exponent.
    return [f"{round(float(value), 10):.12g}"[:16] for value in values]


def set_pixels(one: Dataset, plane: NDArray[np.integer], bits_stored: int | None = None) -> None:
    """Set the pixels (rows, columns), and all elements that describe them."""
    one.Rows, one.Columns = plane.shape
    one.BitsAllocated = 8 * plane.dtype.itemsize
    one.BitsStored = bits_stored or one.BitsAllocated
    one.HighBit = one.BitsStored - 1
    one.PixelRepresentation = int(plane.dtype.kind == "i")
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    data = plane.tobytes()
    one.add_new("PixelData", "OB" if plane.dtype.itemsize == 1 else "OW", data + b"\0" * (len(data) % 2))


def save(
    folder: Path, slices: Sequence[Dataset], syntax: str = ExplicitVRLittleEndian, names: Sequence[str] | None = None
) -> Path:
    """Write a file for every slice and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, one in enumerate(slices):
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = UID(syntax)
        one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.save_as(folder / (names[index] if names else f"{index:03d}.dcm"), enforce_file_format=True)
    return folder


def series_in(folder: Path, rules: DicomRules = USUAL_RULES) -> tuple[Series, ...]:
    """The series of a folder in which all files belong to one."""
    found = find_series(folder, rules)
    assert not found.damaged
    return found.series


def only_series_in(folder: Path, rules: DicomRules = USUAL_RULES) -> Series:
    (series,) = series_in(folder, rules)
    return series


@functools.cache
def need_tool(name: str) -> str:
    """The path of a program of a Debian package; skips the test, or fails it where all must run."""
    # Debian has servers in a folder that is not on every PATH.
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if found is None:
        reason = f"{name} is missing: make dicom-tools installs the Debian packages"
        if os.environ.get("FEDVOX_REQUIRE_DICOM_TOOLS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found
