"""Scores by patient: means over the labels and scans of a patient, kept apart by seed so that arms can be paired."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from server.comparison.scores import ModelScores
from server.comparison.statistics import Values

Patient = tuple[str, str]
"""Site and patient."""
BySeed = Mapping[Patient, Mapping[int, float]]
"""Patient -> seed -> score; patients without a defined score are missing."""


def patient_scores(models: Iterable[ModelScores], column: str, label: int | None = None) -> BySeed:
    """Return each patient's mean over labels (or of one label) and scans for one model, trained with several seeds.

    Parameters
    ----------
    models
        At most one per seed and patient.
    column
        Of ``METRICS``.
    label
        None takes all.
    """
    values: dict[tuple[Patient, int], list[float]] = {}
    for model in models:
        for score in model.scores:
            value = score.values[column]
            if label in (None, score.label) and math.isfinite(value):
                values.setdefault(((score.site, score.patient), model.seed), []).append(value)
    result: dict[Patient, dict[int, float]] = {}
    for (patient, seed), found in values.items():
        result.setdefault(patient, {})[seed] = float(np.mean(found))
    return result


def own_scores(models: Iterable[ModelScores], column: str, label: int | None = None) -> BySeed:
    """Return patients' scores by the model that their own site would use: the shared one, or the site's own."""
    own = [
        ModelScores(
            *(model.arm, model.seed, model.model_site),
            tuple(score for score in model.scores if model.model_site in ("", score.site)),
        )
        for model in models
    ]
    return patient_scores(own, column, label)


def paired(arms: Sequence[BySeed], sites: Sequence[str]) -> list[Values]:
    """Return arrays (patients, arms), one per site: means over the seeds in which all arms have scored a patient."""
    groups: dict[str, list[list[float]]] = {site: [] for site in sites}
    for patient in sorted(arms[0]):
        seeds = set(arms[0][patient]).intersection(*(arm.get(patient, {}) for arm in arms[1:]))
        if seeds and patient[0] in groups:
            groups[patient[0]].append([float(np.mean([arm[patient][seed] for seed in seeds])) for arm in arms])
    return [np.array(rows, dtype=np.float64).reshape(len(rows), len(arms)) for rows in groups.values()]


def pooled(groups: Sequence[Values]) -> list[Values]:
    """Return the groups as one, so that every patient counts alike whatever their site."""
    return [np.concatenate(groups)]
