"""Cases of a folder of DICOM files: one for every series that is a volume."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import DataError
from common.formatting import counted
from common.imaging.datasets.case import Case, Problem
from common.imaging.datasets.patients_csv import PATIENTS_FILE
from common.imaging.io.nifti import nifti_stem

if TYPE_CHECKING:
    from common.imaging.io.dicom.header import Instance
    from common.imaging.io.dicom.labels.matching import Match
    from common.imaging.io.dicom.labels.objects import LabelObject
    from common.imaging.io.dicom.rules import DicomRules
    from common.imaging.io.dicom.slices import Series

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_BETWEEN = "__"
"""Between the folders of a path."""
_SERIES = "+series"
"""Before a series number: no name of a folder has the plus sign."""
_LONGEST, _LONGEST_NUMBER, _DIGEST_LENGTH = 160, 12, 12
_LIKE_DIGEST = re.compile(rf"-[0-9a-f]{{{_DIGEST_LENGTH}}}$")


@dataclass(frozen=True, eq=False)
class DicomCases:
    """What a folder of DICOM holds.

    Attributes
    ----------
    series
        All series.
    cases
        A case for each series that is a volume.
    problems
        Problems with all others.
    labels
        Segmentation objects and structure sets, and the series that they are about.
    names
        Names of all volumes, of those too that the rules do not choose.
    """

    series: tuple[Series, ...]
    cases: list[Case]
    problems: list[Problem]
    labels: tuple[Match, ...]
    names: frozenset[str]


def find_dicom_cases(
    root: Path, rules: DicomRules, label_folder: Path | None = None, *, labelled: bool = True
) -> DicomCases | None:
    """Find the series of a folder, or of one file; no pixels are read.

    Parameters
    ----------
    root
        The folder or file.
    rules
        How DICOM is read.
    label_folder
        Another folder that may hold segmentation objects and structure sets, beside those among the series.
    labelled
        Whether these are wanted; they are left out otherwise.

    Returns
    -------
    DicomCases | None
        None if there is no DICOM file.
    """
    # Late: importing pydicom takes long, and few folders need it.
    from common.imaging.io.dicom.find import find_series, holds_dicom

    if not holds_dicom(root):
        return None
    found = find_series(root, rules)
    problems = [Problem(None, error.path, error.problem) for error in found.damaged]
    instances = list(found.labels) if labelled else []
    known = {(instance.study, instance.series) for instance in instances}
    for series in found.series:
        if series.refusal and (series.study, series.uid) not in known:
            text = f"{series.title}: {series.refusal}"
            problems.append(Problem(None, series.folder, text, "warning" if series.left_out else "error"))
    if others := [path for path in found.others if path != root / PATIENTS_FILE]:
        are = "file is" if len(others) == 1 else "files are"
        text = f"{len(others):,} {are} not DICOM images and are ignored, such as {others[0].name}"
        problems.append(Problem(None, root, text, "warning"))
    if all(series.refusal for series in found.series):
        count = sum(series.grid is not None for series in found.series)
        text = f"and the rules in site.yaml (dicom.series) choose none of {counted(count, 'volume')}"
        what = f"holds {counted(len(found.series), 'series', 'series')} of DICOM"
        problems.append(Problem(None, root, f"{what}, {text if count else 'and none of them is a volume'}"))
    if labelled and label_folder is not None and label_folder.is_dir():
        instances += _beside(label_folder, problems)
    volumes = _named(root, found.series)
    cases = _cases(root, volumes)
    labels = _matched(instances, found.series, problems)
    return DicomCases(found.series, cases, problems, labels, frozenset(volumes))


def hidden_dicom(root: Path) -> list[Problem]:
    """Warn of DICOM files anywhere in a folder that is read as NIfTI."""
    if all(nifti_stem(path) and not path.is_dir() for path in root.iterdir()):
        return []
    from common.imaging.io.dicom.find import count_dicom

    try:
        count = count_dicom(root)
    except DataError:
        return []  # folders that nobody may read are none of NIfTI's
    text = f"{counted(count, 'DICOM file')} in it count for nothing, because it holds NIfTI files: keep those elsewhere"
    return [Problem(None, root, text, "warning")] if count else []


def _beside(folder: Path, problems: list[Problem]) -> tuple[Instance, ...]:
    """Return the labels of a folder that should hold nothing else."""
    from common.imaging.io.dicom.find import find_series
    from common.imaging.io.dicom.rules import USUAL_RULES

    found = find_series(folder, USUAL_RULES)
    problems += [Problem(None, error.path, error.problem) for error in found.damaged]
    own = {(instance.study, instance.series) for instance in found.labels}
    for series in found.series:
        if (series.study, series.uid) not in own:
            problems.append(Problem(None, series.folder, f"{series.title}: is no label and is ignored", "warning"))
    return found.labels


def _matched(instances: Sequence[Instance], series: tuple[Series, ...], problems: list[Problem]) -> tuple[Match, ...]:
    if not instances:
        return ()
    from common.imaging.io.dicom.labels.matching import match_labels

    found = match_labels(instances, series)
    for match in found:
        if match.refusal:
            problems.append(Problem(None, match.path, match.refusal, "warning" if match.left_out else "error"))
    return found


def with_label_maps(found: DicomCases, labels: Mapping[str, Path], folder: Path | None) -> list[Case]:
    """Return the series with labels: in DICOM, or a label map of the same name; an archive holds more series.

    Parameters
    ----------
    found
        From :func:`find_dicom_cases`; its problems get a warning for each series without labels, and an error for each
        label map without a series, or beside other labels.
    labels
        Name -> label map in NIfTI.
    folder
        The folder of label maps; None in an archive, whose series need none.
    """
    objects: dict[int, list[LabelObject]] = {}
    for match in found.labels:
        if match.series is not None and match.labels is not None:
            objects.setdefault(id(match.series), []).append(match.labels)
    cases, unlabelled = [], []
    for case in found.cases:
        own = objects.get(id(case.series), [])
        if own and case.name in labels:
            text = f"labels {case.name}, and so does {own[0].path.name}: keep one of them"
            found.problems.append(Problem(case.name, labels[case.name], text))
        elif own:
            cases.append(replace(case, label=own[0].path, objects=tuple(own)))
        elif case.name in labels:
            cases.append(replace(case, label=labels[case.name]))
        else:
            unlabelled.append(case)
    found.problems.extend(_without_labels(unlabelled, folder))
    names = {case.name for case in found.cases}
    for name, path in labels.items():
        if name not in names:
            known = ", ".join(sorted(names)[:5]) or "none"
            found.problems.append(Problem(name, path, f"has no series of its name; the names of series are: {known}"))
    return cases


def _without_labels(cases: Sequence[Case], folder: Path | None) -> list[Problem]:
    if folder is not None:
        text = "has no label map {}.nii.gz and is left out"
        return [Problem(case.name, case.images[0], text.format(case.name), "warning") for case in cases]
    if not cases:
        return []
    text = f"no segmentation refers to {counted(len(cases), 'series', 'series')}, such as {cases[0].name}: left out"
    return [Problem(None, cases[0].images[0], text, "warning")]


def _named(root: Path, series: Sequence[Series]) -> dict[str, Series]:
    """Name each volume, whether it is chosen or not."""
    volumes = [one for one in series if one.grid is not None]
    alone = Counter(one.folder for one in volumes)
    names = [_name(root, one, alone[one.folder] == 1) for one in volumes]
    doubled = Counter(names)
    return {
        f"{name}-{_digest(one.study, one.uid, *one.slices[0].marks)}" if doubled[name] > 1 else name: one
        for name, one in zip(names, volumes, strict=True)
    }


def _cases(root: Path, volumes: Mapping[str, Series]) -> list[Case]:
    """Make a case of each volume that is chosen."""
    alone = Counter(one.folder for one in volumes.values())
    cases = []
    for name, one in volumes.items():
        path = one.folder if alone[one.folder] == 1 and root.is_dir() else one.slices[0].path
        if not one.refusal:
            cases.append(Case(name, (path,), None, series=one, patient_id=one.patient or None))
    return _with_patients(cases)


def _with_patients(cases: Sequence[Case]) -> list[Case]:
    """Name the patient of each PatientID after their first case: so no file and no message holds a PatientID."""
    first: dict[str, str] = {}
    for case in sorted(cases, key=lambda case: case.name):
        if case.patient_id is not None:
            first.setdefault(case.patient_id, case.name)
    return [replace(case, patient=None if case.patient_id is None else first[case.patient_id]) for case in cases]


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
