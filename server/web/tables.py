"""The tables of a run's page, as values; its templates and texts say the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from common.formatting import fixed
from server.formatting import NOTHING, format_bytes, format_seconds
from server.run_store.record import Round, RunRecord, as_number
from server.web.history import SiteHistory
from server.web.watched_run import Seen

MOST_EVENTS = 20


def site_rows(seen: Seen) -> list[dict[str, Any]]:
    """Return what is known of every site that is named anywhere.

    Returns
    -------
    list[dict[str, Any]]
        ``connected`` is None where there is no server; ``progress`` is (step, steps) in this round, and ``now`` how the
        site's work in it ended, both only while there is a server; ``last`` is what the site reported, or why it did
        not count, in the last round (``last_round``) that it was part of; ``refusals`` are its requests that the
        gateway refused, by reason.
    """
    network = seen.status.network if seen.status else None
    quarantine = seen.state.quarantine if seen.state else {}
    known = {site.name: site for site in seen.record.sites}
    live = network.sites if network else {}
    runs = network is not None and network.running
    rows = []
    for name in dict.fromkeys([*known, *live, *quarantine]):
        site, about = known.get(name), _mapping(live.get(name))
        past = seen.history.sites.get(name, SiteHistory())
        rows.append(
            {
                "name": name,
                "connected": bool(about.get("connected")) if runs and about else None,
                "seen": short_time(about.get("seen")),
                "progress": _progress(about) if runs else None,
                "now": str(about.get("status") or "") if runs else "",
                "last": past.last,
                "last_round": past.last_round,
                "dice": score(past.last.mean_dice if past.last else None),
                "loss": score(past.last.train_loss if past.last else None),
                "time": seconds(past.last.seconds if past.last else None),
                "patients": (site.train, site.validation) if site else (None, None),
                "epsilon": score(past.epsilon),
                "refused_rounds": past.refused,
                "quarantine": str(quarantine.get(name, "")),
                "released": name in seen.released,
                "refusals": _mapping(network.refused.get(name)) if network else {},
            }
        )
    return rows


def strangers(seen: Seen) -> Mapping[str, int]:
    """Return the gateway's refusals of senders that are no site: reason -> number."""
    network = seen.status.network if seen.status else None
    names = {site.name for site in seen.record.sites} | set(network.sites if network else ())
    found: dict[str, int] = {}
    for name, reasons in (network.refused if network else {}).items():
        for reason, count in _mapping(reasons).items() if name not in names else ():
            found[reason] = found.get(reason, 0) + int(as_number(count) or 0)
    return found


def process_rows(seen: Seen) -> list[tuple[str, str, int]]:
    """Return name, state and restarts of the server's processes; nothing where no server runs."""
    network = seen.status.network if seen.status else None
    if network is None or not network.running:
        return []
    rows = [(name, _mapping(about)) for name, about in network.processes.items()]
    return [(name, str(about.get("state", "")), int(as_number(about.get("restarts")) or 0)) for name, about in rows]


def round_rows(lines: Iterable[Round]) -> list[dict[str, Any]]:
    """Return the rounds, newest first."""
    return [
        {
            "number": line.number,
            "phase": line.phase,
            "dice": score(line.mean_dice),
            "loss": score(line.train_loss),
            "time": seconds(line.seconds),
            "up": size(line.bytes_up),
            "down": size(line.bytes_down),
            "counted": sum(part.status == "ok" for part in line.sites.values()),
            "asked": len(line.sites),
            "absent": [
                (name, part.status, part.reason or "") for name, part in line.sites.items() if part.status != "ok"
            ],
        }
        for line in reversed(list(lines))
    ]


def totals(record: RunRecord) -> dict[str, str]:
    """Return time and traffic of all rounds."""
    return {
        "time": format_seconds(sum(line.seconds or 0.0 for line in record.rounds)),
        "up": format_bytes(sum(line.bytes_up or 0.0 for line in record.rounds)),
        "down": format_bytes(sum(line.bytes_down or 0.0 for line in record.rounds)),
    }


def last_events(record: RunRecord) -> list[tuple[str, str, str]]:
    """Return time, name and details of the last events, newest first."""
    return [
        (
            short_time(event.get("time")),
            str(event.get("event", "")).replace("_", " "),
            ", ".join(f"{key}: {_short(value)}" for key, value in event.items() if key not in ("time", "event")),
        )
        for event in reversed(record.events[-MOST_EVENTS:])
    ]


def score(value: float | None) -> str:
    """Format a score, a loss or an epsilon."""
    return NOTHING if value is None else fixed(value, 3)


def seconds(value: float | None) -> str:
    """Format a duration."""
    return NOTHING if value is None else format_seconds(value)


def size(value: float | None) -> str:
    """Format a number of bytes."""
    return NOTHING if value is None else format_bytes(value)


def short_time(value: object) -> str:
    """Format an ISO 8601 time to the second, in UTC; nothing for what is none."""
    try:
        return datetime.fromisoformat(str(value)).strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return ""


def _progress(about: Mapping[str, Any]) -> tuple[int, int] | None:
    step, steps = as_number(about.get("step")), as_number(about.get("steps"))
    return (int(step), int(steps)) if step is not None and steps else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _short(value: object, most: int = 200) -> str:
    if isinstance(value, Mapping):
        value = [f"{key} {part}" for key, part in value.items()]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= most else f"{text[:most]}…"
