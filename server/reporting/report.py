"""The report of a run: one HTML file that shows what was trained, how well it does, and what it cost.

Everything comes from the run folder, so a report can be made again at any time, also of a run that goes on or was
interrupted. The page needs no network: styles and pictures are inside, and there is no script.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from common.system.files import write_atomically
from server.formatting import NOTHING, format_bytes, format_seconds, scores_are_noised
from server.reporting.figures import (
    MEAN_STYLE,
    Curve,
    CurveStyle,
    Panel,
    draw_case,
    draw_panels,
    draw_swatch,
    label_colour,
    prediction_colour,
    site_style,
)
from server.reporting.privacy_section import privacy_section
from server.reporting.tables import absences, metric_table, pooled_table, site_table, timing_table
from server.run_store.record import Example, Round, RunRecord, SiteRound, as_number, as_scores, read_run

# More panels than this are too small to read; the table of sites has every label.
MOST_LABEL_PANELS = 4
MOST_EXAMPLES_OF_A_KIND = 3
MOST_BYTES_OF_PICTURES = 1_400_000
MOST_EVENTS = 200

_STATUS = {
    "finished": ("Finished", "All rounds were done."),
    "stopped": ("Stopped", "The run ended before its last planned round."),
    "interrupted": (
        "Interrupted",
        "The run was interrupted: this report shows what was finished by then. It can be started again with --resume.",
    ),
    "unfinished": (
        "Not finished",
        "There is no summary yet: the run is still going on, or it ended without writing one. "
        "This report shows the rounds that are complete.",
    ),
}


def write_report(run_dir: Path) -> Path:
    """Writes ``report.html`` into a run folder, from what lies in that folder.

    Files that are missing or damaged leave a gap in the report and, if damaged, a note.

    Parameters
    ----------
    run_dir
        the folder of a run, finished or not.

    Returns
    -------
    Path
        The path of the report.

    Raises
    ------
    FedvoxError
        ``run_dir`` is not the folder of a run.
    OutputError
        the report cannot be written there.
    """
    path = run_dir / "report.html"
    write_atomically(path, render_report(read_run(run_dir)))
    return path


def render_report(run: RunRecord) -> str:
    """The page as text."""
    best_round = _best_model_round(run)
    return page_template("report.html.jinja").render(
        title=_name(run),
        description=str(run.configuration.get("description") or ""),
        phantom="phantom" in _name(run).lower() or bool(_nested(run.configuration, "simulation", "phantom")),
        status=_status(run),
        complete=bool(run.summary),
        headline=_headline(run, best_round),
        swatches={site.name: f"swatch-{index}" for index, site in enumerate(run.sites)},
        symbols=[draw_swatch(site_style(index), f"swatch-{index}") for index in range(len(run.sites))]
        + [draw_swatch(MEAN_STYLE, "swatch-mean")],
        curves=_learning_curves(run, best_round),
        losses=_loss_curves(run),
        best_round=best_round,
        labels=run.labels,
        privacy=privacy_section(run),
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
    """A template of this package, whose values are escaped, with the filters that pages share."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = lambda value: NOTHING if value is None else f"{value:.3f}"
    environment.filters["seconds"] = lambda value: NOTHING if value is None else format_seconds(value)
    environment.filters["count"] = lambda value: NOTHING if value is None else f"{value:,}"
    return environment.get_template(name)


def _name(run: RunRecord) -> str:
    return str(run.summary.get("name") or run.configuration.get("name") or run.folder.resolve().name)


def _nested(mapping: Mapping[str, Any], *keys: str) -> object:
    value: object = mapping
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _status(run: RunRecord) -> dict[str, str]:
    key = str(run.summary.get("status", "unfinished"))
    title, text = _STATUS.get(key, (key, ""))
    if key == "stopped" and run.summary.get("stopped_early") is True:
        title = "Stopped early"
        text = "Validation Dice had stopped rising, so the run ended before its last planned round, as configured."
    return {"key": key if key in _STATUS else "other", "title": title, "text": text}


def _best_model_round(run: RunRecord) -> int | None:
    """The round after which the released model stood, or the best one so far."""
    stated = as_number(run.summary.get("best_round"))
    if stated is not None:
        return int(stated)
    scored = [(line.mean_dice, -line.model_round) for line in run.rounds if line.mean_dice is not None]
    return -max(scored)[1] if scored else None


def _headline(run: RunRecord, best_round: int | None) -> list[tuple[str, str, str]]:
    """Pairs of a name and a value, with a word of explanation."""
    line = run.line_of_model(best_round)
    best = as_number(run.summary.get("best_mean_dice"))
    best = line.mean_dice if best is None and line is not None else best
    done = as_number(run.summary.get("rounds_done"))
    done = len(run.training_rounds) if done is None else int(done)
    seconds = as_number(run.summary.get("seconds"))
    seconds = sum(line.seconds or 0.0 for line in run.rounds) if seconds is None else seconds
    moved = {}
    for key in ("bytes_up", "bytes_down"):
        stated = as_number(run.summary.get(key))
        moved[key] = sum(getattr(line, key) or 0.0 for line in run.rounds) if stated is None else stated
    planned = run.rounds_planned
    name, meaning, why = (
        "Best mean Dice",
        "of validation patients, then of sites",
        "after this round, mean Dice was highest",
    )
    if scores_are_noised(run.configuration):
        name = "Mean Dice"
        meaning = "as the sites sent it, with noise; exact values stand in the table of sites where they are known"
        why = "the last one whose mean Dice is not lower than another's by more than noise explains"
    released = "Released model" if run.summary else "Best model so far"
    return [
        (name, NOTHING if best is None else f"{best:.3f}", meaning),
        (released, NOTHING if best_round is None else f"round {best_round}", why),
        ("Rounds", f"{done}" if planned is None else f"{done} of {planned}", "each site trains once in a round"),
        ("Sites", str(len(run.sites)), "none of them shares a scan"),
        ("Time", format_seconds(seconds), _meaning_of_time(run)),
        ("Moved", format_bytes(moved["bytes_up"] + moved["bytes_down"]),
         f"{format_bytes(moved['bytes_up'])} from the sites, {format_bytes(moved['bytes_down'])} to them"),
    ]  # fmt: skip


