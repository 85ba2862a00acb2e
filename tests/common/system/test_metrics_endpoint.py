from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from common.errors import DamagedFileError, FedvoxError
from common.system.metrics_endpoint import (
    MOST_CONNECTIONS,
    Collect,
    counter,
    counters,
    gauge,
    gauges,
    metrics_served,
)
from common.system.supervisor import free_port

HOSTILE = 'north"\n# TYPE forged counter\nforged 1\x1b[31m\\'


def some() -> Iterable[Metric]:
    yield gauge("fedvox_a", "a gauge", 1.5)
    yield gauge("fedvox_unknown", "not known now", None)
    yield gauges("fedvox_b", "by site", "site", [(HOSTILE, 2.0), ("x" * 1000, 3.0)])
    yield counter("fedvox_c", "a counter", 4.0)
    yield counters("fedvox_d", "two labels", ("site", "reason"), [(("south", "late"), 5.0)])


def damaged() -> Iterable[Metric]:
    raise DamagedFileError(Path("/secret/state.json"), "was changed", "restore it")


def broken() -> Iterable[Metric]:
    raise ValueError("secret")


@contextmanager
def served(collect: Collect = some) -> Iterator[str]:
    port = free_port()
    with metrics_served("127.0.0.1", port, collect):
        yield f"http://127.0.0.1:{port}"


def test_prometheus_reads_what_is_served() -> None:
    with served() as url:
        answer = httpx.get(f"{url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert families["fedvox_a"].samples[0].value == 1.5
    assert families["fedvox_unknown"].samples == []
    [hostile, long] = families["fedvox_b"].samples
    assert hostile.labels["site"].startswith('north"\\n# TYPE forged')
    assert "\x1b" not in answer.text
    assert len(long.labels["site"]) == 100
    assert "forged" not in families
    [count] = families["fedvox_d"].samples
    assert (count.name, count.labels, count.value) == ("fedvox_d_total", {"site": "south", "reason": "late"}, 5.0)


def test_nothing_else_is_served() -> None:
    with served() as url:
        assert httpx.get(f"{url}/").status_code == 404
        assert httpx.get(f"{url}/metrics/../etc/passwd").status_code == 404
        assert httpx.post(f"{url}/metrics").status_code == 501


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:9", 200), ("[::1]:9", 200), ("evil.example", 403), ("127.0.0.1.evil.example", 403), ("[", 403)],
)
def test_a_page_elsewhere_cannot_have_a_browser_read_it(host: str, status: int) -> None:
    with served() as url:
        assert httpx.get(f"{url}/metrics", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("collect", [damaged, broken])
def test_damaged_files_are_an_error_without_their_names(collect: Collect, capfd: pytest.CaptureFixture[str]) -> None:
    with served(collect) as url:
        answer = httpx.get(f"{url}/metrics")
    assert answer.status_code == 503
    assert "secret" not in answer.text
    assert "Exception occurred" not in capfd.readouterr().err, "the handler raised"


REQUEST = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


def at(url: str) -> socket.socket:
    """A connection to what is served."""
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=60)


def wait_for_answers() -> None:
    """Wait for the threads that answer."""
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:
            thread.join(60)


def ask(url: str) -> bytes:
    """The whole answer; empty if the connection is closed without one."""
    with at(url) as connection, suppress(ConnectionError):
        connection.sendall(REQUEST)
        return b"".join(iter(lambda: connection.recv(65536), b""))
    return b""


def test_whoever_does_not_wait_for_the_answer_leaves_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    asked, gone = threading.Event(), threading.Event()

    def late() -> Iterable[Metric]:
        asked.set()
        assert gone.wait(60)
        return some()

    with served(late) as url:
        with at(url) as hasty:
            hasty.sendall(REQUEST)
            assert asked.wait(60)
            hasty.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.set()
        wait_for_answers()
        assert ask(url).startswith(b"HTTP/1.0 200 ")
    assert "Exception occurred" not in capfd.readouterr().err, "the handler raised"


def test_connections_beyond_those_that_prometheus_needs_are_closed() -> None:
    enough = threading.Event()

    def slow() -> Iterable[Metric]:
        assert enough.wait(60)
        return some()

    with served(slow) as url, ExitStack() as stack:
        connections = [stack.enter_context(at(url)) for _ in range(MOST_CONNECTIONS)]
        for connection in connections:
            connection.sendall(REQUEST)
        assert ask(url) == b""
        enough.set()
        assert all(connection.recv(12) == b"HTTP/1.0 200" for connection in connections)
        wait_for_answers()
        assert ask(url).startswith(b"HTTP/1.0 200 ")


def test_a_port_that_is_taken_is_named() -> None:
    port = free_port()
    with (
        metrics_served("127.0.0.1", port, some),
        pytest.raises(FedvoxError, match=rf"--metrics 127.0.0.1:{port}: cannot listen"),
        metrics_served("127.0.0.1", port, some),
    ):
        pass
