"""Labels of cases in DICOM: which of the labels that are wanted the segments of each series carry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.formatting import counted
from common.imaging.datasets.case import Case, Problem

if TYPE_CHECKING:
    from common.imaging.io.dicom.labels.objects import Structure

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
        for segments that are ignored, labels that cases lack, and segments that nobody corrected.
    """
    from common.imaging.io.dicom.labels.meaning import assign, titles
    from common.imaging.io.dicom.slices import RefusedError

    kept, problems = [], []
    lacking: Counter[Structure] = Counter()
    examples: dict[Structure, str] = {}
    ignored, by_program = [], []
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
        segments = [segment for one in case.objects for segment in one.segments]
        if len(assigned.ignored) == len(segments):
            kept.pop()
            text = f"is left out: none of its segments is a label that is wanted: {titles(segments)}"
            problems.append(Problem(case.name, case.label, text, "warning"))
            continue
        if any(segment.by_program for segment in segments if segment not in assigned.ignored):
            by_program.append(case.name)
        for structure in assigned.missing:
            lacking[structure] += 1
            examples.setdefault(structure, case.name)
    texts = [
        f"label {one.value} ({one.name}): {counted(count, 'case')} of {len(kept):,} without a segment of it, such as "
        f"{examples[one]}"
        for one, count in lacking.items()
    ]
    if ignored:
        texts.append(f"segments that are no label and are ignored: {titles(ignored)}")
    if by_program:
        texts.append(
            f"{counted(len(by_program), 'case')} with segments that a program made (AUTOMATIC), such as "
            f"{by_program[0]}: train on them only if somebody looked at them"
        )
    return tuple(kept), problems + [Problem(None, place, text, "warning") for text in texts]
