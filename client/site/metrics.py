"""A site as metrics for Prometheus: what ``fedvox-client status`` shows, and sums over what left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import Metric

from client.consent.sent_summary import ERROR, UPDATE, Departure, departures
from client.state_folder import AUDIT_FILE, StateFolder, site_status
from common.audit import AuditError, read_entries
from common.system.metrics_endpoint import counter, counters, gauge, gauges

PREFIX = "fedvox_client_"


class SiteMetrics:
    """The metrics of one site, or of one of its halves.

    Parameters
    ----------
    folder
        The state folder.
    """

    def __init__(self, folder: StateFolder) -> None:
        self._folder = folder
        self._sent: list[Departure] = []
        self._size = 0

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        status = site_status(self._folder)
        connected = status.get("connected")
        yield gauge(f"{PREFIX}up", "1 while the site runs", float(status["running"]))
        yield gauge(f"{PREFIX}ready", "1 while the site can take tasks", float(bool(status.get("ready"))))
        now = None if connected is None else float(connected)
        yield gauge(f"{PREFIX}connected", "1 while the server answers; not known to a runner alone", now)
        yield gauge(
            f"{PREFIX}contact_age_seconds", "Seconds since the server last answered", status.get("last_contact")
        )
        processes = status.get("processes", {}).items()
        ready = [(name, float(process["state"] == "ready")) for name, process in processes]
        yield gauges(f"{PREFIX}process_ready", "1 while a process of the site is ready", "process", ready)
        restarts = [((name,), float(process["restarts"])) for name, process in processes]
        yield counters(f"{PREFIX}process_restarts", "Restarts of a process of the site", ("process",), restarts)
        yield from _of_runner(status.get("runner", {}))
        yield from self._of_sent()

    def _of_sent(self) -> Iterator[Metric]:
        """Count what the runner's audit log says has left."""
        file = self._folder.path / AUDIT_FILE
        size = file.stat().st_size if file.exists() else 0
        if size != self._size:
            try:
                self._sent, self._size = departures(read_entries(file)), size
            except AuditError:
                return  # fedvox-client audit says what is wrong with it
        messages, sizes = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
        for departure in self._sent:
            messages[departure.kind,] += 1
            sizes[departure.kind,] += departure.bytes
        rounds = {(departure.run, departure.round) for departure in self._sent if departure.kind == UPDATE}
        yield counter(f"{PREFIX}rounds", "Rounds of which an update has left", float(len(rounds)))
        yield counters(f"{PREFIX}sent_messages", "Messages that left, by what they held", ("kind",), messages.items())
        yield counters(f"{PREFIX}sent_bytes", "Bytes that left, by what they belonged to", ("kind",), sizes.items())
        yield counter(f"{PREFIX}refused_tasks", "Tasks that were answered with an error code", float(messages[ERROR,]))


def _of_runner(runner: Mapping[str, Any]) -> Iterator[Metric]:
    for key, text in (("round", "Round"), ("step", "Steps done in this round"), ("steps", "Steps of this round")):
        yield gauge(f"{PREFIX}round_{key}" if key != "round" else f"{PREFIX}round", text, runner.get(key))
    for key, name, text in (
        ("steps_done", "training_steps", "Training steps since the runner started"),
        ("training_seconds", "training_seconds", "Seconds of these steps, reading of data included"),
    ):
        yield counter(PREFIX + name, text, None if runner.get("state") == "elsewhere" else runner.get(key, 0.0))
    problem = float(bool(runner.get("problem")))
    yield gauge(f"{PREFIX}problem", "1 while the runner has a problem that status shows", problem)
    used, total = runner.get("gpu_memory") or (None, None)
    yield gauge(f"{PREFIX}gpu_memory_used_bytes", "Memory of the GPU that training holds", used)
    yield gauge(f"{PREFIX}gpu_memory_size_bytes", "Memory of the GPU", total)
