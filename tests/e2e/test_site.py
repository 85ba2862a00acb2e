"""``fedvox-client start`` and ``status`` with a real SuperLink, TLS and the site's own key."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from client.site_state import StateFolder, site_status
from common.config import FederationConfig
from common.phantom import write_phantom_dataset
from common.planning import plan_from_config
from common.protocol import (
    ErrorCode,
    Progress,
    Task,
    is_progress,
    pack_hello,
    pack_task,
    pack_wait,
    unpack_info,
    unpack_progress,
)
from common.supervise import free_port
from server.initial_weights import initial_weights
from server.provision import provision
from tests.e2e.flower_server import NICE, FlowerServer, environment, flower_server, wait_for

pytestmark = pytest.mark.network

NODE_UNAVAILABLE = 5


class Hospital:
    """One site's command line."""

    def __init__(self, folder: Path, kit: Path, data: Path) -> None:
        self.kit = kit
        self.state = kit / "state"
        self.output = folder / "start.out"
        self._environment = environment(folder / "unused-home")
        self._data = ["--data", str(data), "--cache", str(folder / "cache"), "--device", "cpu"]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                self._command("start", *self._data), stdout=output, stderr=output, env=self._environment
            )
        return self.process

    def run(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(command, *options), capture_output=True, text=True, env=self._environment, check=False
        )

    def preflight(self) -> subprocess.CompletedProcess[str]:
        return self.run("preflight", *self._data)

    def status(self) -> dict[str, Any]:
        result = self.run("status", "--json")
        content: dict[str, Any] = json.loads(result.stdout)
        assert result.returncode == (0 if content["running"] else 1)
        return content

    def now(self) -> dict[str, Any]:
        """As ``status`` tells, without the time that a process takes to start."""
        return site_status(StateFolder(self.state))

    def pid(self, name: str) -> int:
        pid = self.now()["processes"][name]["pid"]
        assert isinstance(pid, int)
        return pid

    def said(self) -> str:
        return self.output.read_text()

    def log(self, name: str) -> str:
        return (self.state / "logs" / f"{name}.log").read_text()

    def wait_until_ready(self, seconds: float = 90) -> float:
        return wait_for(lambda: "ready for tasks" in self.said(), seconds, f"readiness; said: {self.said()}")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _command(self, name: str, *options: str) -> list[str]:
        return [*NICE, sys.executable, "-m", "client.cli", name, "--kit", str(self.kit), *options]


@dataclass
class Federation:
    """A server, and the kits of its sites."""

    server: FlowerServer
    config: FederationConfig
    kits: Path

    def task(self, run: str, train: bool) -> RecordDict:
        weights, _ = initial_weights(plan_from_config(self.config), self.config.seed)
        return pack_task(Task(run, self.config.digest(), 1, self.config.rounds, train), weights)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("tls")
    port = free_port()
    config = FederationConfig.model_validate(
        {
            "name": "tiny",
            "rounds": 2,
            "labels": {1: "body", 2: "core", 3: "vessel"},
            "channels": ["T1"],
            "preprocessing": {"spacing": "keep"},
            "model": {"channels": [8, 16], "groups": 4, "patch_size": [16, 16, 16]},
            "training": {"local_steps": 4000, "precision": "float32"},
            "network": {
                "address": "127.0.0.1",
                "port": port,
                "sites": ["north", "south", "west"],
                "heartbeat_seconds": 3,
            },
        }
    )
    provision(config, folder / "kits")
    with flower_server(folder / "server", port, folder / "kits" / "server") as server:
        yield Federation(server, config, folder / "kits" / "sites")
        assert not server.canary.exists(), "code of the app bundle was run"


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_dataset(tmp_path_factory.mktemp("data") / "phantoms", [4], seed=0, shape=(32, 32, 32))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_start_status_and_the_end(federation: Federation, scans: Path, tmp_path: Path) -> None:
    server, kits = federation.server, federation.kits
    site = Hospital(tmp_path, kits / "north", scans)
    assert site.status() == {"site": "north", "federation": "tiny", "running": False}
    process = site.start()
    try:
        seconds = site.wait_until_ready()
        print(f"first start: {seconds:.1f} s\n{site.said()}")
        assert server.online("north")
        status = site.status()
        assert status["running"] and status["connected"] and status["ready"]
        assert status["runner"]["train"] == 4 - status["runner"]["validation"]
        pids = [entry["pid"] for entry in status["processes"].values()]
        assert len(pids) == 2 and all(map(alive, pids))
        again = site.run("start", "--data", str(scans), "--device", "cpu")
        assert again.returncode == 1 and "already running" in again.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert not any(map(alive, pids))
        assert site.status() == {"site": "north", "federation": "tiny", "running": False}
        wait_for(lambda: not server.online("north"), 10, "the server to know that the site has left")
        site.start()
        print(f"second start, data cached: {site.wait_until_ready():.1f} s")
    finally:
        site.stop()


