"""The part of the report on the sites' personal models, from the run's summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.formatting import fixed
from server.run_store.record import RunRecord, as_number

_METHODS = {
    "norms": "Every site keeps the scales and shifts of its norm layers and shares all other weights. The norm layers "
    "of the released model were never trained: it is a base for personal models, and its scores are those that it "
    "reached as it is.",
    "ditto": "Every site trains a second model of its own, held near the global one.",
}


def personal_section(run: RunRecord) -> dict[str, Any] | None:
    """Compare the personal models with the global one of the same round; None if the run has none."""
    found = run.summary.get("personal")
    if not isinstance(found, dict):
        return None
    sites = found.get("sites")
    rows = [_row(str(name), about) for name, about in (sites.items() if isinstance(sites, dict) else ())]
    return {
        "meaning": _METHODS.get(str(found.get("method")), ""),
        "round": as_number(found.get("model_round")),
        "rows": [*rows, _row("", found)] if rows else [],
    }


def _row(name: str, about: object) -> dict[str, Any]:
    scores: Mapping[str, object] = about if isinstance(about, dict) else {}
    own, common = as_number(scores.get("mean_dice")), as_number(scores.get("global_mean_dice"))
    difference = None if own is None or common is None else fixed(own - common, 3, signed=True)
    return {"name": name, "personal": own, "global": common, "difference": difference}
