"""What segments mean: matched to labels by code, or by name where one of both has no code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pydicom.sr.coding import Code

from common.imaging.io.dicom.labels.objects import LabelObject, Segment, Structure, listed, word
from common.imaging.io.dicom.slices import RefusedError, shown

_SNOMED_RT = {"SNM3": "SRT", "99SDM": "SRT"}
"""Other designators of SNOMED RT."""
_GENERIC = (("SCT", "85756007"), ("SCT", "91723000"), ("SCT", "123037004"))
"""Tissue and anatomical structure, which programs set where nobody chose a code."""


class Carrier(NamedTuple):
    """A segment that is a label, and by what."""

    segment: Segment
    by: Literal["labels_map", "code", "name"]


@dataclass(frozen=True, eq=False)
class Assignment:
    """Which labels the segments of some files carry.

    Attributes
    ----------
    values
        For each file: segment number -> value of the label, of segments that carry one.
    carriers
        Value -> segments that are the label together.
    ignored
        Segments that match no label.
    missing
        Labels that no segment carries; a region without contours carries none.
    """

    values: list[dict[int, int]] = field(default_factory=list)
    carriers: dict[int, list[Carrier]] = field(default_factory=dict)
    ignored: list[Segment] = field(default_factory=list)
    missing: list[Structure] = field(default_factory=list)


def assign(objects: Sequence[LabelObject], structures: Sequence[Structure]) -> Assignment:
    """Match the segments of all files that label one series to labels.

    Several segments of one file that match a label are that label together: segments are instances, labels structures.

    Raises
    ------
    RefusedError
        Two files carry the same label, segments of one label differ in side or region, or code and name of a segment
        contradict each other: nobody knows what is right.
    """
    found = Assignment()
    files: dict[int, LabelObject] = {}
    for one in objects:
        values: dict[int, int] = {}
        for segment in one.segments:
            if segment.is_empty:
                continue
            match = structure_of(segment, structures)
            if match is None:
                found.ignored.append(segment)
                continue
            structure, by = match
            if structure.value == 0:
                continue
            other = files.setdefault(structure.value, one)
            if other is not one:
                raise RefusedError(
                    f"{_title(structure)} is in {shown(other.path.name)} and in {shown(one.path.name)}: keep one of "
                    "them"
                )
            carriers = found.carriers.setdefault(structure.value, [])
            carriers.append(Carrier(segment, by))
            _require_one_place(carriers, structure)
            values[segment.number] = structure.value
        found.values.append(values)
    found.missing.extend(one for one in structures if one.value and one.value not in files)
    return found


def _require_one_place(carriers: Sequence[Carrier], structure: Structure) -> None:
    """Refuse segments of different sides or regions as one label, unless the hospital says that they are."""
    unnamed = [one.segment for one in carriers if one.by != "labels_map"]
    if len({frozenset(detail[:2] for detail in segment.details) for segment in unnamed}) > 1:
        raise RefusedError(
            f"has {unnamed[0].title} and {unnamed[-1].title}, which both are {_title(structure)} and differ in side or "
            "region: say what they are in labels_map in site.yaml"
        )


def structure_of(
    segment: Segment, structures: Iterable[Structure]
) -> tuple[Structure, Literal["labels_map", "code", "name"]] | None:
    """Return the structure that a segment is, and by what; None if none of them.

    The hospital's own names for structures come first, then codes, then names, as ``word`` folds them. Names do not
    count where both have codes, and these differ. A code that names no structure counts as none.

    Raises
    ------
    RefusedError
        Code and name are those of different structures.
    """
    names, known = [word(segment.full_name), word(segment.name)], list(structures)
    for name in names:
        for one in known:
            if name in map(word, one.aliases):
                return one, "labels_map"
    code = _code(segment)
    named = [one for name in dict.fromkeys(names) for one in known if word(one.name) == name != ""]
    coded = [one for one in known if code is not None and one.code is not None and _same(code, one.code)]
    if both := [one for one in named if one in coded]:
        return both[0], "code"
    if coded and named:
        raise RefusedError(
            f"has the segment {segment.title}, which is {_title(coded[0])} by its code and {_title(named[0])} by its "
            "name: say what it is in labels_map in site.yaml"
        )
    if coded:
        return coded[0], "code"
    for one in named:
        if code is None or one.code is None:
            return one, "name"
    return None


def own_structures(objects: Iterable[LabelObject]) -> tuple[Structure, ...]:
    """Return what the segments of all files are, numbered 1, 2, ... in order of names, for want of a federation.

    Segments are the same if both name and code are.
    """
    found: dict[tuple[str, tuple[str, str] | None], Structure] = {}
    for segment in (segment for one in objects for segment in one.segments if not segment.is_empty):
        code = _code(segment)
        name = segment.full_name or (segment.code.words if segment.code else "")
        found.setdefault((word(name), code), Structure(1, name, code))
    ordered = sorted(found.values(), key=lambda one: (word(one.name), one.code or ("", "")))
    return tuple(Structure(value, one.name, one.code) for value, one in enumerate(ordered, start=1))


def titles(segments: Iterable[Segment]) -> str:
    """List segments, each title once, for messages."""
    return listed(dict.fromkeys(segment.title for segment in segments))


def _title(structure: Structure) -> str:
    return f"label {structure.value} ({shown(structure.name)})"


def _code(segment: Segment) -> tuple[str, str] | None:
    """Return scheme and value of a segment's code; None if it has none that names a structure."""
    if segment.code is None:
        return None
    code = segment.code[:2]
    return None if any(_same(code, one) for one in _GENERIC) else code


def _same(code: tuple[str, str], other: tuple[str, str]) -> bool:
    """Return whether two codes mean the same; pydicom knows the SNOMED CT codes of those of SNOMED RT."""
    one, two = (Code(value, _SNOMED_RT.get(scheme, scheme), "") for scheme, value in (code, other))
    return bool(one == two)
