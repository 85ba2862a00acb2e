"""Evaluation of a model bundle on scans with label maps."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.inference.predict import (
    FractionProgress,
    Predictor,
    part_of,
)
from client.inference.results import check_writable
from common.errors import ConfigError, DataError, OutputError
from common.formatting import csv_text, visible
from common.imaging.datasets.case import Case, errors_of
from common.imaging.datasets.comparison import compare
from common.imaging.datasets.dataset import scan_dataset
from common.imaging.threads import CountProgress
from common.metrics import case_metrics
from common.system.files import write_atomically

LEGEND = (
    "cases: the number of cases in which the value is defined, of all cases; the others are left out of mean, median "
    "and sd, and are empty cells in the file. A distance (mm) is undefined where a structure is only in the scan or "
    "only in the prediction, so distances look better the more a model misses: read them together with dice, which is "
    "0 there. A ratio is undefined where its denominator is 0."
)
"""What an undefined value means, in the file and in the table."""
CaseMetrics = dict[int, dict[str, float]]
"""Label -> name of the metric -> value; NaN where the metric is undefined."""


@dataclass(frozen=True)
class EvaluationReport:
    """The result of :func:`evaluate_dataset`.

    Attributes
    ----------
    metrics
        Case -> label -> metric -> value, in order of case names.
    labels
        Label -> name.
    failures
        Cases that could not be used, with the reason; they are left out of all metrics.
    warnings
        Differences between the dataset and the model that may be only of words.
    """

    metrics: Mapping[str, CaseMetrics]
    labels: Mapping[int, str]
    failures: tuple[DataError, ...]
    warnings: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """0 if every case was measured, else 1."""
        return 1 if self.failures else 0

    @property
    def summary(self) -> str:
        """A table with mean, median and standard deviation of every metric by label."""
        return summarise(self.metrics, self.labels)


def evaluate_dataset(
    predictor: Predictor,
    data: Path,
    out_csv: Path,
    *,
    overwrite: bool = False,
    progress: FractionProgress | None = None,
) -> EvaluationReport:
    """Predict every labelled case of a dataset, compare on the scan's own grid, and write a CSV file.

    The file has the columns case, label, label_name and one per metric of :func:`common.metrics.case_metrics`; one
    row per case and label. An undefined value is an empty cell (see ``LEGEND``). A case that cannot be used, for
    whatever reason, does not stop the others.

    Parameters
    ----------
    predictor
        The model.
    data
        Dataset folder with label maps, in one of the layouts of :mod:`common.imaging.datasets.dataset`.
    out_csv
        The file to write; its folder is created if missing.
    overwrite
        Replace ``out_csv`` if it exists; otherwise an existing file is an error.
    progress
        Called as the work proceeds.

    Raises
    ------
    ConfigError
        The dataset declares other labels than the model.
    DataError
        The folder is not a dataset, has no label maps, or none of its cases could be measured.
    OutputError
        The file exists or cannot be written.
    """
    labels = predictor.plan.labels
    dataset, problems = scan_dataset(data, predictor.terms.dicom, bids=predictor.terms.bids)
    dataset, differences = compare(dataset, predictor.wanted, predictor.terms)
    problems += differences
    errors = [problem for problem in problems if problem.severity == "error"]
    failures = [DataError(problem.path, problem.text) for problem in errors]
    if any(problem.case is None for problem in errors) or not dataset.cases:
        raise failures[0]
    if not dataset.has_labels:
        raise DataError(data, "has no label maps to compare with; give a dataset with labelsTr/ or labels/")
    if dataset.labels and set(dataset.labels) != set(labels):
        raise ConfigError(
            f"{data}: declares the labels {_named(dataset.labels)}, the model predicts {_named(labels)}; "
            "give a dataset and a model that match, or map labels by name: labels_map in site.yaml"
        )
    if out_csv.is_dir():
        raise OutputError(f"{out_csv}: is a folder; name a file, such as metrics.csv")
    if out_csv.exists() and not overwrite:
        raise OutputError(f"{out_csv}: exists; choose another name, or replace it with --overwrite")
    check_writable(out_csv.parent)
    metrics: dict[str, CaseMetrics] = {}
    refused = {problem.case for problem in errors}
    for index, case in enumerate(dataset.cases):
        if case.name in refused:
            continue
        try:
            with errors_of(case.images[0]):
                metrics[case.name] = _measure(predictor, case, part_of(progress, case.name, index, len(dataset.cases)))
        except DataError as error:
            failures.append(error)
    if not metrics:
        raise failures[0]
    write_atomically(out_csv, _to_csv(metrics, labels))
    warnings = tuple(str(item) for item in differences if item.severity == "warning")
    return EvaluationReport(metrics, labels, tuple(failures), warnings)


def summarise(metrics: Mapping[str, CaseMetrics], labels: Mapping[int, str]) -> str:
    """Make a table of mean, median and standard deviation over cases, by label and metric, with a legend.

    The standard deviation is that of the sample (n - 1) and needs at least two cases.
    """
    rows = [("label", "metric", "mean", "median", "sd", "cases")]
    for label, name in labels.items():
        for metric in _metric_names(metrics):
            values = np.array([case[label][metric] for case in metrics.values()])
            finite = values[np.isfinite(values)]
            deviation = float(finite.std(ddof=1)) if len(finite) > 1 else math.nan
            mean, median = (float(finite.mean()), float(np.median(finite))) if len(finite) else (math.nan, math.nan)
            figures = ["-" if math.isnan(value) else f"{value:.4f}" for value in (mean, median, deviation)]
            rows.append(
                (f"{label} {visible(name)}", metric, figures[0], figures[1], figures[2], f"{len(finite)}/{len(values)}")
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        words = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(words + numbers))
    return "\n".join([*lines, "", *textwrap.wrap(LEGEND, 100)])


def _measure(predictor: Predictor, case: Case, progress: CountProgress) -> CaseMetrics:
    volume, truth = predictor.load(case)
    if truth is None:
        raise DataError(case.images[0], "has no label map to compare with")
    prediction = predictor.predict(volume, progress=progress)
    return case_metrics(prediction, truth, list(predictor.plan.labels), volume.grid.spacing)


def _to_csv(metrics: Mapping[str, CaseMetrics], labels: Mapping[int, str]) -> str:
    names = _metric_names(metrics)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "label", "label_name", *names])
    for case, by_label in metrics.items():
        for label, label_name in labels.items():
            values = [by_label[label][name] for name in names]
            shown = [f"{value:.6g}" if math.isfinite(value) else "" for value in values]
            writer.writerow([csv_text(case), label, csv_text(label_name), *shown])
    return text.getvalue()


def _metric_names(metrics: Mapping[str, CaseMetrics]) -> Sequence[str]:
    first = next(iter(metrics.values()))
    return list(next(iter(first.values())))


def _named(labels: Mapping[int, str]) -> str:
    return ", ".join(f"{value} {visible(name)}" for value, name in sorted(labels.items()))
