"""The report of a comparison: one HTML file with its tables and plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.formatting import counted, fixed
from common.system.files import write_atomically
from server.formatting import NOTHING
from server.reporting.figures import IntervalPanel, draw_intervals
from server.reporting.report import page_template
from server.run_store.folder import REPORT_FILE

MOST_SITE_PANELS = 8
_COLUMNS = {
    "dice": ("Dice", "Mean Dice", 3),
    "hd95_mm": ("HD95", "95th-percentile Hausdorff distance (HD95), mm", 2),
    "nsd": ("NSD", "Normalised surface Dice at 1 mm (NSD)", 3),
}


def write_comparison_report(out: Path, results: Mapping[str, Any]) -> Path:
    """Write ``report.html`` into the folder of a comparison."""
    path = out / REPORT_FILE
    write_atomically(path, render_comparison(results, out))
    return path


def render_comparison(results: Mapping[str, Any], out: Path) -> str:
    """Render the page as HTML, with links relative to ``out``."""
    sites = list(results["sites"])
    return page_template("comparison.html.jinja").render(
        results=results,
        sites=sites,
        done=sum(run["status"] == "finished" for run in results["runs"]),
        problems=[run for run in results["runs"] if run["problem"]],
        cards=_cards(results),
        arms=[_arm_row(row, results) for row in results["arms"]],
        arm_plot=_arm_plot(results),
        matrices=[
            {"title": title, "rows": _matrix(results, column, sites)} for column, (_, title, _) in _COLUMNS.items()
        ],
        alone=[
            row | {"text": _signed(row["difference"]), "patients": row["difference"]["patients"]}
            for row in results["against_alone"]
        ],
        alone_plot=_alone_plot(results, sites),
        plotted_sites=min(len(sites), MOST_SITE_PANELS),
        contributed=[
            row
            | {key: fixed(row[key], 4, signed=True) for key in ("shapley", "without")}
            | {"error": fixed(row["error"], 4) if row["error"] else None}
            | {"sd": NOTHING if row["sd_over_seeds"] is None else fixed(row["sd_over_seeds"], 4)}
            for row in results["contributed"]
        ],
        labels=list(results["labels"].values()),
        runs=[
            run | {"link": f"{run['folder']}/{REPORT_FILE}" if (out / run["folder"] / REPORT_FILE).exists() else None}
            for run in results["runs"]
        ],
    )


def _text(interval: Mapping[str, Any] | None, digits: int) -> dict[str, str]:
    """Format a value and, below it, its interval."""
    if interval is None:
        return {"value": NOTHING, "range": ""}
    low, high = interval["low"], interval["high"]
    span = "" if low is None else f"{fixed(low, digits)} to {fixed(high, digits)}"
    return {"value": fixed(interval["value"], digits), "range": span}


def _signed(interval: Mapping[str, Any] | None, digits: int = 3) -> dict[str, str]:
    if interval is None:
        return {"value": NOTHING, "range": ""}
    low, high = interval["low"], interval["high"]
    span = "" if low is None else f"{fixed(low, digits, signed=True)} to {fixed(high, digits, signed=True)}"
    return {"value": fixed(interval["value"], digits, signed=True), "range": span}


def _p_text(value: float | None) -> str:
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _cards(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the headline figures as name, value and explanation."""
    best = results["best"]
    cards = []
    if best is not None:
        dice = _text(best["dice"], 3)
        over = "" if results["finished"] else ", over the patients and seeds that all federated arms have"
        cards.append(
            ("Best federated arm", best["arm"], f"mean Dice {dice['value']} ({dice['range'] or 'no interval'}){over}")
        )
        if "margin" in best:
            margin = _signed(best["margin"])
            cards.append((f"Margin over {results['reference']}", margin["value"], margin["range"]))
        elif best["arm"] == results["reference"]:
            cards.append((f"Margin over {results['reference']}", "none", "no federated arm has a higher mean Dice"))
        if best.get("ratio_to_pooled"):
            ratio = _text(best["ratio_to_pooled"], 3)
            cards.append(("Relative to pooled", ratio["value"], ratio["range"]))
    alone = results["against_alone"]
    if alone:
        worse, clear = (len({row["site"] for row in alone if row[key]}) for key in ("worse", "clearly_worse"))
        cards.append(
            ("Sites worse than alone", f"{worse} of {len(results['sites'])}",
             f"in at least one federated arm; {clear} beyond the interval")
        )  # fmt: skip
    patients = max((row["dice"]["patients"] for row in results["arms"] if row["dice"]), default=0)
    cards.append(("Validation patients", str(patients), f"scored with {counted(len(results['seeds']), 'seed')}"))
    return cards