def test_what_dies_comes_back_and_the_supervisors_death_ends_all(
    federation: Federation, scans: Path, tmp_path: Path
) -> None:
    server, kits = federation.server, federation.kits
    site = Hospital(tmp_path, kits / "south", scans)
    process = site.start()
    try:
        site.wait_until_ready()
        first = site.status()["processes"]
        os.kill(first["runner"]["pid"], signal.SIGKILL)
        wait_for(lambda: site.now()["processes"]["runner"]["restarts"] == 1, 10, "notice")
        wait_for(lambda: bool(site.now()["ready"]), 60, "the runner's return")
        os.kill(first["supernode"]["pid"], signal.SIGKILL)
        wait_for(lambda: not site.now()["connected"], 20, "notice")
        assert not site.status()["ready"], "status does not claim what is not so"
        # By itself the server would refuse the key until it has missed the dead process for about a minute.
        seconds = wait_for(lambda: bool(site.now()["ready"]), 40, f"SuperNode's return: {site.said()}")
        print(f"SuperNode is back after {seconds:.0f} s")
        assert server.online("south")
        pids = [entry["pid"] for entry in site.status()["processes"].values()]
        process.kill()
        process.wait()
        wait_for(lambda: not any(map(alive, pids)), 10, "the children's end")
        assert not site.status()["running"]
    finally:
        site.stop()


def test_tasks_need_an_approval_and_lost_ones_are_told_at_once(
    federation: Federation, scans: Path, tmp_path: Path
) -> None:
    server, digest = federation.server, federation.config.digest()
    node = server.nodes["west"]
    site = Hospital(tmp_path, federation.kits / "west", scans)
    site.start()

    def ask(kind: str, content: RecordDict) -> Message:
        return server.reply(server.send(node, kind, content), 60)

    try:
        site.wait_until_ready()
        assert ask("query.hello", pack_hello("run", digest)).error.code == ErrorCode.NOT_APPROVED
        assert site.run("approve", "--user", "Dr. Example").returncode == 0
        assert unpack_info(ask("query.hello", pack_hello("run", digest)).content).site == "west"
        assert ask("query.hello", pack_hello("run", "0" * 64)).error.code == ErrorCode.NOT_APPROVED

        progress = wait_for_progress(ask("train", federation.task("run", train=True)))
        while progress.step == 0:
            progress = wait_for_progress(ask("query.wait", pack_wait("run", 1)))
        status = site.status()
        assert status["connected"] and status["runner"]["steps"] == 4000

        os.kill(site.pid("runner"), signal.SIGKILL)
        wait_for(lambda: bool(site.now()["ready"]), 60, "the runner's return")
        assert ask("query.wait", pack_wait("run", 1)).error.code == ErrorCode.TASK_LOST

        wait_for(lambda: site.now()["runner"].get("state") != "working", 20, "the end of that task")
        identity = server.send(node, "train", federation.task("again", train=True))
        wait_for(lambda: site.now()["runner"].get("state") == "working", 20, "work")
        os.kill(site.pid("supernode"), signal.SIGKILL)
        lost: list[Message] = []

        def answered() -> bool:
            # Asking while the node is offline would make Flower give the reply up.
            lost.extend(server.grid.pull_messages([identity]) if server.online("west") else [])
            return bool(lost)

        print(f"SuperNode killed in training: answer after {wait_for(answered, 40, 'an answer'):.1f} s")
        # Ours; or Flower's own, if the question came between signing off the dead node and signing on the new one.
        assert lost[0].error.code in (ErrorCode.TASK_LOST, NODE_UNAVAILABLE)
        assert unpack_info(ask("query.hello", pack_hello("run", digest)).content).site == "west"

        audit = site.run("audit", "--verify")
        assert audit.returncode == 0, audit.stderr
        assert "error codes" in audit.stdout
    finally:
        site.stop()


def wait_for_progress(reply: Message) -> Progress:
    assert not reply.has_error(), reply.error
    assert is_progress(reply.content)
    return unpack_progress(reply.content)


def test_a_preflight_that_fails_keeps_the_site_from_starting(
    federation: Federation, scans: Path, tmp_path: Path
) -> None:
    kits = federation.kits
    site = Hospital(tmp_path, kits / "north", scans)
    assert site.preflight().returncode == 0, site.preflight().stdout
    key = kits / "north" / "node.key"
    key.chmod(0o644)
    looked = site.preflight()
    assert looked.returncode == 1 and "chmod 600" in looked.stdout
    assert site.start().wait(60) == 1
    assert "not started; put right first: kit" in site.said()
    assert "Traceback" not in site.said()
