"""The results of a comparison: tables of means, intervals and tests, as JSON values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import mean, stdev
from typing import Any

import numpy as np

from server.comparison.arms import ALONE, POOLED, REFERENCE, Arm
from server.comparison.contributed import contributed
from server.comparison.folder import Question
from server.comparison.patients import BySeed, own_scores, paired, patient_scores, pooled
from server.comparison.runs import ModelRun, Setting
from server.comparison.scores import METRICS, ModelScores
from server.comparison.statistics import FEWEST_TO_TELL, Interval, Values, bootstrap, holm, wilcoxon_p
from server.comparison.verdict import verdict
from server.run_store.damage import SUMMARY_FILE


def results_of(
    setting: Setting,
    question: Question,
    models: Sequence[ModelScores],
    runs: Sequence[tuple[ModelRun, bool]],
    problems: Mapping[str, str],
) -> dict[str, Any]:
    """Return everything that the report shows.

    Parameters
    ----------
    setting, question
        What is compared.
    models
        The scores of all models that are complete.
    runs
        Every run, and whether its scores are among them.
    problems
        Name of a run that failed -> why.
    """
    sites = sorted(setting.partition.sites)
    by_arm = {arm: [model for model in models if model.arm == arm.name] for arm in question.arms}
    known = {arm: found for arm, found in by_arm.items() if found}
    own = {arm.name: own_scores(found, "dice") for arm, found in known.items()}
    federated = [arm.name for arm in known if arm.data == "sites"]
    site_steps = _site_steps(setting)
    finished = all(done for _, done in runs)
    rows = [
        _arm_row(arm, found, own, sites, setting.plan.labels) | _made(arm, setting, runs)
        for arm, found in known.items()
    ]
    against = _against_reference(own, sites)
    return {
        "name": setting.config.name,
        "description": setting.config.description,
        "phantom": setting.config.simulation is not None and setting.config.simulation.phantom is not None,
        "finished": finished,
        "verdict": verdict(rows, against, REFERENCE, finished),
        "sites": {name: setting.partition.sites[name].differs for name in sites},
        "labels": {str(label): name for label, name in setting.plan.labels.items()},
        "rounds": setting.config.rounds,
        "local_steps": max(site_steps),
        "steps_differ": len(set(site_steps)) > 1,
        "seeds": list(question.seeds),
        "reference": REFERENCE,
        "arms": rows,
        "against_reference": against,
        "matrix": [row for arm, found in known.items() for row in _matrix_rows(arm, found, sites)],
        "against_alone": _against_alone(own, federated, sites),
        "contributed": contributed([run for run, done in runs if done]),
        "best": _best(own, federated, sites),
        "personal": [arm.name for arm in known if arm.personal is not None],
        "settings_differ": any(arm.changes for arm in question.arms),
        "runs": [_run_row(setting, run, done, problems) for run, done in runs],
    }


def _difference(means: Values) -> Values:
    return means[..., 0] - means[..., 1]


def _ratio(means: Values) -> Values:
    # No share of nothing: models that have learnt nothing score 0.
    return means[..., 0] / np.where(means[..., 1] > 0, means[..., 1], np.nan)


def _first(means: Values) -> Values:
    return means[..., 0]


def _json(interval: Interval | None) -> dict[str, Any] | None:
    """Convert to JSON values; None where the statistic is undefined for the patients or for one of the samples."""
    if interval is None or not math.isfinite(interval.value):
        return None
    if interval.low is not None and not math.isfinite(interval.low):
        return None
    return asdict(interval)


def _made(arm: Arm, setting: Setting, runs: Sequence[tuple[ModelRun, bool]]) -> dict[str, Any]:
    """Return the steps of an arm's models, and how many of its runs are done, and so on whose patients it is scored."""
    own = [done for run, done in runs if run.arm == arm]
    return {"steps": _steps(arm, setting), "runs_done": sum(own), "runs": len(own)}


def _steps(arm: Arm, setting: Setting) -> int:
    """Return the gradient steps of one model at one site; the most if sites make different numbers."""
    steps = _site_steps(setting)
    return setting.config.rounds * (sum(steps) if arm.all_steps else max(steps))


def _site_steps(setting: Setting) -> list[int]:
    """Return the steps per round of every site in the federation."""
    return [setting.config.training.steps_of(len(site.train)) for site in setting.partition.sites.values()]


def _arm_row(
    arm: Arm, models: Sequence[ModelScores], own: Mapping[str, BySeed], sites: Sequence[str], labels: Mapping[int, str]
) -> dict[str, Any]:
    """Summarise an arm over all patients, each scored by the model that their own site would use."""
    dice = paired([own[arm.name]], sites)
    row: dict[str, Any] = {"arm": arm.name, "meaning": arm.meaning, "data": arm.data}
    for column in METRICS:
        row[column] = _json(bootstrap(pooled(paired([own_scores(models, column)], sites)), _first))
    row["dice_of_sites"] = _json(bootstrap(dice, _first))
    row["labels"] = {
        name: _json(bootstrap(pooled(paired([own_scores(models, "dice", label)], sites)), _first))
        for label, name in labels.items()
    }
    row["seeds"] = sorted({model.seed for model in models})
    row["sd_over_seeds"] = _sd_over_seeds(own[arm.name])
    row["undefined_distances"] = _undefined(models)
    return row


