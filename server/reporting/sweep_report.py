"""The report of a sweep: one HTML file with the trade-off curve and a table with links to the runs' reports."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.system.files import write_atomically
from server.reporting.figures import MEAN_STYLE, Curve, Panel, draw_panels, draw_swatch, site_style
from server.reporting.report import page_template
from server.reporting.sweep_result import SWEEP_FILE
from server.run_store.folder import REPORT_FILE
from server.run_store.record import as_number


def write_sweep_report(out: Path) -> Path:
    """Write ``report.html`` into the folder of a sweep, from its ``sweep.json``."""
    sweep = json.loads((out / SWEEP_FILE).read_text(encoding="utf-8"))
    path = out / REPORT_FILE
    write_atomically(path, render_sweep(sweep, out))
    return path


def render_sweep(sweep: Mapping[str, Any], out: Path) -> str:
    """Render the page as HTML, with links relative to ``out``."""
    runs: Sequence[Mapping[str, Any]] = sweep["runs"]
    sites = list(dict.fromkeys(site for run in runs for site in run["sites"]))
    done = sum(run["status"] == "finished" for run in runs)
    reference = next((as_number(run["mean_dice"]) for run in runs if run["value"] == "inf"), None)
    return page_template("sweep.html.jinja").render(
        key=sweep["key"],
        done=done,
        total=len(runs),
        runs=[_row(run, sites, reference, out) for run in runs],
        sites=sites,
        swatches={site: f"swatch-{index}" for index, site in enumerate(sites)},
        symbols=[draw_swatch(site_style(index), f"swatch-{index}") for index in range(len(sites))]
        + [draw_swatch(MEAN_STYLE, "swatch-mean")],
        curves=_curves(sweep["key"], runs, sites, reference) if done else None,
        reference=reference,
        has_epsilon=any(run["epsilon"] is not None for run in runs),
        problems=[(run["value"], run["problem"]) for run in runs if run.get("problem")],
    )


def _row(run: Mapping[str, Any], sites: Sequence[str], reference: float | None, out: Path) -> dict[str, Any]:
    score = as_number(run["mean_dice"])
    scores = [value for value in run["sites"].values() if value is not None]
    return {
        "value": run["value"],
        "status": run["status"],
        "mean_dice": score,
        "share": None if score is None or not reference else f"{100 * score / reference:.0f} %",
        "sites": [as_number(run["sites"].get(site)) for site in sites],
        "spread": f"{min(scores):.3f} to {max(scores):.3f}" if scores else None,
        "epsilon": as_number(run["epsilon"]),
        "seconds": as_number(run["seconds"]),
        "link": f"{run['folder']}/{REPORT_FILE}" if (out / run["folder"] / REPORT_FILE).exists() else None,
    }


def _curves(key: str, runs: Sequence[Mapping[str, Any]], sites: Sequence[str], reference: float | None) -> str:
    """Draw Dice against the values, in the order given and equally spaced."""
    places = list(range(len(runs)))
    curves = [
        Curve(places, [_number(run["sites"].get(site)) for run in runs], site_style(index))
        for index, site in enumerate(sites)
    ]
    curves.append(Curve(places, [_number(run["mean_dice"]) for run in runs], MEAN_STYLE))
    ticks = [str(run["value"]) for run in runs]
    panel = Panel("Dice of the released model", key, "Dice", curves, (0.0, 1.0), reference=reference, ticks=ticks)
    return draw_panels([panel], "sweep", f"Curves of each site's validation Dice against {key}")


def _number(value: object) -> float:
    number = as_number(value)
    return math.nan if number is None else number