def _pooled_seconds(run: RunRecord) -> float | None:
    return as_number(_nested(run.summary, "pooled", "seconds"))


def _meaning_of_time(run: RunRecord) -> str:
    if not run.summary:
        return "in complete rounds"
    pooled = _pooled_seconds(run)
    if pooled is None:
        return "of all rounds"
    return f"of all rounds of the federation; pooled training, for comparison, took {format_seconds(pooled)} more"


def _learning_curves(run: RunRecord, best_round: int | None) -> str | None:
    """Validation Dice against the round after which the model stood."""
    if not any(line.mean_dice is not None or line.dice for line in run.rounds):
        return None
    pooled = run.summary.get("pooled")
    references = as_scores(pooled.get("dice")) if isinstance(pooled, dict) else {}
    reference = as_number(pooled.get("mean_dice")) if isinstance(pooled, dict) else None

    def panel(title: str, label: int | None) -> Panel:
        return Panel(
            title=title,
            x_label="model after round",
            y_label="Dice",
            curves=_dice_curves(run, label),
            limits=(0.0, 1.0),
            released=best_round,
            reference=reference if label is None else references.get(label),
        )

    whole = panel("Mean of labels" if len(run.labels) > 1 else run.label_name(1), None)
    panels = [whole]
    enlarged = _enlarged(whole)
    if enlarged is not None:
        panels.append(enlarged)
    if 1 < len(run.labels) <= MOST_LABEL_PANELS:
        panels += [panel(name, label) for label, name in run.labels.items()]
    return draw_panels(panels, "dice", "Curves of validation Dice of every site against the round of the model")


def _dice_curves(run: RunRecord, label: int | None) -> list[Curve]:
    def score(part: SiteRound | Round) -> float | None:
        return part.mean_dice if label is None else part.dice.get(label)

    x = [line.model_round for line in run.rounds]
    return [*_curves_of_sites(run, run.rounds, x, score), _curve(x, map(score, run.rounds), MEAN_STYLE)]


def _curves_of_sites(
    run: RunRecord, lines: Sequence[Round], x: Sequence[int], value: Callable[[SiteRound], float | None]
) -> list[Curve]:
    curves = []
    for index, site in enumerate(run.sites):
        parts = [line.sites.get(site.name) for line in lines]
        curves.append(_curve(x, (None if part is None else value(part) for part in parts), site_style(index)))
    return curves


def _curve(x: Sequence[int], y: Iterable[float | None], style: CurveStyle) -> Curve:
    return Curve(x, [math.nan if value is None else value for value in y], style)


def _enlarged(panel: Panel) -> Panel | None:
    """The second half of a panel's rounds, with the vertical axis fitted to it; None if that adds nothing."""
    rounds = panel.curves[0].x
    if len(rounds) < 5:
        return None
    half = len(rounds) // 2
    curves = [Curve(curve.x[half:], curve.y[half:], curve.style) for curve in panel.curves]
    values = [value for curve in curves for value in curve.y if math.isfinite(value)]
    if not values:
        return None
    margin = max(0.08 * (max(values) - min(values)), 0.005)
    limits = (max(min(values) - margin, 0.0), min(max(values) + margin, 1.0))
    reference = panel.reference if panel.reference is not None and limits[0] <= panel.reference <= limits[1] else None
    released = panel.released if panel.released is not None and panel.released >= rounds[half] else None
    title = f"{panel.title}, from round {rounds[half]} on (enlarged)"
    return Panel(title, panel.x_label, panel.y_label, curves, limits, released, reference)


def _loss_curves(run: RunRecord) -> str | None:
    """Training loss against the round, validation loss against the round after which the model stood."""
    trained = run.training_rounds
    x = [line.number for line in trained]
    training = _curves_of_sites(run, trained, x, lambda part: part.train_loss)
    training.append(_curve(x, (line.train_loss for line in trained), MEAN_STYLE))
    x = [line.model_round for line in run.rounds]
    validation = _curves_of_sites(run, run.rounds, x, lambda part: part.validation_loss)
    panels = [
        Panel(title, x_label, "loss", curves)
        for title, x_label, curves in (
            ("Training loss", "round", training),
            ("Validation loss", "model after round", validation),
        )
        if any(math.isfinite(value) for curve in curves for value in curve.y)
    ]
    return draw_panels(panels, "loss", "Curves of the loss of every site against the round") if panels else None


def _examples(run: RunRecord) -> list[dict[str, Any]]:
    """Pictures of the best cases, best first, and of the worst, worst first."""
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
    """Times, versions and settings of the run itself."""
    facts = [
        (title, _as_time(run.summary[key]))
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
    versions = run.summary.get("versions")
    if isinstance(versions, dict):
        facts += [(f"Version of {name}", str(version)) for name, version in versions.items()]
    return facts


def _as_time(value: object) -> str:
    """An ISO 8601 time without its fraction of a second; other text as it is."""
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return str(value)
    return moment.strftime("%Y-%m-%d %H:%M:%S ") + (moment.tzname() or "")


def _events(run: RunRecord) -> dict[str, Any]:
    """The last events as time, name and the rest as text."""
    shown = [
        {
            "time": _as_time(event.get("time", "")),
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
