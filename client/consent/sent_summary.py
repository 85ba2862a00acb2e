"""Summary of what left this building: the audit log's entries of that, totalled by day and by round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from client.state_folder import FINGERPRINT_EVENT
from common.audit import Entry

FINGERPRINT = "fingerprints"
UPDATE, NUMBERS, SIGN_OF_LIFE, DECLARATION, ERROR = "updates", "scores", "signs of life", "declarations", "error codes"


@dataclass(frozen=True)
class Departure:
    """One message that left.

    Attributes
    ----------
    kind
        ``updates`` (weights and numbers), ``scores`` (numbers only), ``declarations``, ``error codes`` or
        ``fingerprints`` (written to be sent by hand). Only earlier versions also logged heartbeats (``signs of life``),
        which carry nothing about patients.
    run, round
        As the server's task named them; empty and 0 if it did not.
    sha256
        Digest of the update's file; of the whole message if there is no update, and in logs of earlier versions.
    """

    time: str
    kind: str
    run: str
    round: int
    bytes: int
    sha256: str
    epsilon: float | None


def departures(entries: Iterable[Entry]) -> list[Departure]:
    """List every message that left, and every fingerprint that was written to be sent, in order."""
    return [_departure(entry) for entry in entries if entry.event in ("sent", FINGERPRINT_EVENT)]


def summary(sent: Sequence[Departure]) -> dict[str, Any]:
    """Total the messages, overall, by day (UTC) and by round, as plain values."""
    spent = [departure.epsilon for departure in sent if departure.epsilon is not None]
    return {
        "total": _total(sent),
        "epsilon": max(spent, default=None),
        "days": [{"day": day} | _total(group) for day, group in _groups(sent, lambda departure: departure.time[:10])],
        "rounds": [
            {"run": run, "round": number}
            | _total(group)
            | {"sha256": [departure.sha256 for departure in group if departure.kind == UPDATE]}
            for (run, number), group in _groups(sent, lambda departure: (departure.run, departure.round))
        ],
    }


def as_text(content: Mapping[str, Any]) -> str:
    """Render the summary as text."""
    if not content["total"]["messages"]:
        return "WHAT LEFT THIS BUILDING\nNothing."
    epsilon = content["epsilon"]
    spent = f"Differential-privacy budget spent: {'none' if epsilon is None else f'epsilon {epsilon:.2f}'}."
    days = [[day["day"], *_cells(day)] for day in content["days"]]
    rounds = [
        [line["run"][:8], str(line["round"] or "-"), *_cells(line), " ".join(digest[:12] for digest in line["sha256"])]
        for line in content["rounds"]
    ]
    columns = ["messages", "bytes", "kinds"]
    return "\n\n".join(
        [
            "WHAT LEFT THIS BUILDING",
            "\n".join(_table([["day (UTC)", *columns], *days, ["all days", *_cells(content["total"])]])),
            "\n".join(_table([["run", "round", *columns, "SHA-256 of updates"], *rounds])),
            spent,
        ]
    )


def _departure(entry: Entry) -> Departure:
    details = entry.details
    epsilon = details.get("epsilon")
    kind = FINGERPRINT if entry.event == FINGERPRINT_EVENT else _kind(details)
    return Departure(
        time=entry.time,
        kind=kind,
        run=str(details.get("run", "")),
        round=_whole(details.get("round")),
        bytes=_whole(details.get("bytes")),
        sha256=str(details.get("update") or details.get("sha256", "")),
        epsilon=epsilon if isinstance(epsilon, float) else None,
    )


def _kind(details: Mapping[str, Any]) -> str:
    """Return the kind of message that an entry describes, in the format of this or an earlier version."""
    fields = details.get("fields")
    names = set(fields) if isinstance(fields, dict) else set()
    if "error" in details:
        return ERROR
    if details.get("update") or details.get("tensors"):
        return UPDATE
    if names & {"train_loss", "numbers"}:
        return NUMBERS
    return SIGN_OF_LIFE if "progress" in names else DECLARATION


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _groups(sent: Sequence[Departure], key: Callable[[Departure], Any]) -> Iterable[tuple[Any, list[Departure]]]:
    grouped: dict[Any, list[Departure]] = {}
    for departure in sent:
        grouped.setdefault(key(departure), []).append(departure)
    return grouped.items()


def _total(sent: Sequence[Departure]) -> dict[str, Any]:
    kinds: dict[str, int] = {}
    for departure in sent:
        kinds[departure.kind] = kinds.get(departure.kind, 0) + 1
    return {"messages": len(sent), "bytes": sum(departure.bytes for departure in sent), "kinds": kinds}


def _cells(total: Mapping[str, Any]) -> list[str]:
    kinds = ", ".join(f"{count} {kind}" for kind, count in total["kinds"].items())
    return [str(total["messages"]), f"{total['bytes']:,}", kinds]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