def _sd_over_seeds(scores: BySeed) -> float | None:
    """Return the standard deviation, over seeds, of the mean over patients; None for one seed."""
    by_seed: dict[int, list[float]] = {}
    for values in scores.values():
        for seed, value in values.items():
            by_seed.setdefault(seed, []).append(value)
    return stdev(mean(values) for values in by_seed.values()) if len(by_seed) > 1 else None


def _differences(scores: BySeed, reference: BySeed) -> BySeed:
    """Return each patient's difference from the reference, in the seeds in which both have scored them."""
    return {
        patient: {
            seed: value - reference[patient][seed] for seed, value in values.items() if seed in reference[patient]
        }
        for patient, values in scores.items()
        if patient in reference
    }


def _undefined(models: Sequence[ModelScores]) -> int:
    """Count the structures that are only in the scan or only in the prediction: they have no distance."""
    return sum(
        1
        for model in models
        for score in model.scores
        if model.model_site in ("", score.site) and not np.isfinite(score.values["hd95_mm"])
    )


def _against_reference(own: Mapping[str, BySeed], sites: Sequence[str]) -> list[dict[str, Any]]:
    """Test every arm against the reference, patient by patient."""
    if REFERENCE not in own:
        return []
    pairs = {arm: paired([scores, own[REFERENCE]], sites) for arm, scores in own.items() if arm != REFERENCE}
    tested = {arm: pooled(groups) for arm, groups in pairs.items() if sum(map(len, groups))}
    p_values = {arm: wilcoxon_p(_difference(groups[0])) for arm, groups in tested.items()}
    corrected = holm(p_values)
    return [
        {
            "arm": arm,
            "difference": _json(bootstrap(groups, _difference)),
            "sd_over_seeds": _sd_over_seeds(_differences(own[arm], own[REFERENCE])),
            "p": p_values[arm],
            "p_holm": corrected[arm],
        }
        for arm, groups in tested.items()
    ]


def _matrix_rows(arm: Arm, models: Sequence[ModelScores], sites: Sequence[str]) -> list[dict[str, Any]]:
    """Summarise every model of an arm on every site's patients."""
    rows = []
    for model_site in sorted({model.model_site for model in models}):
        same = [model for model in models if model.model_site == model_site]
        row: dict[str, Any] = {"arm": arm.name, "model_site": model_site}
        for column in METRICS:
            groups = paired([patient_scores(same, column)], sites)
            row[column] = {
                site: _json(bootstrap([group], _first)) for site, group in zip(sites, groups, strict=True)
            } | {"": _json(bootstrap(pooled(groups), _first))}
        rows.append(row)
    return rows


def _against_alone(own: Mapping[str, BySeed], federated: Sequence[str], sites: Sequence[str]) -> list[dict[str, Any]]:
    """Compare, for every site, the federation's model with the one that the site trained alone."""
    if ALONE not in own:
        return []
    rows = []
    for arm in federated:
        groups = paired([own[arm], own[ALONE]], sites)
        for site, group in zip(sites, groups, strict=True):
            found = bootstrap([group], _difference)
            if found is not None:
                too_few = found.patients < FEWEST_TO_TELL
                row: dict[str, Any] = {"arm": arm, "site": site, "difference": _json(found), "too_few": too_few}
                row["worse"] = found.value < 0
                row["clearly_worse"] = not too_few and found.high is not None and found.high < 0
                rows.append(row)
    return rows


def _best(own: Mapping[str, BySeed], federated: Sequence[str], sites: Sequence[str]) -> dict[str, Any] | None:
    """Compare the best federated arm with pooled training and with the reference.

    It is the one with the highest mean Dice over the patients and seeds that all federated arms have.
    """
    if not federated:
        return None
    (common,) = pooled(paired([own[arm] for arm in federated], sites))
    if not len(common):
        return None
    column = int(np.argmax(common.mean(axis=0)))
    best = federated[column]
    row: dict[str, Any] = {"arm": best, "dice": _json(bootstrap([common[:, column : column + 1]], _first))}
    if POOLED in own:
        groups = paired([own[best], own[POOLED]], sites)
        row["ratio_to_pooled"] = _json(bootstrap(pooled(groups), _ratio))
        row["ratio_to_pooled_of_sites"] = _json(bootstrap(groups, _ratio))
    if REFERENCE in own and best != REFERENCE:
        row["margin"] = _json(bootstrap(pooled(paired([own[best], own[REFERENCE]], sites)), _difference))
    return row


def _run_row(setting: Setting, run: ModelRun, done: bool, problems: Mapping[str, str]) -> dict[str, Any]:
    try:
        summary = json.loads((run.folder / SUMMARY_FILE).read_bytes())
        seconds = summary["seconds"]
    except (OSError, ValueError, KeyError, TypeError):
        seconds = None
    problem = problems.get(run.name)
    return {
        "arm": run.arm.name,
        "seed": run.seed,
        "model_site": run.model_site,
        "folder": run.folder.relative_to(setting.options.out).as_posix(),
        "status": "finished" if done else "failed" if problem else "waiting",
        "seconds": seconds,
        "problem": problem,
    }
