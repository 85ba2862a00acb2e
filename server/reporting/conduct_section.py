"""The report's section on what each site's updates did to the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from server.reporting.figures import Curve, Panel, draw_panels, site_style
from server.run_store.record import RunRecord, SiteRound


def conduct_section(run: RunRecord) -> dict[str, Any] | None:
    """Return the section's alarms, table and curves; None for a run without any length of an update."""
    parts = {
        site.name: [line.sites[site.name] for line in run.training_rounds if site.name in line.sites]
        for site in run.sites
    }
    if not any(part.length is not None for several in parts.values() for part in several):
        return None
    quarantined: dict[str, str] = {}
    for event in run.events:
        if event.get("event") == "site_quarantined":
            quarantined[str(event.get("site"))] = str(event.get("reason"))
        elif event.get("event") == "site_released":
            quarantined.pop(str(event.get("site")), None)
    return {
        "alarms": _alarms(run),
        "rows": [_row(run, name, several, quarantined.get(name)) for name, several in parts.items()],
        "has_gaps": any(run.gaps(site.name) for site in run.sites),
        "curves": _curves(run),
    }


def _alarms(run: RunRecord) -> list[str]:
    """Return the last text of every alarm, in the order of their first appearance."""
    texts = {str(event.get("about")): str(event.get("text")) for event in run.events if event.get("event") == "alarm"}
    return list(texts.values())


def _row(run: RunRecord, name: str, parts: Sequence[SiteRound], quarantined: str | None) -> dict[str, Any]:
    gaps = list(run.gaps(name).values())
    lengths = [part.length for part in parts if part.length is not None]
    cosines = [part.cosine for part in parts if part.cosine is not None]
    scales = [part.scale for part in parts if part.scale is not None and part.scale < 1]
    return {
        "name": name,
        "counted": sum(part.status == "ok" for part in parts),
        "refused": sum(part.status == "refused" for part in parts),
        "length": median(lengths) if lengths else None,
        "scaled": len(scales),
        "smallest_scale": min(scales, default=None),
        "cosine": median(cosines) if cosines else None,
        "lowest_cosine": min(cosines, default=None),
        "gap": median(gaps) if gaps else None,
        "quarantined": quarantined,
    }


def _curves(run: RunRecord) -> str:
    x = [line.number for line in run.training_rounds]
    cosines, lengths, gaps = [], [], []
    for index, site in enumerate(run.sites):
        parts = [line.sites.get(site.name) for line in run.training_rounds]
        style = site_style(index)
        known = run.gaps(site.name)
        gaps.append(Curve(list(known), list(known.values()), style))
        cosines.append(Curve(x, [_known(None if part is None else part.cosine) for part in parts], style))
        lengths.append(Curve(x, [_known(None if part is None else part.length) for part in parts], style))
    panels = [
        Panel("Direction", "round", "cosine to the other sites", cosines, limits=(-1.05, 1.05)),
        Panel("Length", "round", "length of the update", lengths),
    ]
    if any(curve.x for curve in gaps):
        panels.append(Panel("Own model", "round", "Dice above the global", gaps, reference=0.0))
    return draw_panels(panels, "conduct", "Curves of the direction and length of each site's update by round")


def _known(value: float | None) -> float:
    return math.nan if value is None else value