def _arm_row(row: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    against = next((found for found in results["against_reference"] if found["arm"] == row["arm"]), None)
    return {
        "arm": row["arm"],
        "name": _name(row),
        "runs": "" if row["runs_done"] == row["runs"] else f"{row['runs_done']} of {counted(row['runs'], 'run')}",
        "patients": row["dice"]["patients"] if row["dice"] else 0,
        "seeds": len(row["seeds"]),
        "meaning": row["meaning"],
        "steps": row["steps"],
        "cells": [_text(row[column], digits) for column, (_, _, digits) in _COLUMNS.items()],
        "of_sites": _text(row["dice_of_sites"], 3),
        "labels": [_text(row["labels"][name], 3) for name in results["labels"].values()],
        "sd": _sd_text(row),
        "undefined": row["undefined_distances"],
        "difference": _signed(against["difference"]) if against else None,
        "difference_sd": _sd_text(against) if against else NOTHING,
        "p": _p_text(against["p"]) if against else NOTHING,
        "p_holm": _p_text(against["p_holm"]) if against else NOTHING,
    }


def _name(row: Mapping[str, Any]) -> str:
    """Return an arm's name, with a star if some of its runs are missing."""
    return f"{row['arm']}{'' if row['runs_done'] == row['runs'] else ' *'}"


def _sd_text(row: Mapping[str, Any]) -> str:
    return NOTHING if row["sd_over_seeds"] is None else fixed(row["sd_over_seeds"], 3)


def _matrix(results: Mapping[str, Any], column: str, sites: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row of cells for each model; of those with all runs, the best value of each column is marked."""
    digits = _COLUMNS[column][2]
    better = min if column == "hd95_mm" else max
    models = results["matrix"]
    names = {row["arm"]: _name(row) for row in results["arms"]}
    complete = [names[row["arm"]] == row["arm"] for row in models]
    cells = [[_text(row[column][site], digits) for site in [*sites, ""]] for row in models]
    best = []
    for texts in zip(*cells, strict=True):
        values = [text["value"] for text, all_runs in zip(texts, complete, strict=True) if all_runs]
        values = [value for value in values if value != NOTHING]
        best.append(better(values, key=float) if values else None)
    return [
        {
            "name": f"{names[row['arm']]}, {row['model_site']}" if row["model_site"] else names[row["arm"]],
            "cells": [
                text | {"best": all_runs and text["value"] == top} for text, top in zip(texts, best, strict=True)
            ],
        }
        for row, texts, all_runs in zip(models, cells, complete, strict=True)
    ]


def _interval_row(interval: Mapping[str, Any] | None) -> tuple[float, float, float] | None:
    if interval is None:
        return None
    low, high = (math.nan if interval[end] is None else interval[end] for end in ("low", "high"))
    return interval["value"], low, high


def _arm_plot(results: Mapping[str, Any]) -> str | None:
    names = [_name(row) for row in results["arms"]]
    if not names:
        return None
    pooled = next((row["dice"]["value"] for row in results["arms"] if row["arm"] == "pooled" and row["dice"]), None)
    panels = [
        IntervalPanel(title, _COLUMNS[column][0], names, [_interval_row(row[column]) for row in results["arms"]], line)
        for column, title, line in (
            ("dice", "Dice", pooled),
            ("hd95_mm", "HD95, mm", None),
            ("nsd", "NSD at 1 mm", None),
        )
    ]
    return draw_intervals(panels, "arms", "Mean Dice, HD95 and NSD of every arm with intervals")


def _alone_plot(results: Mapping[str, Any], sites: Sequence[str]) -> str | None:
    """Draw, for each of the first sites, how much better or worse every federated arm is than the site alone."""
    rows = results["against_alone"]
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    if not arms:
        return None
    found = {(row["arm"], row["site"]): _interval_row(row["difference"]) for row in rows}
    panels = [
        IntervalPanel(site, "Dice, federated - alone", arms, [found.get((arm, site)) for arm in arms], 0.0)
        for site in sites[:MOST_SITE_PANELS]
    ]
    return draw_intervals(panels, "alone", "Difference in Dice between federated arms and each site alone")
