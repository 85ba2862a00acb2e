"""A real SuperLink on the loopback interface, with the test in the place of its ServerApp.

The test claims the run's server task itself, so that it can send any message and look at every reply. The app bundle
of the run carries code that leaves a canary file wherever it is imported.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from client.runtime import ACQUIRE_METHOD
from common.flower import flower_environment
from common.supervise import Child, Supervisor, answers, free_port
from server.authority import public_key_pem
from server.control import SuperLinkControl

APP = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "canary"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "canary.app:app"
clientapp = "canary.app:app"
"""
NICE = ("nice", "-n", "19")


def environment(home: Path) -> dict[str, str]:
    """For all processes of a test: one thread each, and no colour."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return flower_environment(home) | {"PATH": path, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"}


def program(name: str) -> str:
    """A program of the environment that the tests run in."""
    return str(Path(sys.executable).with_name(name))


def wait_for(condition: Callable[[], bool], seconds: float, what: str, poll: Callable[[], None] | None = None) -> float:
    """Polls until something is true; the seconds that it took. Fails with ``what`` after ``seconds``."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"waited {seconds} s for: {what}"
        if poll is not None:
            poll()
        time.sleep(0.02)
    return time.monotonic() - began


class FlowerServer:
    """SuperLink and one run on it.

    Args:
        folder: for everything it keeps.
        port: to listen on.
        kit: the server's kit: then with TLS, and only the sites in the kit are let in. None: for anybody, without TLS.
    """

    def __init__(self, folder: Path, port: int, kit: Path | None = None) -> None:
        self.folder = folder
        self.port = port
        self._kit = kit
        self._authority = None if kit is None else (kit / "ca.crt").read_bytes()
        self.address = f"127.0.0.1:{self.port}"
        self.canary = folder / "canary"
        self._secret = folder / "server-secret"
        self._secret.write_bytes(secrets.token_bytes(32))
        command = [*NICE, program("flower-superlink"), "--isolation", "process"]
        if kit is None:
            command += ["--insecure"]
        else:
            command += ["--ssl-ca-certfile", str(kit / "ca.crt"), "--ssl-certfile", str(kit / "server.crt")]
            command += ["--ssl-keyfile", str(kit / "server.key"), "--enable-supernode-auth"]
        command += ["--superexec-auth-secret-file", str(self._secret), "--port", str(self.port)]
        command += ["--disable-runtime-dependency-installation"]
        child = Child(
            "superlink",
            command,
            environment(folder / "flwr-home"),
            folder / "superlink.log",
            lambda: answers(self.port),
        )
        self._supervisor = Supervisor([child], lambda name, event: None)
        self._heartbeat: HeartbeatSender | None = None
        self.grid: HttpGrid
        self.nodes: dict[str, int] = {}

    def start(self) -> None:
        self._supervisor.start()
        wait_for(lambda: self._supervisor.all_ready, 60, "SuperLink", self._supervisor.poll)
        if self._kit is not None and self._authority is not None:
            with SuperLinkControl(self.port, self._authority) as control:
                for key in sorted((self._kit / "sites").glob("*.pub")):
                    self.nodes[key.stem] = control.register(key.stem, public_key_pem(key.read_text()))
        self.start_run()

    def start_run(self) -> None:
        code = f"from pathlib import Path\nPath({str(self.canary)!r}).touch()\napp = None\n".encode()
        files = {"pyproject.toml": APP.encode(), "canary/__init__.py": b"", "canary/app.py": code}
        content, _ = build_fab_from_files(files)
        version = RuntimeVersionHttpInterceptor(component_name="flwr-cli")
        control = ControlHttpClient.from_server_address(self.address, self._kit is None, self._authority, [version])
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        self.run_id = control.StartRun(StartRunRequest(fab=fab_to_proto(fab))).run_id
        proof = SuperExecAuthHttpInterceptor(
            master_secret=self._secret.read_bytes(), protected_methods=frozenset({ACQUIRE_METHOD})
        )
        version = RuntimeVersionHttpInterceptor(component_name="flwr-serverapp")
        source = RuntimeHttpClient.from_server_address(
            self.address, self._kit is None, self._authority, [version, proof]
        )
        request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
        token = ""

        def acquired() -> bool:
            nonlocal token
            token = source.AcquireTask(request).token
            return bool(token)

        wait_for(acquired, 20, "the server task")
        self.grid = HttpGrid(self.address, self._kit is None, self._authority, token=token)
        response = self.grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = response.task_id, response.run.run_id
        TaskIdentity.node_id = response.context.node_id
        self.grid.set_run(run_from_proto(response.run))
        self._heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(self.grid._runtime_client))
        self._heartbeat.start()

    def online(self, name: str) -> bool:
        """Whether a registered site is there."""
        return self.nodes[name] in set(self.grid.get_node_ids())

    def wait_for_nodes(self, count: int, seconds: float = 60) -> list[int]:
        wait_for(lambda: len(list(self.grid.get_node_ids())) == count, seconds, f"{count} nodes")
        return sorted(self.grid.get_node_ids())

    def send(self, node: int, kind: str, content: RecordDict, group: str = "1") -> str:
        TaskIdentity.node_id = 1  # this process may also have made messages of a site
        [identity] = self.grid.push_messages([Message(content, node, kind, group_id=group)])
        assert identity
        return identity

    def reply(self, identity: str, seconds: float = 60) -> Message:
        """The reply to a message."""
        found: list[Message] = []

        def there() -> bool:
            found.extend(self.grid.pull_messages([identity]))
            return bool(found)

        wait_for(there, seconds, "a reply")
        return found[0]

    def stop(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self._supervisor.stop(3)


@contextmanager
def flower_server(folder: Path, port: int | None = None, kit: Path | None = None) -> Iterator[FlowerServer]:
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    folder.mkdir()
    server = FlowerServer(folder, port or free_port(), kit)
    try:
        server.start()
        yield server
    finally:
        server.stop()
