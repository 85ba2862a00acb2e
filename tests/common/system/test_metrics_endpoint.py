from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from common.errors import DamagedFileError, FedvoxError
from common.system.metrics_endpoint import Collect, counter, counters, gauge, gauges, metrics_served
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


def test_damaged_files_are_an_error_without_their_names() -> None:
    with served(damaged) as url:
        answer = httpx.get(f"{url}/metrics")
    assert answer.status_code == 503
    assert "secret" not in answer.text


def test_a_port_that_is_taken_is_named() -> None:
    port = free_port()
    with (
        metrics_served("127.0.0.1", port, some),
        pytest.raises(FedvoxError, match=rf"--metrics 127.0.0.1:{port}: cannot listen"),
        metrics_served("127.0.0.1", port, some),
    ):
        pass
