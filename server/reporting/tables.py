"""The tables of the report, computed from a run's record. The page formats most numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean, median, quantiles, stdev
from typing import Any

from common.formatting import fixed
from server.formatting import NOTHING, format_bytes, format_seconds
from server.run_store.record import CaseScore, RunRecord, as_number, as_scores

_METRICS = {
    "hd95_mm": "95th-percentile Hausdorff distance (HD95), mm",
    "assd_mm": "average surface distance (ASSD), mm",
    "nsd_at_1mm": "normalised surface Dice at 1 mm (NSD)",
    "volume_error": "volume error",
}


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    return {
        "mean": mean(values),
        "sd": stdev(values) if len(values) > 1 else None,
        "median": median(values),
        "worst": min(values),
        "count": len(values),
    }


def site_table(run: RunRecord, best_round: int | None) -> dict[str, Any]:
    """List sites with their Dice by label: the spread over cases if known, else the site's mean in the best round."""
    line = run.line_of_model(best_round)
    rows = []
    for site in run.sites:
        part = None if line is None else line.sites.get(site.name)
        rows.append(
            {
                "name": site.name,
                "train": site.train,
                "validation": site.validation,
                "differs": site.differs,
                "spreads": [_spread(_dice_values(run, label, site.name)) for label in run.labels],
                "means": [None if part is None else part.dice.get(label) for label in run.labels],
                "epsilon": run.epsilon_spent(site.name),
            }
        )
    return {
        "rows": rows,
        "total_train": sum(site.train or 0 for site in run.sites),
        "total_validation": sum(site.validation or 0 for site in run.sites),
        "total_spreads": [_spread(_dice_values(run, label, None)) for label in run.labels],
        "has_cases": bool(run.cases),
        "has_epsilon": any(row["epsilon"] is not None for row in rows),
    }


def _dice_values(run: RunRecord, label: int, site: str | None) -> list[float]:
    return [
        case.metrics["dice"]
        for case in run.cases
        if case.label == label and "dice" in case.metrics and site in (None, case.site)
    ]


def metric_table(run: RunRecord) -> dict[str, Any] | None:
    """Compute median and quartiles of all metrics but Dice over all validation cases, by label."""
    columns = [key for key in _METRICS if any(key in case.metrics for case in run.cases)]
    if not columns:
        return None
    rows = []
    for label, name in run.labels.items():
        cases = [case for case in run.cases if case.label == label]
        rows.append({"name": name, "cells": [_metric_cell(cases, key) for key in columns], "cases": len(cases)})
    return {"columns": [_METRICS[key] for key in columns], "rows": rows}


def _metric_cell(cases: Sequence[CaseScore], key: str) -> dict[str, Any]:
    values = [case.metrics[key] for case in cases if key in case.metrics]
    digits = 2 if key.endswith("_mm") and not key.startswith("nsd") else 3
    if len(values) > 1:
        low, middle, high = (fixed(value, digits) for value in quantiles(values, n=4, method="inclusive"))
    else:
        low, middle, high = "", fixed(values[0], digits) if values else NOTHING, ""
    return {
        "text": middle,
        "range": f"{low} to {high}" if low else "",
        "undefined": len(cases) - len(values),
    }


def pooled_table(run: RunRecord) -> dict[str, Any] | None:
    """Compare the federated model with one trained on the pooled data."""
    pooled = run.summary.get("pooled")
    if not isinstance(pooled, dict):
        return None
    federated, together = as_scores(run.summary.get("best_dice")), as_scores(pooled.get("dice"))
    pairs = [("mean", as_number(run.summary.get("best_mean_dice")), as_number(pooled.get("mean_dice")))]
    pairs += [(name, federated.get(label), together.get(label)) for label, name in run.labels.items()]
    return {
        "rows": [
            {
                "name": name,
                "federated": ours,
                "pooled": theirs,
                "difference": None if ours is None or theirs is None else fixed(ours - theirs, 3, signed=True),
            }
            for name, ours, theirs in pairs
        ],
        "federated_seconds": as_number(run.summary.get("seconds")),
        "pooled_seconds": as_number(pooled.get("seconds")),
    }


def timing_table(run: RunRecord) -> dict[str, Any] | None:
    """Compute the median time of a training round, by site and by activity, and of whole rounds."""
    rows = []
    for site in run.sites:
        parts = [line.sites[site.name] for line in run.training_rounds if site.name in line.sites]
        timed = [part for part in parts if part.seconds is not None and part.status == "ok"]
        if not timed:
            continue
        shares = [
            median([getattr(part, f"seconds_{share}") or 0.0 for part in timed])
            for share in ("data", "compute", "evaluate")
        ]
        whole = median([part.seconds or 0.0 for part in timed])
        shares.append(max(whole - sum(shares), 0.0))
        total = sum(shares) or 1.0
        rows.append(
            {
                "name": site.name,
                "median": whole,
                "shares": [{"seconds": share, "percent": 100 * share / total} for share in shares],
                "total": sum(part.seconds or 0.0 for part in timed),
            }
        )
    rounds = [line.seconds for line in run.training_rounds if line.seconds is not None]
    if not rows and not rounds:
        return None
    return {
        "rows": rows,
        "round": {"median": median(rounds), "fastest": min(rounds), "slowest": max(rounds)} if rounds else None,
    }


def absences(run: RunRecord) -> list[dict[str, str]]:
    """List sites that did not count in some rounds, with the reasons."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for line in run.rounds:
        for name, part in line.sites.items():
            if part.status != "ok":
                found.setdefault((name, part.status, part.reason or ""), []).append(line.number)
    return [
        {"site": site, "status": status, "reason": reason or "no reason given", "rounds": _as_ranges(numbers)}
        for (site, status, reason), numbers in found.items()
    ]


def _as_ranges(numbers: Sequence[int]) -> str:
    """Format ascending numbers as ranges: ``1, 3–5``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ", ".join(f"{span[0]}–{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)


def costs(run: RunRecord) -> list[tuple[str, str]]:
    """Return what a round costs per site, and what Ray took, as names and texts."""
    parts = [part for line in run.training_rounds for part in line.sites.values() if part.status == "ok"]
    seconds, training, scoring = (
        _median(getattr(part, name) for part in parts) for name in ("seconds", "seconds_compute", "seconds_evaluate")
    )
    facts = []
    if seconds is not None:
        text = f"{format_seconds(seconds)} (median)"
        if training is not None and scoring is not None:
            text += f", of it {format_seconds(training)} training and {format_seconds(scoring)} scoring"
        facts.append(("A round at a site", text))
    uses = [event for event in run.events if event.get("event") == "ray"]
    keys = ("workers", "cpus", "gpus", "largest_memory")
    workers, cpus, gpus, memory = (as_number(uses[-1].get(key)) if uses else None for key in keys)
    if workers is not None and cpus is not None and gpus is not None:
        text = f"{workers:.0f}, with {cpus:g} processor cores and {gpus:g} GPUs each"
        if memory is not None:
            text += f"; at most {format_bytes(memory)} of memory"
        facts.append(("Ray workers", text))
    return facts


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
