"""Which kinds of objects are taken, and whose pixels may show whom they are of."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom import uid as uids
from pydicom.dataset import Dataset

from client.deidentify.choices import Choices, InstanceRefusedError, Reason
from common.imaging.io.dicom.pixel_form import IMAGE_KINDS, LABEL_KINDS
from common.imaging.io.dicom.values import text, whole

_CAPTURES = frozenset(
    {
        uids.SecondaryCaptureImageStorage,
        uids.MultiFrameSingleBitSecondaryCaptureImageStorage,
        uids.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        uids.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
        uids.MultiFrameTrueColorSecondaryCaptureImageStorage,
    }
)
_ULTRASOUND = frozenset(
    {uids.UltrasoundImageStorage, uids.UltrasoundMultiFrameImageStorage, uids.EnhancedUSVolumeStorage}
)
_TAKEN = IMAGE_KINDS.keys() | _CAPTURES | _ULTRASOUND | LABEL_KINDS
_STANDARD = "1.2.840.10008."
_SCREEN_WORDS = ("SCREEN", "CAPTURE", "DOSE", "REPORT")
_OVERLAY_GROUPS = range(0x6000, 0x6020, 2)
_OVERLAY_DATA, _OVERLAY_BITS, _OVERLAY_BIT, _OVERLAY_ROWS = 0x3000, 0x0100, 0x0102, 0x0010

_TEXTS = {
    Reason.BURNED_IN: "says that its pixels show text about the patient (BurnedInAnnotation)",
    Reason.SECONDARY_CAPTURE: "is a screen capture or another secondary capture, whose pixels may show names",
    Reason.ULTRASOUND: "is ultrasound, whose pixels nearly always show names",
    Reason.DERIVED: "is derived and secondary (ImageType), such as a screen capture, whose pixels may show names",
}


def is_registered(uid: str) -> bool:
    """Return whether a UID is one of the standard's own, which stands for the same everywhere."""
    return uid in _TAKEN or (uid.startswith(_STANDARD) and uids.UID(uid).name != uid)


def require_taken(dataset: Dataset, choices: Choices) -> None:
    """Require an object of a kind that is taken, whose pixels give no reason to expect text about the patient.

    Raises
    ------
    InstanceRefusedError
        It is of another kind, or its pixels are a risk that the choices do not allow.
    """
    kind = text(dataset, "SOPClassUID")
    if kind not in _TAKEN:
        name = uids.UID(kind).name if is_registered(kind) else "an unknown kind of object"
        raise InstanceRefusedError(
            Reason.KIND,
            f"is {name}: only CT, MR and PET images, segmentations and structure sets are taken, because other objects "
            "may hold any text",
        )
    for reason in _risks(dataset, kind):
        if reason not in choices.allowed:
            raise InstanceRefusedError(reason, _TEXTS[reason])
    if _has_overlay_in_pixels(dataset):
        raise InstanceRefusedError(
            Reason.OVERLAY, "has an overlay within its pixels, which cannot be removed without changing them"
        )


def _risks(dataset: Dataset, kind: str) -> Iterator[Reason]:
    if text(dataset, "BurnedInAnnotation").upper() not in {"", "NO"}:
        yield Reason.BURNED_IN
    if kind in _ULTRASOUND:
        yield Reason.ULTRASOUND
    image_type = text(dataset, "ImageType").upper().split("\\")
    is_screen = any(word in part for part in image_type[2:] for word in _SCREEN_WORDS)
    is_colour = kind in IMAGE_KINDS and (whole(dataset, "SamplesPerPixel") or 1) > 1
    if kind in _CAPTURES or text(dataset, "ConversionType") or is_screen or is_colour:
        yield Reason.SECONDARY_CAPTURE
    if kind in IMAGE_KINDS and image_type[1:2] == ["SECONDARY"]:
        yield Reason.DERIVED


def _has_overlay_in_pixels(dataset: Dataset) -> bool:
    for group in _OVERLAY_GROUPS:
        at = {number: dataset.get((group, number)) for number in (_OVERLAY_DATA, _OVERLAY_BITS, _OVERLAY_BIT)}
        bits, bit = at[_OVERLAY_BITS], at[_OVERLAY_BIT]
        in_pixels = (bits is not None and bits.value not in {None, 0, 1}) or (bit is not None and bit.value)
        if in_pixels or (at[_OVERLAY_DATA] is None and (group, _OVERLAY_ROWS) in dataset):
            return True
    return False
