"""Pages of both sides, each in a process of its own, with somebody who has signed in; and what processes cost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from common.system.supervisor import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Window

LOOKS = "import sys, common.web.streams as s; s.LOOK_SECONDS = {seconds}; from {side}.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Visitor:
    """Somebody who has signed in to the page of a process."""

    pid: int
    client: httpx.Client

    @property
    def address(self) -> str:
        return str(self.client.base_url).rstrip("/")

    @property
    def cookies(self) -> list[Any]:
        """For a browser."""
        return [{"name": name, "value": value, "url": self.address} for name, value in self.client.cookies.items()]

    def follow(self, path: str, topic: str) -> None:
        """Fetch a page at the beginning and with all news of a topic, as a browser does, until its server ends."""
        with suppress(httpx.HTTPError), self.client.stream("GET", "/events") as stream:
            for line in stream.iter_lines():
                if line == f"event: {topic}":
                    self.client.get(path).raise_for_status()


@contextmanager
def signed_in(pid: int, link: str) -> Iterator[Visitor]:
    address, _, token = link.partition("/sign-in?token=")
    with httpx.Client(base_url=address, headers={"Origin": address}, timeout=60) as client:
        client.post("/sign-in", data={"token": token})
        yield Visitor(pid, client)


@contextmanager
def page_of(side: str, *options: object, look_seconds: float | None = None) -> Iterator[Visitor]:
    """``fedvox-SIDE page``; with ``look_seconds``, it looks for news as often."""
    how = ["-m", f"{side}.cli"] if look_seconds is None else ["-c", LOOKS.format(side=side, seconds=look_seconds)]
    command = [sys.executable, *how, "page", *map(str, options), "--listen", f"127.0.0.1:{free_port()}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as page:
        assert page.stdout is not None
        try:
            link = next(line.split()[-1] for line in page.stdout if "/sign-in" in line)
            with signed_in(page.pid, link) as visitor:
                yield visitor
        finally:
            page.terminate()


@contextmanager
def followed(visitor: Visitor, path: str, topic: str) -> Iterator[None]:
    """Somebody looks at a page as long as the block runs and its server lives."""
    thread = threading.Thread(target=visitor.follow, args=(path, topic), daemon=True)
    thread.start()
    yield


@contextmanager
def bare_page() -> Iterator[Visitor]:
    """A page of one word, without styles and scripts: what the browser itself needs."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!DOCTYPE html><title>x</title><link rel=icon href=data:,><p>word")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Visitor(os.getpid(), httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}"))
        server.shutdown()


@contextmanager
def window(browser: Browser, visitor: Visitor) -> Iterator[Window]:
    """A window without anything in its cache."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, locale="en-GB")
    context.add_cookies(visitor.cookies)
    try:
        yield context.new_page()
    finally:
        context.close()


def memory(pid: int) -> int:
    """Anonymous memory in kB."""
    found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1])


def processor_seconds(pid: int) -> float:
    """Of one process, without others that it has started."""
    values = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")
