"""Cases of a folder of DICOM files: one for every series that is a volume."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.formatting import counted
from common.imaging.datasets.case import Case, Problem

if TYPE_CHECKING:
    from common.imaging.io.dicom.rules import DicomRules
    from common.imaging.io.dicom.slices import Series

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_BETWEEN = "__"
"""Between the folders of a path."""
_SERIES = "+series"
"""Before a series number: no name of a folder has the plus sign."""
_LONGEST, _LONGEST_NUMBER, _DIGEST_LENGTH = 160, 12, 12
_LIKE_DIGEST = re.compile(rf"-[0-9a-f]{{{_DIGEST_LENGTH}}}$")


def find_dicom_cases(root: Path, rules: DicomRules) -> tuple[tuple[Series, ...], list[Case], list[Problem]] | None:
    """Find the series of a folder, or of one file; no pixels are read.

    Returns
    -------
    tuple[tuple[Series, ...], list[Case], list[Problem]] | None
        All series; a case for each that is a volume; problems with all others. None if there is no DICOM file.
    """
    # Late: importing pydicom takes long, and few folders need it.
    from common.imaging.io.dicom.find import find_series, holds_dicom

    if not holds_dicom(root):
        return None
    found = find_series(root, rules)
    problems = [Problem(None, error.path, error.problem) for error in found.damaged]
    for series in found.series:
        if series.refusal:
            text = f"{series.title}: {series.refusal}"
            problems.append(Problem(None, series.folder, text, "warning" if series.left_out else "error"))
    if found.others:
        are = "file is" if len(found.others) == 1 else "files are"
        text = f"{len(found.others):,} {are} not DICOM images and are ignored, such as {found.others[0].name}"
        problems.append(Problem(None, root, text, "warning"))
    volumes = [series for series in found.series if not series.refusal]
    if not volumes:
        series_count = counted(len(found.series), "series", "series")
        problems.append(Problem(None, root, f"holds {series_count} of DICOM, and none of them is a volume"))
    return found.series, _cases(root, found.series), problems


def with_label_maps(cases: Sequence[Case], labels: Mapping[str, Path], problems: list[Problem]) -> list[Case]:
    """Return the series that have a label map of the same name; an archive holds more series than were annotated.

    Parameters
    ----------
    cases
        From :func:`find_dicom_cases`.
    labels
        Name -> label map.
    problems
        Gets a warning for each series without a label map, and an error for each label map without a series.
    """
    for case in cases:
        if case.name not in labels:
            text = f"has no label map {case.name}.nii.gz and is left out"
            problems.append(Problem(case.name, case.images[0], text, "warning"))
    names = {case.name for case in cases}
    for name, path in labels.items():
        if name not in names:
            known = ", ".join(sorted(names)[:5]) or "none"
            problems.append(Problem(name, path, f"has no series of its name; the names of series are: {known}"))
    return [replace(case, label=labels[case.name]) for case in cases if case.name in labels]


def _cases(root: Path, series: Sequence[Series]) -> list[Case]:
    """Make a case of each volume that is chosen; those that are not have their names too."""
    volumes = [one for one in series if one.grid is not None]
    alone = Counter(one.folder for one in volumes)
    names = [_name(root, one, alone[one.folder] == 1) for one in volumes]
    doubled = Counter(names)
    cases = []
    for name, one in zip(names, volumes, strict=True):
        if doubled[name] > 1:
            name = f"{name}-{_digest(one.study, one.uid, *one.slices[0].marks)}"
        path = one.folder if alone[one.folder] == 1 and root.is_dir() else one.slices[0].path
        if not one.refusal:
            cases.append(Case(name, (path,), None, series=one))
    return cases


def _name(root: Path, series: Series, is_alone: bool) -> str:
    """Name a volume after its folder, and after its number where the folder has several.

    No two folders give one name, and no name depends on what is in other folders: where a path cannot be told from
    its name alone, a digest of it follows. Names become files: they hold nothing but letters, digits, points, dashes,
    underscores and the plus sign, and nothing of what a file says about itself but the series number.
    """
    below = series.folder.relative_to(root).parts if root.is_dir() else ()
    words = below or (root.resolve().name,)
    name = _BETWEEN.join(_NOT_IN_NAMES.sub("_", word) for word in words).strip(".")[:_LONGEST]
    told = name.split(_BETWEEN) == list(words) and not any(word.strip("_") != word for word in words)
    if not told or _LIKE_DIGEST.search(name):
        name = f"{name or 'series'}-{_digest(*words)}"
    number = series.number if series.number.isdecimal() and series.number.isascii() else ""
    return name if is_alone else f"{name}{_SERIES}{number[:_LONGEST_NUMBER]}"


def _digest(*texts: str) -> str:
    content = "\0".join(texts).encode("utf-8", "surrogateescape")
    return hashlib.sha256(content).hexdigest()[:_DIGEST_LENGTH]
