"""Slices of a series, and a series as a volume or as refused: plain values, without pydicom."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from common.formatting import counted, visible
from common.imaging.geometry import Grid
from common.imaging.io.dicom.tilt import UPRIGHT, Shift

LONGEST_SHOWN = 64
"""Characters of a value from a file that are shown; some programs write whole pages into a description."""

Point = tuple[float, float, float]


class RefusedError(Exception):
    """Slices or instances cannot be read as a volume.

    Attributes
    ----------
    reason
        Continues "the series ..."; control characters of values are visible.
    left_out
        True for what an archive always holds beside its volumes, such as localizers: no fault of anybody.
    """

    def __init__(self, reason: str, left_out: bool = False) -> None:
        self.reason = reason
        self.left_out = left_out
        super().__init__(reason)


def shown(text: str) -> str:
    """Return a value from a file so that a terminal or a log can print it: no control characters, not too long."""
    cut = text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."
    return visible(cut)


@dataclass(frozen=True, slots=True)
class PixelForm:
    """How a file stores its pixels.

    Attributes
    ----------
    rows, columns
        Size of a frame.
    frames
        Number of frames.
    bits_allocated, bits_stored, high_bit
        Bits of a pixel, those in use, and the highest of these, from 0.
    is_signed
        Whether stored values have a sign (two's complement).
    is_inverted
        Whether lower values are brighter, in an image without physical units.
    padding
        Lowest and highest stored value that stand for "no image here".
    syntax
        Transfer syntax UID.
    offset
        Where uncompressed pixels begin in the file; None if pydicom must find them.
    """

    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    is_inverted: bool
    padding: tuple[int, int] | None
    syntax: str
    offset: int | None

    @property
    def frame_bytes(self) -> int:
        """Bytes of one uncompressed frame."""
        return self.rows * self.columns * self.bits_allocated // 8


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice: a file, or a frame of a multi-frame file.

    Attributes
    ----------
    path
        The file.
    frame
        Frame of the file, from 0.
    form
        How the file stores its pixels.
    position
        Centre of the first pixel in mm, LPS+ as DICOM has it.
    row, column
        Directions in which columns and rows are counted, LPS+: unit vectors up to rounding.
    spacing
        Distance in mm between rows, and between columns.
    frame_of_reference
        UID of the coordinate system.
    slope, intercept
        Scaling of stored values; None if the file does not state it, which means 1 and 0.
    marks
        Values of ``marks.MARKS``, in their order.
    """

    path: Path
    frame: int
    form: PixelForm
    position: Point
    row: Point
    column: Point
    spacing: tuple[float, float]
    frame_of_reference: str
    slope: float | None
    intercept: float | None
    marks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Series:
    """A series, or the part of it that makes up one volume.

    Attributes
    ----------
    study, uid
        Study and series instance UID, exactly as stored: any text.
    number, description, modality
        Of the series, as text; may be empty.
    part
        What tells this volume from others of the series; empty if the series is one volume.
    folder
        Folder with all of its files.
    instances
        Number of instances (files).
    uids
        SOP instance UIDs of these.
    slices
        In order along the normal of the image plane; empty if it is no volume.
    grid
        Columns, rows, slices to RAS+ in mm; None if it is no volume. With a shift, that of the upright volume.
    shift
        How slices of a tilted gantry lie, if they are to be moved.
    refusal
        Why it is not read; empty if it is. A volume that the rules do not choose has a reason, and slices.
    left_out
        Whether the refusal is no fault, as for a localizer.
    patient, issuer
        PatientID and its issuer; may be empty. They have no place in messages, nor in a file.
    """

    study: str
    uid: str
    number: str
    description: str
    modality: str
    part: str
    folder: Path
    instances: int
    uids: frozenset[str] = frozenset()
    slices: tuple[Slice, ...] = ()
    grid: Grid | None = None
    shift: Shift = UPRIGHT
    refusal: str = ""
    left_out: bool = False
    patient: str = field(default="", repr=False)
    issuer: str = field(default="", repr=False)

    @property
    def title(self) -> str:
        """Series, part and number of instances, for messages at the hospital."""
        words = [f"series {shown(self.number) or 'without number'}"]
        if self.description:
            words.append(f"'{shown(self.description)}'")
        if self.part:
            words.append(f"({self.part})")
        return f"{' '.join(words)}, {counted(self.instances, 'instance')}"
