"""The report of a run: one HTML file with the model's performance, its privacy and its cost.

The report uses only the run folder, so it can be written at any time, even for a running or an interrupted run. The
page is self-contained: it embeds its styles and pictures and has no scripts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template

from common.system.files import write_atomically
from common.web.rendering import STATIC, environment
from server.formatting import NOTHING, format_bytes, format_seconds, scores_are_noised
from server.reporting.conduct_section import conduct_section
from server.reporting.contributions_section import contributions_section
from server.reporting.figures import MEAN_STYLE, draw_swatch, site_style
from server.reporting.personal_section import personal_section
from server.reporting.privacy_section import privacy_section
from server.reporting.slices import draw_case, label_colour, prediction_colour
from server.reporting.tables import absences, costs, metric_table, pooled_table, site_table, timing_table
from server.reporting.training_curves import learning_curves, loss_curves
from server.run_store.folder import REPORT_FILE
from server.run_store.record import Example, RunRecord, as_number
from server.run_store.record_reader import read_run

MOST_EXAMPLES_OF_A_KIND = 3
MOST_BYTES_OF_PICTURES = 1_400_000
MOST_EVENTS = 200

_STATUS = {
    "finished": ("Finished", "All rounds are complete."),
    "stopped": ("Stopped", "The run ended before its last planned round."),
    "interrupted": (
        "Interrupted",
        "The run was interrupted. This report shows the rounds that are complete. Resume the run with --resume.",
    ),
    "unfinished": (
        "Not finished",
        "There is no summary yet: the run is still in progress, or it ended without writing one. "
        "This report shows the rounds that are complete.",
    ),
}


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run folder, from the files in that folder.

    Missing or damaged files leave a gap in the report; damaged ones also add a note.

    Parameters
    ----------
    run_dir
        The folder of a run, finished or not.

    Returns
    -------
    Path
        The path of the report.

    Raises
    ------
    FedvoxError
        If ``run_dir`` is not the folder of a run.
    OutputError
        If the report cannot be written there.
    """
    path = run_dir / REPORT_FILE
    write_atomically(path, render_report(read_run(run_dir)))
    return path


def render_report(run: RunRecord) -> str:
    """Render the page as HTML."""
    best_round = _best_model_round(run)
    return page_template("report.html.jinja").render(
        title=run.title,
        description=str(run.configuration.get("description") or ""),
        phantom="phantom" in run.title.lower() or bool(_nested(run.configuration, "simulation", "phantom")),
        status=run_status(run),
        complete=bool(run.summary),
        headline=_headline(run, best_round),
        swatches={site.name: f"swatch-{index}" for index, site in enumerate(run.sites)},
        symbols=[draw_swatch(site_style(index), f"swatch-{index}") for index in range(len(run.sites))]
        + [draw_swatch(MEAN_STYLE, "swatch-mean")],
        curves=learning_curves(run, best_round),
        losses=loss_curves(run),
        best_round=best_round,
        labels=run.labels,
        privacy=privacy_section(run),
        conduct=conduct_section(run),
        contributions=contributions_section(run),
        personal=personal_section(run),
        sites=site_table(run, best_round),
        metrics=metric_table(run),
        pooled=pooled_table(run),
        examples=_examples(run),
        label_colours=[(name, label_colour(label), prediction_colour(label)) for label, name in run.labels.items()],
        timing=timing_table(run),
        absences=absences(run),
        model=_model_facts(run),
        facts=_facts(run),
        events=_events(run),
        configuration=run.configuration_text,
        notes=run.notes,
    )


def page_template(name: str) -> Template:
    """Load a template of this package, with escaping and the filters that all pages share."""
    pages = environment([Path(__file__).parent / "templates", STATIC])
    pages.filters["score"] = lambda value: NOTHING if value is None else f"{value:.3f}"
    pages.filters["seconds"] = lambda value: NOTHING if value is None else format_seconds(value)
    pages.filters["count"] = lambda value: NOTHING if value is None else f"{value:,}"
    return pages.get_template(name)


def _nested(mapping: Mapping[str, Any], *keys: str) -> object:
    value: object = mapping
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def run_status(run: RunRecord) -> dict[str, str]:
    """Return ``key``, ``title`` and ``text`` of a run's status."""
    key = str(run.summary.get("status", "unfinished"))
    title, text = _STATUS.get(key, (key, ""))
    if key == "stopped" and run.summary.get("stopped_early") is True:
        title = "Stopped early"
        text = "Validation Dice stopped improving, so the run ended before its last planned round, as configured."
    return {"key": key if key in _STATUS else "other", "title": title, "text": text}


def _best_model_round(run: RunRecord) -> int | None:
    """Return the round of the released model, or of the best model so far."""
    stated = as_number(run.summary.get("best_round"))
    if stated is not None:
        return int(stated)
    scored = [(line.mean_dice, -line.model_round) for line in run.rounds if line.mean_dice is not None]
    return -max(scored)[1] if scored else None


