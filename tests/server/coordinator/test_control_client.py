"""The server speaks to its own SuperLink and to nobody whom that names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from server.coordinator.control_client import ControlError, SuperLinkControl


@contextmanager
def http_server(place: str, asked: list[str]) -> Iterator[int]:
    """Redirects every POST to a place, and notes its path."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            asked.append(self.path)
            self.send_response_only(307)
            self.send_header("location", place)
            self.send_header("content-length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_it_follows_no_redirect_and_no_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere: list[str] = []
    here: list[str] = []
    with (
        http_server("http://127.0.0.1:9/", elsewhere) as other,
        http_server(f"http://127.0.0.1:{other}/", here) as port,
    ):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{other}")
        control = SuperLinkControl(port)
        for call in (control.nodes, control.stop_all):
            with pytest.raises(ControlError, match="307"):
                call()
        control.close()
    assert len(here) == 2 and elsewhere == []
