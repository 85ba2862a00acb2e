"""The scores of one run's models on every site's validation patients, and all of them as one CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import DamagedFileError
from common.formatting import csv_text
from common.system.state_file import put_aside, read_sealed, write_sealed
from server.release.validation import Scored

SCORES_FILE = "scores.json"
METRICS = {"dice": "dice", "hd95_mm": "hd95_mm", "nsd": "nsd_at_1mm"}
"""Column -> metric of ``common.metrics``."""


@dataclass(frozen=True)
class Score:
    """One structure of one scan, as a model segments it.

    Attributes
    ----------
    site
        The patient's.
    values
        By column of ``METRICS``; NaN where it is undefined.
    """

    site: str
    patient: str
    case: str
    label: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class ModelScores:
    """The scores of one model.

    Attributes
    ----------
    model_site
        The site whose model it is; empty for one that all sites share.
    """

    arm: str
    seed: int
    model_site: str
    scores: tuple[Score, ...]


def scores_of(scored: Iterable[Scored], owners: Mapping[str, str]) -> list[Score]:
    """Convert scored validation cases; ``owners`` maps cases to patients."""
    return [
        Score(
            item.site,
            owners[item.case.name],
            item.case.name,
            label,
            {column: _finite(metrics[metric]) for column, metric in METRICS.items()},
        )
        for item in scored
        for label, metrics in item.metrics.items()
    ]


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan


def write_scores(folder: Path, model: Mapping[str, object], scores: Sequence[Score]) -> None:
    """Write the scores of a run's model into its folder; ``model`` says which model it is."""
    rows = [
        [score.site, score.patient, score.case, score.label, *(_or_none(score.values[column]) for column in METRICS)]
        for score in scores
    ]
    write_sealed(folder / SCORES_FILE, {"model": dict(model), "columns": list(METRICS), "scores": rows})


def read_scores(folder: Path, model: Mapping[str, object]) -> tuple[Score, ...] | None:
    """Return the scores of a run's model; None if there are none, or only another model's or damaged ones."""
    file = folder / SCORES_FILE
    if not file.exists():
        return None
    try:
        content, _ = read_sealed(file, "")
        if content["model"] != dict(model) or content["columns"] != list(METRICS):
            return None
        return tuple(_score(row) for row in content["scores"])
    except (DamagedFileError, KeyError, TypeError, ValueError):
        put_aside(file)
        return None


def _score(row: Sequence[object]) -> Score:
    site, patient, case, label, *values = row
    found = {
        column: math.nan if value is None else float(str(value)) for column, value in zip(METRICS, values, strict=True)
    }
    return Score(str(site), str(patient), str(case), int(str(label)), found)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def scores_table(models: Iterable[ModelScores], labels: Mapping[int, str]) -> str:
    """Return all scores as CSV: a row per arm, seed, model, scan and label; undefined values stay empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "seed", "model_site", "site", "patient", "case", "label", "label_name", *METRICS])
    for model in models:
        for score in model.scores:
            names = [csv_text(name) for name in (model.model_site, score.site, score.patient, score.case)]
            values = ["" if math.isnan(score.values[column]) else f"{score.values[column]:.6f}" for column in METRICS]
            writer.writerow([model.arm, model.seed, *names, score.label, csv_text(labels[score.label]), *values])
    return text.getvalue()
