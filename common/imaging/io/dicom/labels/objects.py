"""Segmentation objects and structure sets as plain values, without pydicom and without voxels."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from common.imaging.io.dicom.slices import shown

Overlap = Literal["refuse", "later", "tell"]
"""Voxels with two labels are refused, or get the larger value, with or without telling of it."""
Kind = Literal["BINARY", "FRACTIONAL", "LABELMAP", "RTSTRUCT"]


class Meaning(NamedTuple):
    """A code: coding scheme, value within it, and words; as a file states it, of any length."""

    scheme: str
    value: str
    words: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of a segmentation, or a region of interest of a structure set.

    Attributes
    ----------
    number
        By which frames or contours refer to it.
    name
        Its label or name, as stored.
    code
        Its type; None if the file states none.
    by_program
        Whether a program made it, and nobody corrected it.
    details
        Side and body region, and other codes that narrow its type down.
    is_empty
        Whether it is a region without contours.
    """

    number: int
    name: str
    code: Meaning | None
    by_program: bool
    details: tuple[Meaning, ...] = ()
    is_empty: bool = False

    @property
    def full_name(self) -> str:
        """Name with side and region: ``Kidney (Right)``."""
        details = ", ".join(detail.words or detail.value for detail in self.details)
        return f"{self.name} ({details})" if details else self.name

    @property
    def title(self) -> str:
        """Full name and code, for messages at the hospital."""
        code = "" if self.code is None else f" ({shown(' '.join(self.code))})"
        return f"'{shown(self.full_name)}'{code}"


@dataclass(frozen=True, eq=False)
class LabelObject:
    """The header of a segmentation object or a structure set.

    Attributes
    ----------
    study, series
        Study and series instance UID of the object itself.
    frames_of_reference
        UIDs of the coordinate systems that it uses.
    references
        SOP instance UIDs of the images that it refers to.
    segments
        Without the background of label maps.
    referenced_series
        Series instance UIDs of which it says that these images are.
    patient
        PatientID; may be empty. For messages it has no place, nor in a file.
    """

    path: Path
    kind: Kind
    study: str
    series: str
    frames_of_reference: frozenset[str]
    references: frozenset[str]
    segments: tuple[Segment, ...]
    referenced_series: frozenset[str] = frozenset()
    patient: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Structure:
    """A label as segments are compared with it.

    Attributes
    ----------
    value
        In label maps; 0 for a structure that belongs to the background.
    name
        Of the label.
    code
        Scheme and value; None without a code.
    aliases
        What segments of this structure are called here, by the hospital's own word.
    """

    value: int
    name: str
    code: tuple[str, str] | None = None
    aliases: tuple[str, ...] = ()


def word(name: str) -> str:
    """Return a name without what does not matter in names: capitals, blanks, underscores, and how accents are coded."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return re.sub(r"[\s_]+", " ", folded).strip()


def listed(texts: Iterable[str], most: int = 5) -> str:
    """Return the first texts with commas between them, and how many more there are."""
    found = list(texts)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more