def _headline(run: RunRecord, best_round: int | None) -> list[tuple[str, str, str]]:
    """Return the headline figures as name, value and explanation."""
    line = run.line_of_model(best_round)
    best = as_number(run.summary.get("best_mean_dice"))
    best = line.mean_dice if best is None and line is not None else best
    done = as_number(run.summary.get("rounds_done"))
    done = len(run.training_rounds) if done is None else int(done)
    seconds = as_number(run.summary.get("seconds"))
    seconds = sum(line.seconds or 0.0 for line in run.rounds) if seconds is None else seconds
    traffic = {}
    for key in ("bytes_up", "bytes_down"):
        stated = as_number(run.summary.get(key))
        traffic[key] = sum(getattr(line, key) or 0.0 for line in run.rounds) if stated is None else stated
    planned = run.rounds_planned
    name, meaning, reason = (
        "Best mean Dice",
        "mean over validation patients, then over sites",
        "the round with the highest median Dice over sites",
    )
    if scores_are_noised(run.configuration):
        name = "Mean Dice"
        meaning = "from the sites' scores, which carry noise; see the table of sites for exact values, if known"
        reason = "the last round whose median Dice over sites is within noise of the highest"
    released = "Released model" if run.summary else "Best model so far"
    return [
        (name, NOTHING if best is None else f"{best:.3f}", meaning),
        (released, NOTHING if best_round is None else f"round {best_round}", reason),
        ("Rounds", f"{done}" if planned is None else f"{done} of {planned}", "each site trains once per round"),
        ("Sites", str(len(run.sites)), "no site shares its scans"),
        ("Time", format_seconds(seconds), _meaning_of_time(run)),
        ("Traffic", format_bytes(traffic["bytes_up"] + traffic["bytes_down"]),
         f"{format_bytes(traffic['bytes_up'])} from the sites, {format_bytes(traffic['bytes_down'])} to them"),
    ]  # fmt: skip


def _pooled_seconds(run: RunRecord) -> float | None:
    return as_number(_nested(run.summary, "pooled", "seconds"))


def _meaning_of_time(run: RunRecord) -> str:
    if not run.summary:
        return "of complete rounds"
    pooled = _pooled_seconds(run)
    if pooled is None:
        return "of all rounds"
    return f"of all federated rounds; pooled training took another {format_seconds(pooled)}"


def _examples(run: RunRecord) -> list[dict[str, Any]]:
    """Draw the best cases, best first, and the worst cases, worst first."""
    groups = {"Best cases": _ranked(run, "best")[::-1], "Worst cases": _ranked(run, "worst")}
    chosen = {title: examples[:MOST_EXAMPLES_OF_A_KIND] for title, examples in groups.items() if examples}
    for dots_per_inch in (100, 75, 50):
        pictures = {
            title: [draw_case(example, dots_per_inch) for example in examples] for title, examples in chosen.items()
        }
        if sum(len(source) for sources in pictures.values() for source in sources) <= MOST_BYTES_OF_PICTURES:
            break
    return [
        {
            "title": title,
            "pictures": [
                _picture(run, example, source) for example, source in zip(examples, pictures[title], strict=True)
            ],
        }
        for title, examples in chosen.items()
    ]


def _ranked(run: RunRecord, kind: str) -> list[Example]:
    examples = [example for example in run.examples if example.kind == kind]
    return sorted(examples, key=lambda example: example.mean_dice if example.mean_dice is not None else 0.0)


def _picture(run: RunRecord, example: Example, source: str) -> dict[str, Any]:
    scores = {
        case.label: case.metrics["dice"]
        for case in run.cases
        if (case.site, case.case) == (example.site, example.case) and "dice" in case.metrics
    }
    return {
        "site": example.site,
        "case": example.case,
        "mean_dice": example.mean_dice,
        "dice": [(run.label_name(label), score) for label, score in sorted(scores.items())],
        "source": source,
    }


def _model_facts(run: RunRecord) -> list[tuple[str, str]]:
    plan = run.plan
    if plan is None:
        return []
    facts = [
        ("Labels", ", ".join(f"{value} {name}" for value, name in plan.labels.items())),
        ("Input channels", ", ".join(plan.channels)),
        ("Voxel size", _by_axis(plan.preprocessing.spacing, "mm") if plan.preprocessing.spacing else "of each scan"),
        ("Patch", _by_axis(plan.patch_size, "voxels")),
        ("Network", f"3D U-Net, channels {', '.join(map(str, plan.model.channels))}"),
    ]
    parameters = as_number(run.summary.get("parameters"))
    return facts if parameters is None else [*facts, ("Parameters", f"{parameters:,.0f}")]


def _by_axis(values: Sequence[float], unit: str) -> str:
    return f"{' × '.join(f'{value:g}' for value in values)} {unit}"


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    """Return times, settings and versions of the run."""
    facts = [
        (title, as_time(run.summary[key]))
        for title, key in (("Started", "started"), ("Ended", "finished"))
        if run.summary.get(key)
    ]
    seconds = as_number(run.summary.get("seconds"))
    if seconds is not None:
        facts.append(("Time of all rounds", format_seconds(seconds)))
    if (pooled := _pooled_seconds(run)) is not None:
        facts.append(("Time of pooled training", format_seconds(pooled)))
    facts += [
        (title, str(run.summary[key]))
        for title, key in (("Seed", "seed"), ("Engine", "engine"), ("Device", "device"), ("Precision", "precision"))
        if run.summary.get(key) is not None
    ]
    facts += costs(run)
    versions = run.summary.get("versions")
    if isinstance(versions, dict):
        facts += [(f"Version of {name}", str(version)) for name, version in versions.items()]
    return facts


def as_time(value: object) -> str:
    """Format an ISO 8601 time without fractional seconds; return other text unchanged."""
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return str(value)
    return moment.strftime("%Y-%m-%d %H:%M:%S ") + (moment.tzname() or "")


def _events(run: RunRecord) -> dict[str, Any]:
    """Return the last events as time, name and details."""
    shown = [
        {
            "time": as_time(event.get("time", "")),
            "event": str(event.get("event", "")),
            "details": ", ".join(
                f"{key}: {value if isinstance(value, str) else json.dumps(value)}"
                for key, value in event.items()
                if key not in ("time", "event")
            ),
        }
        for event in run.events[-MOST_EVENTS:]
    ]
    return {"shown": shown, "earlier": len(run.events) - len(shown)}
