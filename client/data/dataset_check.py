"""Check of a whole dataset before it joins a federation: its contents, and every problem with it."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.imaging.datasets.dataset import (
    Case,
    Problem,
    image_problems,
    label_counts,
    label_problems,
    scan_dataset,
)
from common.imaging.datasets.patients_csv import PATIENTS_FILE
from common.imaging.geometry import Grid
from common.imaging.io.nifti import read_label, read_volume
from common.plan.base import Axes3, Spacing


@dataclass(frozen=True)
class CaseReport:
    """The content of one case; None or empty where it could not be read.

    Attributes
    ----------
    name
        Name of the case.
    shape
        Voxels along x, y, z in RAS+ order.
    spacing
        Spacing in mm along x, y, z in RAS+ order.
    orientation
        Direction of the axes as stored in the file.
    intensity
        Lowest and highest value of each channel.
    label_ml
        Volume in ml of every label of the report; 0 for a label that the case lacks.
    usable
        False if the case has an error.
    """

    name: str
    shape: Axes3 | None = None
    spacing: Spacing | None = None
    orientation: str | None = None
    intensity: tuple[tuple[float, float], ...] = ()
    label_ml: dict[int, float] | None = None
    usable: bool = True

    @property
    def empty_labels(self) -> list[int]:
        """Labels without a single voxel."""
        return [value for value, volume in (self.label_ml or {}).items() if volume == 0]


@dataclass(frozen=True)
class DatasetReport:
    """Everything that :func:`check_dataset` found.

    Attributes
    ----------
    labels
        The labels that the dataset was checked against; those found in the files if none were declared.
    cases
        Reports of the cases, in order of their names.
    patients
        Number of patients; None if the folder does not say.
    problems
        Errors and warnings, each with its case (None: the dataset itself) and file.
    """

    root: Path
    layout: str
    channels: tuple[str, ...]
    labels: dict[int, str]
    cases: tuple[CaseReport, ...]
    problems: tuple[Problem, ...] = field(default=())
    patients: int | None = None

    @property
    def usable(self) -> bool:
        """Whether there are cases and none of them, nor the dataset itself, has an error (warnings are allowed)."""
        return bool(self.cases) and not any(problem.severity == "error" for problem in self.problems)

    def to_text(self) -> str:
        """Render a table of the cases, a summary, and the problems last."""
        parts = [_case_table(self), _summary(self), _label_table(self), _problem_list(self), _verdict(self)]
        return "\n\n".join(part for part in parts if part)

    def to_json(self) -> str:
        """Return the report as one JSON object; non-finite numbers become null."""
        content = {
            "root": str(self.root),
            "layout": self.layout,
            "channels": self.channels,
            "labels": self.labels,
            "usable": self.usable,
            "patients": self.patients,
            "cases": [
                {
                    "name": case.name,
                    "usable": case.usable,
                    "shape": case.shape,
                    "spacing_mm": case.spacing,
                    "orientation": case.orientation,
                    "intensity": [[_finite(low), _finite(high)] for low, high in case.intensity],
                    "label_ml": case.label_ml,
                    "empty_labels": case.empty_labels,
                }
                for case in self.cases
            ],
            "problems": [
                {"case": item.case, "file": str(item.path), "problem": item.text, "severity": item.severity}
                for item in self.problems
            ],
        }
        return json.dumps(content, indent=1, allow_nan=False)


def check_dataset(
    root: Path,
    labels: Mapping[int, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetReport:
    """Read every case once and collect every problem.

    Parameters
    ----------
    root
        The dataset folder.
    labels
        The federation's foreground labels; None uses those that the dataset itself declares.
    progress
        Called with cases read and cases in all.

    Raises
    ------
    DataError
        There is nothing to check: the folder is missing, empty or in no known layout.
    """
    dataset, problems = scan_dataset(root)
    declared = dict(labels if labels is not None else dataset.labels)
    if dataset.layout == "files":
        text = "holds images without label maps: good for predict, not for training"
        problems.append(Problem(None, dataset.root, text, "warning" if labels is None else "error"))
    found = []
    for done, case in enumerate(dataset.cases, start=1):
        found.append(_read_case(case, declared, len(dataset.channels)))
        problems += found[-1].problems
        if progress is not None:
            progress(done, len(dataset.cases))
    counts = sum((item.counts for item in found if item.counts is not None), np.zeros(256, dtype=np.int64))
    shown = declared or {int(value): f"label {value}" for value in np.flatnonzero(counts) if value > 0}
    problems += _twins(found)
    if any(item.counts is not None for item in found):
        problems += [
            Problem(None, dataset.root, f"label {value} ({name}) is declared, but no case has it", "warning")
            for value, name in declared.items()
            if counts[value] == 0
        ]
    broken = {problem.case for problem in problems if problem.severity == "error" and problem.case is not None}
    reports = {item.case.name: _report(item, shown, item.case.name not in broken) for item in found}
    reports |= {name: CaseReport(name, usable=False) for name in broken - set(reports)}
    cases = tuple(reports[name] for name in sorted(reports))
    owners = {case.patient for case in dataset.cases if case.patient is not None}
    return DatasetReport(
        dataset.root, dataset.layout, dataset.channels, shown, cases, tuple(problems), len(owners) or None
    )


@dataclass(eq=False)
class _Found:
    """One case as read, without its voxels."""

    case: Case
    problems: list[Problem] = field(default_factory=list)
    grid: Grid | None = None
    orientation: str | None = None
    intensity: tuple[tuple[float, float], ...] = ()
    digest: bytes | None = None
    counts: NDArray[np.int64] | None = None
    voxel_ml: float = 0.0


def _read_case(case: Case, labels: Collection[int], channels: int) -> _Found:
    found = _Found(case)
    try:
        volume = read_volume(case.images)
    except DataError as error:
        found.problems += _unreadable(case, error)
    else:
        found.grid, found.orientation = volume.grid, volume.source.orientation
        found.intensity = tuple((float(values.min()), float(values.max())) for values in volume.array)
        found.digest = hashlib.blake2b(volume.array.data, digest_size=16).digest()
        found.problems += image_problems(case, volume, channels)
        if not volume.source.orientation_declared:
            text = "does not say which side is left (qform and sform codes are 0), so left and right are guessed"
            found.problems.append(Problem(case.name, case.images[0], text, "warning"))
    if case.label is not None:
        _read_case_label(found, case.label, labels)
    return found


def _read_case_label(found: _Found, path: Path, labels: Collection[int]) -> None:
    try:
        label, grid = read_label(path)
    except DataError as error:
        found.problems.append(Problem(found.case.name, error.path, error.problem))
        return
    found.counts, found.voxel_ml = label_counts(label), grid.voxel_volume_ml
    # Without a readable image there is no grid to compare with, but the label values can still be checked.
    found.problems += label_problems(found.case, found.grid or grid, grid, found.counts, labels)
    if not found.counts[1:].any():
        found.problems.append(Problem(found.case.name, path, "is empty: it is all background", "warning"))


def _unreadable(case: Case, error: DataError) -> list[Problem]:
    """List the error, or those of the channel files that cannot be read on their own."""
    problems = []
    for path in case.images if len(case.images) > 1 else ():
        try:
            read_volume(path)
        except DataError as single:
            problems.append(Problem(case.name, single.path, single.problem))
    return problems or [Problem(case.name, error.path, error.problem)]


def _twins(found: Sequence[_Found]) -> list[Problem]:
    problems = []
    first_with: dict[bytes, Case] = {}
    for item in found:
        if item.digest is None:
            continue
        twin = first_with.setdefault(item.digest, item.case)
        if twin.name != item.case.name:
            text = f"has the same voxels as case {twin.name}: remove one"
            if twin.owner != item.case.owner:
                text += (
                    f", or one patient may be in both training and validation (or name the patient in {PATIENTS_FILE})"
                )
            problems.append(Problem(item.case.name, item.case.images[0], text, "warning"))
    return problems


def _report(found: _Found, labels: Collection[int], usable: bool) -> CaseReport:
    counts = found.counts
    return CaseReport(
        name=found.case.name,
        shape=found.grid.shape if found.grid else None,
        spacing=found.grid.spacing if found.grid else None,
        orientation=found.orientation,
        intensity=found.intensity,
        label_ml=None if counts is None else {value: float(counts[value]) * found.voxel_ml for value in labels},
        usable=usable,
    )


def _case_table(report: DatasetReport) -> str:
    rows = [
        ("case", "shape", "spacing mm", "axes", "intensity", *(f"{name} ml" for name in report.labels.values()), "")
    ]
    for case in report.cases:
        volumes = case.label_ml or {}
        rows.append(
            (
                case.name,
                "-" if case.shape is None else _times(case.shape),
                "-" if case.spacing is None else _times(case.spacing),
                case.orientation or "-",
                "; ".join(f"{low:.5g}..{high:.5g}" for low, high in case.intensity) or "-",
                *(_millilitres(volumes.get(value)) for value in report.labels),
                "" if case.usable else "UNUSABLE",
            )
        )
    return _columns(rows)


def _summary(report: DatasetReport) -> str:
    read = [case for case in report.cases if case.shape is not None and case.spacing is not None]
    rows = [
        ("folder", str(report.root)),
        ("layout", report.layout),
        ("channels", ", ".join(report.channels)),
        ("cases", f"{len(report.cases)}, usable {sum(case.usable for case in report.cases)}"),
    ]
    if report.patients is not None:
        rows.append(("patients", f"{report.patients}, by {PATIENTS_FILE}"))
    if read:
        orientations = Counter(case.orientation for case in read).most_common()
        ends = [pair for case in read for pair in case.intensity if all(map(math.isfinite, pair))] or [(0.0, 0.0)]
        lows, highs = zip(*ends, strict=True)
        rows += [
            ("shape", _spread([case.shape for case in read if case.shape])),
            ("spacing mm", _spread([case.spacing for case in read if case.spacing])),
            ("axes as stored", ", ".join(f"{code} in {count}" for code, count in orientations)),
            ("intensity", f"lowest {min(lows):.5g} to {max(lows):.5g}, highest {min(highs):.5g} to {max(highs):.5g}"),
        ]
    return _columns(rows)


def _label_table(report: DatasetReport) -> str:
    labelled = [case.label_ml for case in report.cases if case.label_ml is not None]
    if not (report.labels and labelled):
        return ""
    rows: list[tuple[str, ...]] = [
        ("label", "name", "cases with it", "empty in", "smallest ml", "median ml", "largest ml")
    ]
    for value, name in report.labels.items():
        volumes = [case[value] for case in labelled if case[value] > 0]
        sizes = (min(volumes), median(volumes), max(volumes)) if volumes else (None, None, None)
        empty = str(len(labelled) - len(volumes))
        rows.append((str(value), name, str(len(volumes)), empty, *(_millilitres(size) for size in sizes)))
    return _columns(rows)


def _problem_list(report: DatasetReport) -> str:
    ranked = sorted(report.problems, key=lambda problem: problem.severity)
    return "\n".join(f"{problem.severity}: {problem.path}: {problem.text}" for problem in ranked)


def _verdict(report: DatasetReport) -> str:
    if not report.cases:
        return "NOT USABLE: there is no complete case."
    if report.usable:
        warnings = len(report.problems)
        return "Usable." if warnings == 0 else f"Usable, with {warnings} warning{'s' if warnings > 1 else ''}."
    errors = sum(problem.severity == "error" for problem in report.problems)
    return f"NOT USABLE: {errors} error{'s' if errors > 1 else ''}. Repair or remove what is named above."


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def _spread(values: Sequence[Sequence[float]]) -> str:
    columns = list(zip(*values, strict=True))
    parts = [_times([pick(column) for column in columns]) for pick in (min, median, max)]
    return parts[0] if len(set(parts)) == 1 else f"{parts[0]} to {parts[2]}, median {parts[1]}"


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _millilitres(volume: float | None) -> str:
    if volume is None:
        return "-"
    return "empty" if volume == 0 else f"{volume:.3g}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
