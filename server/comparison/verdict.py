"""The sentence that a comparison is made for: which algorithm beats FedAvg, by how much, or that none does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.formatting import counted, fixed

SIGNIFICANT = 0.05
Row = Mapping[str, Any]


def verdict(arms: Sequence[Row], against: Sequence[Row], reference: str, finished: bool) -> str | None:
    """Say which federated arms beat the reference; None if there is no other one to compare with it.

    An arm beats it if the 95 % interval of the paired difference lies above 0 and p, corrected for the number of arms
    (Holm), is below ``SIGNIFICANT``.

    Parameters
    ----------
    arms, against
        ``arms`` and ``against_reference`` of the results.
    reference
        The arm that the others are tested against.
    finished
        Whether all runs are done.
    """
    federated = {row["arm"] for row in arms if row["data"] == "sites"}
    rows = [row for row in against if row["arm"] in federated and row["difference"] is not None]
    rows.sort(key=lambda row: -row["difference"]["value"])
    if not rows:
        return None
    so_far = "" if finished else "As far as runs are finished: "
    if better := [row for row in rows if _beats(row)]:
        return so_far + "; ".join(f"{row['arm']} beats {reference} by {_margin(row)}" for row in better) + "."
    best = rows[0]["arm"] if len(rows) == 1 else f"the best of {len(rows)} others, {rows[0]['arm']},"
    return f"{so_far}No algorithm beats {reference}: {best} differs by {_margin(rows[0])}."


def _beats(row: Row) -> bool:
    low = row["difference"]["low"]
    return low is not None and low > 0 and row["p_holm"] < SIGNIFICANT


def _margin(row: Row) -> str:
    found = row["difference"]
    value, low, high = (
        None if found[key] is None else fixed(found[key], 4, signed=True) for key in ("value", "low", "high")
    )
    span = "no interval" if low is None else f"95 % interval {low} to {high}"
    patients = counted(found["patients"], "patient")
    p = "< 0.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}"
    return f"{value} Dice ({span}, {patients}, p {p} after Holm)"
