"""A run as metrics for Prometheus: what ``fedvox-server status`` shows, and sums over the rounds so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client.core import Metric

from common.config.yaml_file import read_yaml
from common.errors import ConfigError
from common.system.metrics_endpoint import counter, counters, gauge, gauges
from server.run_store.folder import FEDERATION_FILE, RunState
from server.run_store.live_status import NetworkStatus, read_network_status
from server.run_store.locks import is_started
from server.run_store.record import as_number
from server.tracking.run_reader import RunReader

PREFIX = "fedvox_server_"


class RunMetrics:
    """The metrics of one run.

    Parameters
    ----------
    run
        The run folder; it may not exist yet.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._reader = RunReader(run)
        self._refused: Counter[tuple[str, ...]] = Counter()
        self._last: dict[str, Any] = {}
        self._planned: float | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now.

        Raises
        ------
        DamagedFileError
            The state of the run is damaged.
        """
        state = self._reader.state()
        for committed in self._reader.new_rounds():
            self._last = dict(committed.line)
            sites = committed.line["sites"].items()
            self._refused.update((name, str(part["reason"])) for name, part in sites if part["status"] == "refused")
        yield gauge(f"{PREFIX}up", "1 while a process works on the run", float(is_started(self._run)))
        yield gauge(f"{PREFIX}rounds_planned", "Rounds that the federation file asks for", self._rounds_planned())
        if state is not None:
            yield from self._of_rounds(state)
        network = read_network_status(self._run)
        if network is not None:
            yield from _of_network(network)

    def _of_rounds(self, state: RunState) -> Iterator[Metric]:
        sites = self._last.get("sites", {})
        counted = [(name, float(part["status"] == "ok")) for name, part in sites.items()]
        crossed = [(("up",), float(state.bytes_up)), (("down",), float(state.bytes_down))]
        number = as_number(self._last.get("seconds"))
        yield counter(f"{PREFIX}rounds", "Finished training rounds", float(state.round))
        yield counter(f"{PREFIX}seconds", "Seconds of all finished rounds", state.seconds)
        yield gauge(f"{PREFIX}round_seconds", "Seconds of the last finished round", number)
        yield counters(f"{PREFIX}bytes", "Bytes that crossed the wire in all rounds", ("direction",), crossed)
        yield gauge(f"{PREFIX}mean_dice", "Mean Dice in the last round", as_number(self._last.get("mean_dice")))
        yield gauge(f"{PREFIX}best_mean_dice", "Mean Dice of the best model so far", state.best_mean_dice)
        yield gauge(f"{PREFIX}alarms", "Alarms that a person should look at", float(len(state.alarms)))
        yield gauges(f"{PREFIX}site_counted", "1 if a site counted in the last round", "site", counted)
        refused = sorted(self._refused.items())
        yield counters(f"{PREFIX}refused_updates", "Replies that did not count", ("site", "reason"), refused)

    def _rounds_planned(self) -> float | None:
        if self._planned is None:
            try:
                self._planned = as_number(read_yaml(self._run / FEDERATION_FILE)["rounds"])
            except (FileNotFoundError, ConfigError, KeyError, TypeError):
                return None
        return self._planned


def _of_network(status: NetworkStatus) -> Iterator[Metric]:
    sites, processes = status.sites.items(), status.processes.items()
    connected = [(name, float(status.running and bool(site["connected"]))) for name, site in sites]
    yield gauges(f"{PREFIX}site_connected", "1 while a site is connected", "site", connected)
    for key, text in (("step", "Steps that a site has done in this round"), ("steps", "Steps of a site's round")):
        yield gauges(f"{PREFIX}site_{key}", text, "site", [(name, as_number(site[key])) for name, site in sites])
    ready = [(name, float(status.running and process["state"] == "ready")) for name, process in processes]
    yield gauges(f"{PREFIX}process_ready", "1 while a process of the server is ready", "process", ready)
    restarts = [((name,), as_number(process["restarts"]) or 0.0) for name, process in processes]
    yield counters(f"{PREFIX}process_restarts", "Restarts of a process of the server", ("process",), restarts)
    refused = [((site, reason), count) for site, why in sorted(status.refused.items()) for reason, count in why.items()]
    text = "Requests that the gateway refused; (unknown) are senders that it does not know"
    yield counters(f"{PREFIX}refused_requests", text, ("site", "reason"), refused)
