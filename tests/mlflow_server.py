"""A real MLflow server, something in front of it, and servers that are none."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from common.system.supervisor import answers, free_port
from tests.e2e.network_federation import wait_for

START_SECONDS = 300.0
Answer = tuple[int, bytes]


class Mlflow:
    """What a server has, by its own API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, name: str, **values: str | int) -> dict[str, Any]:
        answer = httpx.get(f"{self.url}/api/2.0/mlflow/{name}", params=values, timeout=60)
        assert answer.status_code == 200, answer.text
        content: dict[str, Any] = answer.json()
        return content

    def runs(self, experiment: str) -> list[dict[str, Any]]:
        found = self.get("experiments/get-by-name", experiment_name=experiment)["experiment"]["experiment_id"]
        wanted = {"experiment_ids": [found]}
        answer = httpx.post(f"{self.url}/api/2.0/mlflow/runs/search", json=wanted, timeout=60)
        return list(answer.json().get("runs", []))

    def history(self, run: str, metric: str) -> list[tuple[int, float]]:
        """Step and value of everything that was logged, in the order of steps."""
        found = self.get("metrics/get-history", run_id=run, metric_key=metric, max_results=10_000).get("metrics", [])
        return sorted((int(item["step"]), float(item["value"])) for item in found)

    def file(self, run: dict[str, Any], name: str) -> bytes:
        place = run["info"]["artifact_uri"].removeprefix("mlflow-artifacts:/")
        answer = httpx.get(f"{self.url}/api/2.0/mlflow-artifacts/artifacts/{place}/{name}", timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.content


@contextmanager
def run_mlflow(folder: Path) -> Iterator[Mlflow]:
    """Start a server with a database and files of its own; without telemetry and without its job runners."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=os.environ | quiet)
    try:
        wait_for(lambda: answers(port) or process.poll() is not None, START_SECONDS, "MLflow's server")
        assert process.poll() is None, (folder / "log").read_text()
        yield Mlflow(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(timeout=60)


class FakeServer:
    """Answers every request as a function says, and keeps method, path and content of each.

    A function that raises ``ConnectionError`` closes the connection without an answer.
    """

    def __init__(self, answer: Callable[[str, str, bytes], Answer], **headers: str) -> None:
        self.seen: list[tuple[str, str, bytes]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.seen.append((self.command, self.path, content))
                outer.headers.append(dict(self.headers))
                with suppress(ConnectionError):  # whoever asked was killed, or waits no longer
                    status, body = answer(self.command, self.path, content)
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(body)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)

            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self._answer()

            def do_PUT(self) -> None:
                self._answer()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FakeServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def relay_to(mlflow: Mlflow, after: Callable[[str, bytes], None]) -> FakeServer:
    """Return a server that passes everything on, and calls ``after`` before it answers."""

    def answer(method: str, path: str, content: bytes) -> Answer:
        headers = {"Content-Type": "application/json"} if method == "POST" else {}
        reply = httpx.request(method, mlflow.url + path, content=content, headers=headers, timeout=60)
        after(path, content)
        return reply.status_code, reply.content

    return FakeServer(answer)
