"""What segments mean: matched to labels by code, or by name where one of both has no code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pydicom.sr.coding import Code

from common.imaging.io.dicom.labels.objects import LabelObject, Meaning, Segment, Structure, listed
from common.imaging.io.dicom.slices import RefusedError, shown


@dataclass(frozen=True, eq=False)
class Assignment:
    """Which labels the segments of some files carry.

    Attributes
    ----------
    values
        For each file: segment number -> value of the label, of segments that carry one.
    ignored
        Segments that match no label.
    missing
        Labels that no segment carries.
    """

    values: list[dict[int, int]] = field(default_factory=list)
    ignored: list[Segment] = field(default_factory=list)
    missing: list[Structure] = field(default_factory=list)


def assign(objects: Sequence[LabelObject], structures: Sequence[Structure]) -> Assignment:
    """Match the segments of all files that label one series to labels.

    Several segments of one file that match a label are that label together: segments are instances, labels structures.

    Raises
    ------
    RefusedError
        Two files carry the same label: nobody knows which is right.
    """
    found = Assignment()
    carriers: dict[int, LabelObject] = {}
    for one in objects:
        values: dict[int, int] = {}
        for segment in one.segments:
            structure = structure_of(segment, structures)
            if structure is None:
                found.ignored.append(segment)
                continue
            if structure.value == 0:
                continue
            other = carriers.setdefault(structure.value, one)
            if other is not one:
                raise RefusedError(
                    f"label {structure.value} ({shown(structure.name)}) is in {shown(other.path.name)} and in "
                    f"{shown(one.path.name)}: keep one of them"
                )
            values[segment.number] = structure.value
        found.values.append(values)
    found.missing.extend(one for one in structures if one.value and one.value not in carriers)
    return found


def structure_of(segment: Segment, structures: Iterable[Structure]) -> Structure | None:
    """Return the structure that a segment is; None if none of them.

    The hospital's own names for structures come first, then codes, then names, of which capitals, spaces and
    underscores do not matter. Names do not count where both have codes, and these differ.
    """
    name, known = word(segment.name), list(structures)
    for one in known:
        if name in map(word, one.aliases):
            return one
    if segment.code is not None:
        for one in known:
            if one.code is not None and _same(segment.code, one.code):
                return one
    for one in known:
        if (segment.code is None or one.code is None) and word(one.name) == name != "":
            return one
    return None


def own_structures(objects: Iterable[LabelObject]) -> tuple[Structure, ...]:
    """Return what the segments of all files are, numbered 1, 2, ... in order of names, for want of a federation."""
    found: list[Structure] = []
    for segment in (segment for one in objects for segment in one.segments):
        if structure_of(segment, found) is None:
            code = None if segment.code is None else (segment.code.scheme, segment.code.value)
            found.append(Structure(1, segment.name or (segment.code.words if segment.code else ""), code))
    found.sort(key=lambda one: (word(one.name), one.code or ("", "")))
    return tuple(Structure(value, one.name, one.code) for value, one in enumerate(found, start=1))


def word(name: str) -> str:
    """Return a name without what does not matter in names."""
    return re.sub(r"[\W_]+", " ", name).strip().casefold()


def titles(segments: Iterable[Segment]) -> str:
    """List segments, each title once, for messages."""
    return listed(dict.fromkeys(segment.title for segment in segments))


def _same(code: Meaning, other: tuple[str, str]) -> bool:
    """Return whether two codes mean the same; pydicom knows the SNOMED CT codes of those of SNOMED RT."""
    return bool(Code(code.value, code.scheme, "") == Code(other[1], other[0], ""))
