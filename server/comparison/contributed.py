"""What each site contributed to the federated models of a comparison, where their runs keep updates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from server.comparison.runs import ModelRun
from server.run_store.record_reader import CONTRIBUTIONS_FILE


def contributed(runs: Sequence[ModelRun]) -> list[dict[str, Any]]:
    """Return what each site contributed to the models of each arm: the mean over seeds, and how much it varies."""
    found: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    looked_at: dict[str, dict[str, Any]] = {}
    for run in runs:
        content = _read(run.folder)
        for site, part in content.get("sites", {}).items():
            found.setdefault((run.arm.name, site), []).append(part)
            looked_at[run.arm.name] = {"rounds": len(content["rounds"]), "scans": content["patients"]}
    return [
        {
            "arm": arm,
            "site": site,
            "shapley": mean(part["shapley"] for part in parts),
            "sd_over_seeds": stdev(part["shapley"] for part in parts) if len(parts) > 1 else None,
            "error": math.hypot(*(part["error"] for part in parts)) / len(parts),
            "without": mean(part["without"] for part in parts),
            "seeds": len(parts),
            **looked_at[arm],
        }
        for (arm, site), parts in found.items()
    ]


def _read(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / CONTRIBUTIONS_FILE).read_bytes())
        return {key: content[key] for key in ("sites", "rounds", "patients")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
