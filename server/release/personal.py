"""What a summary says of the sites' personal models, without importing torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config.federation import FederationConfig
from common.models.bundle_file import DESCRIPTION_FILE

NORMS_KEPT = (
    "The norm layers of the released model were never trained: every site kept its own. It is a base for personal "
    "models, and its scores are those that it reached as it is."
)


def personal_summary(config: FederationConfig, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Compare the personal models with the global one of the same round, in the last round with a score of one.

    Returns
    -------
    dict[str, Any] | None
        ``method``; ``model_round``, ``mean_dice`` and ``global_mean_dice`` over the sites that reported a score, and
        ``sites`` (name -> both Dice), all None or empty if none did. None if sites have no personal models.
    """
    if config.personal is None:
        return None
    last = next((line for line in reversed(rounds) if line["personal_mean_dice"] is not None), None)
    scores = {} if last is None else _scores(last)
    return {
        "method": config.personal.method,
        "model_round": None if last is None else last["model_round"],
        "mean_dice": _mean([own for own, _ in scores.values()]),
        "global_mean_dice": _mean([common for _, common in scores.values()]),
        "sites": {name: {"mean_dice": own, "global_mean_dice": common} for name, (own, common) in scores.items()},
    }


def with_bundle_scores(summary: dict[str, Any] | None, bundles: Mapping[str, Path]) -> dict[str, Any] | None:
    """Return a summary with the scores in the bundles of simulated sites, which are exact also under privacy."""
    if summary is None or summary["sites"]:
        return summary
    found: dict[str, dict[str, float | None]] = {}
    for name, folder in bundles.items():
        file = folder / DESCRIPTION_FILE
        if file.exists():
            about = json.loads(file.read_text(encoding="utf-8"))["provenance"]
            found[name] = {"mean_dice": about["mean_validation_dice"], "global_mean_dice": None}
            summary = summary | {"model_round": about["round"]}
    mean = _mean([score["mean_dice"] for score in found.values()])
    return summary | {"mean_dice": mean, "sites": found}


def _scores(line: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    sites = {name: site for name, site in line["sites"].items() if site["status"] == "ok"}
    reported = {name: site for name, site in sites.items() if site["personal_mean_dice"] is not None}
    return {name: (site["personal_mean_dice"], site["mean_dice"]) for name, site in reported.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
