"""Serves metrics to Prometheus: its text format at ``/metrics``, and nothing else."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from common.errors import FedvoxError
from common.formatting import visible
from common.system.hosts import is_this_machine

PATH = "/metrics"
SILENCE_SECONDS = 10.0
"""After which a connection is closed."""
LONGEST_LABEL = 100
MOST_CONNECTIONS = 16
"""At a time. Others are closed: each takes a thread of the process that runs the federation."""
_TEXT = "text/plain; charset=utf-8"
Collect = Callable[[], Iterable[Metric]]
_log = logging.getLogger("fedvox.metrics")


def gauge(name: str, text: str, value: float | None) -> Metric:
    """Return a metric that goes up and down; without a value if there is none now."""
    family = GaugeMetricFamily(name, text)
    if value is not None:
        family.add_metric([], value)
    return family


def gauges(name: str, text: str, label: str, values: Iterable[tuple[str, float | None]]) -> Metric:
    """Return a metric that goes up and down, with one value for each value of a label."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values:
        if value is not None:
            family.add_metric([_label(key)], value)
    return family


def counters(name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    """Return a metric that only grows, with one value for each combination of its labels' values."""
    family = CounterMetricFamily(name, text, labels=labels)
    for keys, value in values:
        family.add_metric([_label(key) for key in keys], value)
    return family


def counter(name: str, text: str, value: float | None) -> Metric:
    """Return a metric that only grows; without a value if it is not known here."""
    return counters(name, text, (), [] if value is None else [((), value)])


@contextmanager
def metrics_served(host: str, port: int, collect: Collect) -> Iterator[None]:
    """Serve metrics for a block.

    Parameters
    ----------
    host
        An IP address of this machine. On a loopback address, requests must name one too: a web page that has the
        browser resolve its own name to it gets nothing.
    port
        TCP port.
    collect
        Returns the metrics as they are now; one call at a time.

    Raises
    ------
    FedvoxError
        The address cannot be used.
    """
    try:
        server = _Server(host, port, collect)
    except OSError as error:
        reason = error.strerror or error
        raise FedvoxError(f"--metrics {host}:{port}: cannot listen: {reason}; choose another address") from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, host: str, port: int, collect: Collect) -> None:
        address = ip_address(host)
        self.address_family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        self.on_loopback = address.is_loopback
        self._lock = threading.Lock()
        self._places = threading.Semaphore(MOST_CONNECTIONS)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collector(collect))
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if there are not too many of them."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing but details: whoever asked has gone before the answer was sent."""
        del request
        _log.debug("%s did not take its answer", client_address, exc_info=True)

    def text(self) -> bytes:
        with self._lock:
            return generate_latest(self._registry)


class _Collector:
    """What a registry of the library asks."""

    def __init__(self, collect: Collect) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


class _Handler(BaseHTTPRequestHandler):
    timeout = SILENCE_SECONDS
    server: _Server

    def do_GET(self) -> None:
        """Answer with the metrics."""
        if self.server.on_loopback and not _names_loopback(self.headers.get("Host", "")):
            self._answer(403, b"ask for this by its loopback address\n")
        elif self.path.partition("?")[0] != PATH:
            self._answer(404, b"there is only /metrics\n")
        else:
            self._answer(*self._metrics())

    def _metrics(self) -> tuple[int, bytes, str]:
        try:
            return 200, self.server.text(), CONTENT_TYPE_LATEST
        except FedvoxError as error:
            _log.warning("%s", error)
        except Exception:  # a bug in here must not show a traceback every few seconds
            _log.exception("metrics failed")
        return 503, b"the files that the metrics are read from are damaged\n", _TEXT

    def _answer(self, status: int, content: bytes, kind: str = _TEXT) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def version_string(self) -> str:
        """Return what the server calls itself."""
        return "fedvox"

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: Prometheus asks every few seconds."""


def _names_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return is_this_machine(name)


def _label(text: str) -> str:
    return visible(text)[:LONGEST_LABEL]
