"""What a check of a dataset found, as text for people and as JSON for machines."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from client.data.series_report import SeriesReport, series_rows, studies_json
from common.formatting import counted, visible
from common.imaging.datasets.case import Problem
from common.imaging.datasets.patients_csv import PATIENTS_FILE
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
    patients_by
        What tells them.
    problems
        Errors and warnings, each with its case (None: the dataset itself) and file.
    series
        All DICOM series of the folder, with what became of them.
    """

    root: Path
    layout: str
    channels: tuple[str, ...]
    labels: dict[int, str]
    cases: tuple[CaseReport, ...]
    problems: tuple[Problem, ...] = field(default=())
    patients: int | None = None
    patients_by: str = PATIENTS_FILE
    series: tuple[SeriesReport, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether there are cases and none of them, nor the dataset itself, has an error (warnings are allowed)."""
        return bool(self.cases) and not any(problem.severity == "error" for problem in self.problems)

    def to_text(self) -> str:
        """Render a table of the cases, a summary, and the problems last."""
        series = _columns(series_rows(self.series)) if self.series else ""
        parts = [series, _case_table(self), _summary(self), _label_table(self), _problem_list(self), _verdict(self)]
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
            "studies": studies_json(self.series),
        }
        return json.dumps(content, indent=1, allow_nan=False)


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
        rows.append(("patients", f"{report.patients}, by {report.patients_by}"))
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
    return "\n".join(f"{problem.severity}: {problem}" for problem in ranked)


def _verdict(report: DatasetReport) -> str:
    if not report.cases:
        return "NOT USABLE: there is no complete case."
    if report.usable:
        warnings = len(report.problems)
        return "Usable." if warnings == 0 else f"Usable, with {counted(warnings, 'warning')}."
    errors = sum(problem.severity == "error" for problem in report.problems)
    return f"NOT USABLE: {counted(errors, 'error')}. Repair or remove what is named above."


def _columns(rows: Sequence[Sequence[str]]) -> str:
    shown = [[visible(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*shown, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown)
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
