"""The report's section on what each site contributed, from ``contributions.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.formatting import counted, fixed
from server.formatting import NOTHING
from server.run_store.record import RunRecord, as_number


def contributions_section(run: RunRecord) -> dict[str, Any] | None:
    """Return the section's table, largest contribution first, and how it was computed; None if nobody asked."""
    found = run.contributions.get("sites")
    if not isinstance(found, Mapping):
        return None
    sites = {str(name): part for name, part in found.items() if isinstance(part, Mapping)}
    value = {name: as_number(part.get("shapley")) or 0.0 for name, part in sites.items()}
    orders, patients = (as_number(run.contributions.get(key)) for key in ("orders", "patients"))
    rounds = run.contributions.get("rounds")
    return {
        "rows": [
            {
                "name": name,
                "shapley": fixed(value[name], 4, signed=True),
                "error": fixed(as_number(sites[name].get("error")) or 0.0, 4) if orders else None,
                "without": fixed(as_number(sites[name].get("without")) or 0.0, 4, signed=True),
            }
            for name in sorted(sites, key=lambda name: (-value[name], name))
        ],
        "gain": fixed(as_number(run.contributions.get("gain")) or 0.0, 4, signed=True),
        "rounds": counted(len(rounds), "round") if isinstance(rounds, list) else NOTHING,
        "orders": counted(int(orders), "random order") if orders else None,
        "patients": counted(int(patients), "validation scan") if patients else None,
    }
