"""``status.json``: the last known status of a networked federation, for ``fedvox-server status``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.formatting import counted
from common.system.files import write_atomically
from server.run_store.folder import now
from server.run_store.locks import is_started

STATUS_FILE = "status.json"


@dataclass(frozen=True)
class NetworkStatus:
    """The processes and sites of a federation.

    Attributes
    ----------
    running
        Whether its server is alive.
    written
        When the server wrote the status.
    doing
        Current activity, in words.
    endpoint
        Where sites reach it.
    processes
        Name -> state, from ``Supervisor.states``.
    sites
        Name -> whether connected, when it was last seen if it is not, and progress in this round.
    submissions
        Number of times that the server app was started.
    refused
        Site -> reason -> number of its requests that the gateway refused; ``(unknown)`` stands for senders that it
        does not know.
    """

    running: bool
    written: str
    doing: str
    endpoint: str
    processes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sites: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    submissions: int = 0
    refused: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def as_lines(self) -> list[str]:
        """Return the status as human-readable lines."""
        refused = [
            f"  {site}: {', '.join(f'{count} x {reason}' for reason, count in sorted(reasons.items()))}"
            for site, reasons in sorted(self.refused.items())
        ]
        refused = ["requests that the gateway refused:", *refused] if refused else []
        if not self.running:
            return [f"the server is not running (last update {self.written}: {self.doing})", *refused]
        lines = [f"the server is running at {self.endpoint}: {self.doing} ({self.written})"]
        for name, process in self.processes.items():
            restarts = f", {counted(process['restarts'], 'restart')}" if process.get("restarts") else ""
            lines.append(f"  {name}: {process['state']}{restarts}")
        for name, site in self.sites.items():
            parts = ["connected" if site["connected"] else "not connected"]
            if site.get("steps"):
                parts.append(f"step {site['step']} of {site['steps']}")
            if site.get("status"):
                parts.append(f"this round: {site['status']}")
            lines.append(f"  {name}: {', '.join(parts)}")
        return lines + refused


def write_network_status(run: Path, status: NetworkStatus) -> None:
    """Write the current status."""
    write_atomically(run / STATUS_FILE, json.dumps(asdict(status) | {"written": now()}, indent=2) + "\n")


def read_network_status(run: Path) -> NetworkStatus | None:
    """Return the last status of a run's server, or None if there is none (simulations).

    Whether it is running comes from its lock, because a killed server cannot update the file.
    """
    try:
        content = json.loads((run / STATUS_FILE).read_text(encoding="utf-8"))
        return NetworkStatus(**content | {"running": is_started(run)})
    except (OSError, ValueError, TypeError):
        return None
