"""Labels of cases in DICOM: which of the labels that are wanted the segments of each series carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.formatting import counted
from common.imaging.datasets.case import Case, Problem

if TYPE_CHECKING:
    from common.imaging.io.dicom.labels.meaning import Assignment, Carrier
    from common.imaging.io.dicom.labels.objects import Segment, Structure

MOST_LABEL = 255


def with_own_structures(cases: Sequence[Case]) -> tuple[tuple[Case, ...], tuple[Structure, ...]]:
    """Return what the segments of all cases are, and the cases as they are read with those as labels.

    That is for want of a federation; ``comparison.compare`` gives them its labels.
    """
    objects = [one for case in cases for one in case.objects]
    if not objects:
        return tuple(cases), ()
    # Late: importing pydicom takes long.
    from common.imaging.io.dicom.labels.meaning import own_structures

    structures = own_structures(objects)
    if len(structures) > MOST_LABEL:
        structures = structures[:MOST_LABEL]
    read = [replace(case, reading=replace(case.reading, structures=structures)) for case in cases]
    return tuple(read), structures


def wanted_structures(
    labels: Mapping[int, str], codes: Mapping[int, tuple[str, str]], names: Mapping[str, int]
) -> tuple[Structure, ...]:
    """Return labels as segments are compared with them.

    Parameters
    ----------
    labels
        Value -> name, the background's (0) included.
    codes
        Value -> scheme and value of the code.
    names
        The hospital's own name -> value.
    """
    from common.imaging.io.dicom.labels.objects import Structure

    aliases = {value: tuple(name for name, target in names.items() if target == value) for value in labels}
    return tuple(
        Structure(value, name, codes.get(value), aliases[value])
        for value, name in labels.items()
        if value or aliases[value]
    )


def compare_segments(
    cases: Sequence[Case], structures: Sequence[Structure], place: Path
) -> tuple[tuple[Case, ...], list[Problem]]:
    """Compare the segments of all cases with the labels.

    Parameters
    ----------
    cases
        The cases; those without labels in DICOM are returned as they are.
    structures
        The labels.
    place
        The dataset's folder, for messages.

    Returns
    -------
    tuple[tuple[Case, ...], list[Problem]]
        The cases without those of which no segment is a label. Errors for files that contradict each other; warnings
        for segments that are ignored, labels that cases lack, segments that are one label together or under several
        names, and segments that nobody corrected.
    """
    from common.imaging.io.dicom.labels.meaning import assign, titles
    from common.imaging.io.dicom.slices import RefusedError

    kept, problems = [], []
    found: dict[str, Assignment] = {}
    ignored: list[Segment] = []
    for case in cases:
        kept.append(case)
        if case.label is None or not case.objects:
            continue
        try:
            assigned = assign(case.objects, structures)
        except RefusedError as error:
            problems.append(Problem(case.name, case.label, error.reason))
            continue
        ignored += assigned.ignored
        segments = [segment for one in case.objects for segment in one.segments if not segment.is_empty]
        if len(assigned.ignored) == len(segments):
            kept.pop()
            text = f"is left out: none of its segments is a label that is wanted: {titles(segments)}"
            problems.append(Problem(case.name, case.label, text, "warning"))
            continue
        found[case.name] = assigned
    texts = _lacking(found, structures, len(kept))
    for structure in structures:
        carriers = {
            name: one.carriers[structure.value] for name, one in found.items() if structure.value in one.carriers
        }
        texts += _several(f"label {structure.value} ({structure.name})", carriers)
    if ignored:
        texts.append(f"segments that are no label and are ignored: {titles(ignored)}")
    texts += _by_program(found)
    return tuple(kept), problems + [Problem(None, place, text, "warning") for text in texts]


def _lacking(found: Mapping[str, Assignment], structures: Sequence[Structure], cases: int) -> list[str]:
    texts = []
    for one in structures:
        if names := [name for name, assigned in found.items() if one in assigned.missing]:
            texts.append(
                f"label {one.value} ({one.name}): {counted(len(names), 'case')} of {cases:,} without a segment of it, "
                f"such as {names[0]}"
            )
    return texts


def _by_program(found: Mapping[str, Assignment]) -> list[str]:
    names = [
        name
        for name, assigned in found.items()
        if any(one.segment.by_program for carriers in assigned.carriers.values() for one in carriers)
    ]
    if not names:
        return []
    return [
        f"{counted(len(names), 'case')} with segments that a program made (AUTOMATIC), such as {names[0]}: train on "
        "them only if somebody looked at them"
    ]


def _several(title: str, carriers: Mapping[str, Sequence[Carrier]]) -> list[str]:
    """Tell where a label is several segments, by case, and where its segments have several names."""
    from common.imaging.io.dicom.labels.meaning import titles

    texts = []
    together = {name: [one.segment for one in found] for name, found in carriers.items() if len(found) > 1}
    for name, segments in list(together.items())[:1]:
        texts.append(
            f"{title}: {counted(len(together), 'case')} with several segments that are it together, such as {name}: "
            f"{titles(segments)}"
        )
    found = [one.segment for case in carriers.values() for one in case if one.by != "labels_map"]
    if len({segment.full_name for segment in found}) > 1:
        texts.append(f"{title}: its segments have several names: {titles(found)}")
    return texts
