"""Slices of an image: one of a classic file, one for each frame of an enhanced multi-frame file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydicom.dataset import Dataset

from common.formatting import counted
from common.imaging.io.dicom.marks import KINDS, MARKS
from common.imaging.io.dicom.slices import PixelForm, RefusedError, Slice
from common.imaging.io.dicom.values import number, numbers, tag_of, text

SHARED_GROUPS, FRAME_GROUPS = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"

SLICE_TAGS = (
    *("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"),
    *("RescaleIntercept", "ModalityLUTSequence", SHARED_GROUPS, FRAME_GROUPS, *MARKS),
)
"""Keywords of the elements that this needs."""

_GROUPS = (
    *("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"),
    *("PixelValueTransformationSequence", "FrameContentSequence", "CardiacSynchronizationSequence"),
    *("CTImageFrameTypeSequence", "CTXRayDetailsSequence", "CTReconstructionSequence", "PETFrameTypeSequence"),
    *("MRImageFrameTypeSequence", "MREchoSequence", "MRModifierSequence", "MRDiffusionSequence"),
    "DiffusionGradientDirectionSequence",  # within the one before it
)
"""Functional groups with something that matters here; each holds one item."""

_NAMES_IN_FRAMES = {
    "EchoTime": "EffectiveEchoTime",
    "InversionTime": "InversionTimes",
    "ImageType": "FrameType",
    "TemporalPositionIdentifier": "TemporalPositionIndex",
    "AcquisitionNumber": "FrameAcquisitionNumber",
    "TriggerTime": "NominalCardiacTriggerDelayTime",
    "AcquisitionTime": "FrameAcquisitionDateTime",
}
"""What an element of a classic image is called in the functional groups."""


class Place(NamedTuple):
    """Where a slice is stored, and in which coordinate system."""

    path: Path
    frame: int
    form: PixelForm
    reference: str


def slices_of(dataset: Dataset, form: PixelForm, path: Path) -> tuple[Slice, ...]:
    """Return the slices of an image.

    Parameters
    ----------
    dataset
        The header, with ``SLICE_TAGS``.
    form
        How its pixels are stored.
    path
        The file.

    Raises
    ------
    RefusedError
        Something about them is missing or cannot be read.
    """
    if tag_of("ModalityLUTSequence") in dataset:
        raise RefusedError("has a scaling of its values that is no straight line")
    if tag_of(FRAME_GROUPS) in dataset:
        frames = list(_frames(dataset))
        names = {keyword: _NAMES_IN_FRAMES.get(keyword, keyword) for keyword in MARKS}
    else:
        frames, names = [dataset], {keyword: keyword for keyword in MARKS}
    if len(frames) != form.frames:
        raise RefusedError(f"has {counted(form.frames, 'frame')} and describes {len(frames):,}")
    reference = text(dataset, "FrameOfReferenceUID")
    return tuple(
        _slice(frame, Place(path, index, form, reference), _marks(frame, names)) for index, frame in enumerate(frames)
    )


def _frames(dataset: Dataset) -> Iterator[Dataset]:
    """Return for each frame its functional groups, shared ones included, as one flat data set."""
    shared = dataset.get(SHARED_GROUPS) or []
    for of_frame in dataset[FRAME_GROUPS].value:
        flat = Dataset()
        for groups in (*shared[:1], of_frame):
            for keyword in _GROUPS:
                items = groups.get(keyword) or flat.get(keyword) or []
                flat.update(items[0] if len(items) else {})
        yield flat


def _slice(dataset: Dataset, place: Place, marks: tuple[str, ...]) -> Slice:
    position = numbers(dataset, "ImagePositionPatient", 3)
    orientation = numbers(dataset, "ImageOrientationPatient", 6)
    if position is None or orientation is None:
        raise RefusedError("has no position in the patient: a projection, or a picture of a screen", left_out=True)
    spacing = numbers(dataset, "PixelSpacing", 2)
    if spacing is None or min(spacing) <= 0:
        raise RefusedError("has no PixelSpacing above 0")
    slope = number(dataset, "RescaleSlope")
    if slope == 0:
        raise RefusedError("has a scaling of its values that is no straight line")
    x, y, z = position
    across, down = orientation[:3], orientation[3:]
    return Slice(
        path=place.path,
        frame=place.frame,
        form=place.form,
        position=(x, y, z),
        row=(across[0], across[1], across[2]),
        column=(down[0], down[1], down[2]),
        spacing=(spacing[0], spacing[1]),
        frame_of_reference=place.reference,
        slope=slope,
        intercept=number(dataset, "RescaleIntercept"),
        marks=marks,
    )


def _marks(dataset: Dataset, names: dict[str, str]) -> tuple[str, ...]:
    """Return the values by which volumes are told apart; those of ``KINDS`` without the noise of their last digits."""
    return tuple(
        _rounded(text(dataset, name)) if keyword in KINDS else text(dataset, name) for keyword, name in names.items()
    )


def _rounded(value: str) -> str:
    try:
        return f"{float(value):.6g}"
    except ValueError:
        return value
