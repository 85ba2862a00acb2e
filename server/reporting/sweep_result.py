"""The result of one run of a sweep, as stored in ``sweep.json``."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from common.errors import FedvoxError
from server.run_store.record import RunRecord, as_number
from server.run_store.record_reader import read_run

SWEEP_FILE = "sweep.json"


def read_result(folder: Path) -> dict[str, Any]:
    """Read status, exact Dice of the released model, epsilon spent and time of a run, finished or not.

    Dice values come from ``validation.csv``, without the noise of a private run's own scores: the mean over a site's
    cases by label, then over labels, then over sites.

    Returns
    -------
    dict[str, Any]
        JSON values: ``status``, ``mean_dice``, ``sites`` (Dice by site), ``labels`` (Dice by label name), ``epsilon``
        (of the site that spent the most), ``rounds``, ``seconds``; None for unknown values.
    """
    try:
        run = read_run(folder)
    except FedvoxError:
        run = RunRecord(folder)
    by_site = {site.name: _by_label(run, site.name) for site in run.sites}
    sites = {name: mean(scores.values()) for name, scores in by_site.items() if scores}
    labels = {
        name: mean(found)
        for label, name in run.labels.items()
        if (found := [scores[label] for scores in by_site.values() if label in scores])
    }
    finished = run.summary.get("status") == "finished"
    return {
        "status": str(run.summary.get("status", "waiting" if not run.rounds else "unfinished")),
        "mean_dice": mean(sites.values()) if sites and finished else None,
        "sites": sites if finished else {},
        "labels": labels if finished else {},
        "epsilon": run.epsilon_spent(),
        "rounds": as_number(run.summary.get("rounds_done")),
        "seconds": as_number(run.summary.get("seconds")),
    }


def _by_label(run: RunRecord, site: str) -> dict[int, float]:
    scores: dict[int, list[float]] = {}
    for case in run.cases:
        if case.site == site and "dice" in case.metrics:
            scores.setdefault(case.label, []).append(case.metrics["dice"])
    return {label: mean(values) for label, values in scores.items()}
