"""The coordinator's page of a large run, and its memory over a day of news: ``python -m tests.benchmarks.pages``.

A run of 32 sites and 500 rounds: time until it is there, bytes with all that it loads, and until news are on it. Then a
smaller run with as many news as eight hours have at one in two seconds, each of them fetched: memory of the server.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from common.system.supervisor import free_port
from server.run_store.live_status import write_network_status
from server.run_store.locks import only_start
from tests.server.web.runs import network_status, write_live_run

SITES = [f"site-{number:02d}" for number in range(32)]
ROUNDS = 500
NEWS = 14_400
WARM_UP = 400


@contextmanager
def page_of(run: Path) -> Iterator[tuple[int, httpx.Client]]:
    """The process of a page, and a client that has signed in."""
    command = [sys.executable, "-m", "server.cli", "page", str(run), "--listen", f"127.0.0.1:{free_port()}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as page:
        assert page.stdout is not None
        link = [page.stdout.readline() for _ in range(2)][1].split()[-1]
        address = link.partition("/sign-in")[0]
        with httpx.Client(base_url=address, headers={"Origin": address}, timeout=60) as client:
            client.post("/sign-in", data={"token": link.rpartition("=")[2]})
            yield page.pid, client
        page.terminate()


def seconds_and_bytes(client: httpx.Client) -> tuple[float, int]:
    """Fetch a run's page with everything that it names, one after another."""
    started = time.perf_counter()
    page = client.get("/runs/0").text
    size = len(page.encode())
    for address in re.findall(r'(?:src|href)="(/static/[^"]+)"|data-curves="([^"]+)"', page):
        size += len(client.get(address[0] or address[1]).content)
    return time.perf_counter() - started, size


def seconds_of_news(client: httpx.Client, run: Path, names: list[str]) -> float:
    """From a change in the run folder to the page that shows it, told by the stream of events."""
    with client.stream("GET", "/events") as stream:
        lines = stream.iter_lines()
        values = []
        for step in range(1, 8):
            while not next(lines).startswith("data:"):
                pass
            started = time.perf_counter()
            write_network_status(run, network_status(names, ROUNDS + 1, step=step))
            while not next(lines).startswith("data:"):
                pass
            assert f"step {step} of 40" in client.get("/runs/0").text
            values.append(time.perf_counter() - started)
            write_network_status(run, network_status(names, ROUNDS + 1, step=0))
    return statistics.median(values)


def memory(pid: int) -> int:
    """Anonymous memory in kB."""
    found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1])


def growth(client: httpx.Client, pid: int, run: Path, names: list[str], news: int) -> tuple[int, int]:
    """Memory after the warm-up, and after so many news that were fetched."""
    first = 0
    for number in range(WARM_UP + news):
        if number == WARM_UP:
            first = memory(pid)
        write_network_status(run, network_status(names, 7, step=number % 41))
        client.get("/runs/0").raise_for_status()
    return first, memory(pid)


def main() -> None:
    news = int(sys.argv[1]) if len(sys.argv) > 1 else NEWS
    with tempfile.TemporaryDirectory() as folder:
        large, small = write_live_run(Path(folder) / "large", ROUNDS, SITES), write_live_run(Path(folder) / "small", 60)
        with only_start(large), page_of(large) as (_, client):
            first, size = seconds_and_bytes(client)
            again, _ = seconds_and_bytes(client)
            told = seconds_of_news(client, large, SITES)
        names = ["raw-low", "uint8", "raw-high"]
        with only_start(small), page_of(small) as (pid, client):
            before, after = growth(client, pid, small, names, news)
    print(f"32 sites, 500 rounds: {first:.2f} s the first time, {again:.2f} s again, {size / 1e6:.2f} MB")
    print(f"news on the page after {told:.2f} s")
    print(f"memory after {news} news: {before / 1000:.1f} MB before, {after / 1000:.1f} MB after")
    print(f"pages: {first:.2f} s, {size / 1e6:.2f} MB, {told:.2f} s, {after / before:.3f} x")


if __name__ == "__main__":
    main()
