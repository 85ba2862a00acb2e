"""A real SuperLink on the loopback interface, with the test in the place of its ServerApp."""

from __future__ import annotations

import hashlib
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from flwr.app import Message, Metadata
from flwr.app.message import make_message
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

from common.certificates import load_certificate, public_pem
from common.protocol.codec import pack, to_record
from common.protocol.messages import Hello, Task
from common.system.flower import flower_environment
from common.system.supervisor import Child, Supervisor, answers, free_port
from server.coordinator.control_client import SuperLinkControl
from tests.client.courier.stand_in import wait_for

ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
APP = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "nothing"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "nothing.app:app"
clientapp = "nothing.app:app"
"""
SUPERLINK_NODE = 1


class SuperLink:
    """SuperLink with one run, whose messages the test sends.

    Args:
        folder: for everything it keeps.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._secret = folder / "secret"
        self._secret.write_bytes(secrets.token_bytes(32))
        program = str(Path(sys.executable).with_name("flower-superlink"))
        command = [program, "--insecure", "--isolation", "process", "--port", str(self.port)]
        command += ["--superexec-auth-secret-file", str(self._secret), "--disable-runtime-dependency-installation"]
        environment = flower_environment(folder / "home") | {"OMP_NUM_THREADS": "1"}
        child = Child("superlink", command, environment, folder / "superlink.log", lambda: answers(self.port))
        self._supervisor = Supervisor([child], lambda name, event: None)

    def start(self) -> None:
        self._supervisor.start()

        def is_ready() -> bool:
            self._supervisor.poll()
            return bool(self._supervisor.states()["superlink"]["state"] == "ready")

        wait_for(is_ready, "SuperLink", 60)
        files = {"pyproject.toml": APP.encode(), "nothing/__init__.py": b"", "nothing/app.py": b"app = None\n"}
        with closing(SuperLinkControl(self.port)) as control:
            self.run = control.submit(build_fab_from_files(files)[0])
        token = wait_for(self._acquire, "the server task")
        self._grid = HttpGrid(f"127.0.0.1:{self.port}", True, token=token)
        runtime = self._client(RuntimeTokenHttpInterceptor(token=token))
        given = runtime.PullTaskInput(PullTaskInputRequest())
        self._task = given.task_id
        self._grid.set_run(run_from_proto(given.run))
        self._heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(runtime))
        self._heartbeat.start()

    def _client(self, proof: SuperExecAuthHttpInterceptor | RuntimeTokenHttpInterceptor) -> RuntimeHttpClient:
        version = RuntimeVersionHttpInterceptor(component_name="flwr-serverapp")
        return RuntimeHttpClient.from_server_address(f"127.0.0.1:{self.port}", True, None, [version, proof])

    def _acquire(self) -> str:
        proof = SuperExecAuthHttpInterceptor(
            master_secret=self._secret.read_bytes(), protected_methods=frozenset({ACQUIRE})
        )
        with self._client(proof) as client:
            return str(client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])).token)

    def register(self, certificate: Path) -> int:
        """Lets a site in, under a name that no other has; its node."""
        key = load_certificate(certificate).public_key()
        pem = public_pem(key)  # type: ignore[arg-type]
        with closing(SuperLinkControl(self.port)) as control:
            return control.register(f"site-{hashlib.sha256(pem).hexdigest()[:12]}", pem)

    def is_online(self, node: int) -> bool:
        with closing(SuperLinkControl(self.port)) as control:
            return any(item.online for item in control.nodes() if item.node_id == node)

    def send(self, node: int, question: Hello | Task | str) -> str:
        """Sends a question, or any text; the message's identity."""
        text = question if isinstance(question, str) else pack(question)
        metadata = Metadata(
            self.run, "", SUPERLINK_NODE, node, "", "1", time.time(), 3600.0, "train", src_task_id=self._task
        )
        [identity] = self._grid.push_messages([make_message(metadata, to_record(text))])
        assert identity
        return str(identity)

    def reply(self, identity: str) -> Message:
        """The reply to a message, which must be there."""
        [found] = self._grid.pull_messages([identity])
        assert found.metadata.reply_to_message_id == identity
        return found

    def stop(self) -> None:
        self._heartbeat.stop()
        self._supervisor.stop(3)


@contextmanager
def superlink(folder: Path) -> Iterator[SuperLink]:
    link = SuperLink(folder)
    try:
        link.start()
        yield link
    finally:
        link.stop()
