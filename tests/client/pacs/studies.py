"""Small studies for a PACS: good ones, and such as are broken, each in its way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, SecondaryCaptureImageStorage, generate_uid

from tests.dicom_series import exact, make_series, save, set_pixels

Slices = list[Dataset]
SHAPE = (6, 8, 8)


def study(accession: str, seed: int = 0, shape: tuple[int, int, int] = SHAPE, **values: object) -> Slices:
    """A study of one series with voxels of its own."""
    voxels = np.random.default_rng(seed).integers(0, 1000, shape, dtype=np.uint16)
    slices = make_series(voxels, AccessionNumber=accession, PatientID=f"P{seed}", PatientName=f"Muster^Anna{seed}")
    for one in slices:
        for keyword, value in {"StudyDate": "20240131", "StudyDescription": "Knee", **values}.items():
            setattr(one, keyword, value)
    return slices


def write(folder: Path, *studies: Sequence[Dataset]) -> Path:
    """Write studies, a folder each."""
    for number, slices in enumerate(studies):
        save(folder / f"{number:03d}", slices)
    return folder


def _missing_slice(slices: Slices) -> Slices:
    return slices[:2] + slices[3:]


def _doubled_position(slices: Slices) -> Slices:
    slices[3].ImagePositionPatient = slices[2].ImagePositionPatient
    return slices


def _uneven(slices: Slices) -> Slices:
    x, y, z = map(float, slices[3].ImagePositionPatient)
    slices[3].ImagePositionPatient = exact(np.array([x, y, z + 1.1]))
    return slices


def _two_spacings(slices: Slices) -> Slices:
    slices[3].PixelSpacing = ["0.5", "0.5"]
    return slices


def _two_sizes(slices: Slices) -> Slices:
    set_pixels(slices[3], np.zeros((4, 8), dtype=np.uint16))
    return slices


def _tilted(slices: Slices) -> Slices:
    for index, one in enumerate(slices):
        x, y, z = map(float, one.ImagePositionPatient)
        one.ImagePositionPatient = exact(np.array([x, y + 0.8 * index, z]))
    return slices


def _truncated(slices: Slices) -> Slices:
    slices[3].PixelData = slices[3].PixelData[:64]
    return slices


def _burned_in(slices: Slices) -> Slices:
    for one in slices:
        one.BurnedInAnnotation = "YES"
    return slices


def _no_positions(slices: Slices) -> Slices:
    for one in slices:
        del one.ImagePositionPatient
    return slices


def _unspaced(slices: Slices) -> Slices:
    for one in slices:
        one.PixelSpacing = None
    return slices


def _report(slices: Slices) -> Slices:
    one = Dataset()
    for keyword in (
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "AccessionNumber",
        "PatientID",
        "PatientName",
        "StudyDate",
    ):
        setattr(one, keyword, getattr(slices[0], keyword))
    one.SOPClassUID, one.SOPInstanceUID, one.Modality = BasicTextSRStorage, generate_uid(), "SR"
    return [one]


def _capture(slices: Slices) -> Slices:
    for one in slices:
        one.SOPClassUID, one.Modality = SecondaryCaptureImageStorage, "XC"
    return slices


BROKEN: dict[str, tuple[Callable[[Slices], Slices], str]] = {
    "missing": (_missing_slice, "lacks 1 slice"),
    "doubled": (_doubled_position, "has 1 slice at the position of another"),
    "uneven": (_uneven, "irregular slice distances"),
    "spacings": (_two_spacings, "several pixel spacings"),
    "sizes": (_two_sizes, "several sizes"),
    "tilted": (_tilted, "tilted gantry"),
    "truncated": (_truncated, "fewer pixels than it says"),
    "burned in": (_burned_in, "no volume.*BurnedInAnnotation"),
    "nowhere": (_no_positions, "no volume.*no position"),
    "unspaced": (_unspaced, "no PixelSpacing"),
    "report": (_report, "no volume.*Basic Text SR"),
    "capture": (_capture, "no volume.*secondary capture"),
}
"""How a study is broken, and what names it."""
