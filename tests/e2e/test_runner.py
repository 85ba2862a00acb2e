"""The runner beside a real SuperNode and SuperLink; the test is the server."""

from __future__ import annotations

import json
import os
import secrets
import signal
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.constant import HEAD_BODY_DIVIDER

from client.supernode import STATE_VARIABLE
from common.supervise import Child, Supervisor, answers, free_port
from tests.e2e.flower_server import NICE, FlowerServer, environment, flower_server, program, wait_for

pytestmark = pytest.mark.network

SECONDS = 30.0
"""Within this time a failure must be known; Flower by itself takes one to two minutes, or for ever."""


class Site:
    """A SuperNode with our launcher, and a scripted runner, both kept alive."""

    def __init__(self, folder: Path, server: FlowerServer, die_at: str = "never") -> None:
        self.state = folder
        folder.mkdir()
        (folder / "secret").write_bytes(secrets.token_bytes(32))
        self.port = free_port()
        home = environment(folder / "flwr-home") | {STATE_VARIABLE: str(folder)}
        supernode = [*NICE, sys.executable, "-m", "client.supernode", "--insecure", "--superlink", server.address]
        supernode += ["--isolation", "process", "--superexec-auth-secret-file", str(folder / "secret")]
        supernode += ["--host", "127.0.0.1", "--port", str(self.port)]
        runner = [*NICE, sys.executable, "-m", "tests.e2e.scripted_runner", f"127.0.0.1:{self.port}", str(folder)]
        self.events: list[tuple[str, str]] = []
        self.supervisor = Supervisor(
            [
                Child("supernode", supernode, home, folder / "supernode.log", lambda: answers(self.port)),
                Child("runner", [*runner, die_at], home, folder / "runner.log"),
            ],
            lambda name, event: self.events.append((name, event)),
        )

    def pid(self, name: str) -> int:
        pid = self.supervisor.states()[name]["pid"]
        assert isinstance(pid, int)
        return pid

    def log(self, name: str = "runner") -> str:
        return (self.state / f"{name}.log").read_text()


@contextmanager
def site_of(server: FlowerServer, folder: Path, die_at: str = "never") -> Iterator[tuple[Site, int]]:
    site = Site(folder, server, die_at)
    before = set(server.grid.get_node_ids())
    site.supervisor.start()
    try:
        wait_for(lambda: len(set(server.grid.get_node_ids()) - before) == 1, 60, "the node", site.supervisor.poll)
        [node] = set(server.grid.get_node_ids()) - before
        yield site, node
    finally:
        site.supervisor.stop(5)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowerServer]:
    with flower_server(tmp_path_factory.mktemp("flower") / "server") as server:
        yield server
        assert not server.canary.exists(), "code of the app bundle was run"


@pytest.fixture(scope="module")
def site(server: FlowerServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, int]]:
    with site_of(server, tmp_path_factory.mktemp("sites") / "steady") as found:
        yield found


def content(what: str, weights: int = 0) -> RecordDict:
    records: dict[str, Any] = {"do": ConfigRecord({"what": what})}
    if weights:
        values = np.random.default_rng(0).normal(size=weights).astype(np.float32)
        records["weights"] = ArrayRecord({"0": Array(values)})
    return RecordDict(records)


def ask(server: FlowerServer, site: Site, node: int, what: str, weights: int = 0) -> tuple[Message, float]:
    """Sends one message and waits for the reply, keeping the site's processes alive meanwhile."""
    began = time.monotonic()
    identity = server.send(node, "train", content(what, weights))
    found: list[Message] = []

    def there() -> bool:
        found.extend(server.grid.pull_messages([identity]))
        return bool(found)

    wait_for(there, 60, f"reply to {what!r}; the runner's log: {site.log()}", site.supervisor.poll)
    return found[0], time.monotonic() - began


def test_a_task_is_served_and_its_content_comes_back_unchanged(server: FlowerServer, site: tuple[Site, int]) -> None:
    reply, _ = ask(server, *site, "echo", weights=300_000)
    sent = content("echo", weights=300_000).array_records["weights"]["0"]
    assert reply.content.array_records["weights"]["0"].data == sent.data
    _, seconds = ask(server, *site, "echo", weights=300_000)
    print(f"second task: {seconds:.2f} s")
    assert seconds < 5


def test_an_error_reply_arrives_as_it_was_given(server: FlowerServer, site: tuple[Site, int]) -> None:
    reply, seconds = ask(server, *site, "fail")
    assert (reply.error.code, reply.error.reason) == (1000, "ValueError")
    assert seconds < 10


def test_an_exception_leaves_as_its_class_name_alone(server: FlowerServer, site: tuple[Site, int]) -> None:
    reply, seconds = ask(server, *site, "raise")
    assert (reply.error.code, reply.error.reason) == (1000, "ValueError")
    assert seconds < 10
    assert "Meier" in site[0].log(), "the site's own log has the rest"
    assert "Meier" not in site[0].log("supernode")
    assert "Meier" not in (server.folder / "superlink.log").read_text()


class Repeated(Array):
    """An array that names its one piece a thousand times."""

    __qualname__ = "Array"

    def deflate(self) -> bytes:
        [piece] = self.children or {}
        values = {"dtype": "u1", "shape": [1], "stype": "x", "arraychunk_ids": [0] * 1000}
        body = json.dumps(values).encode()
        return f"Array {piece} {len(body)}".encode() + HEAD_BODY_DIVIDER + body


def test_a_message_that_would_grow_a_thousandfold_is_not_put_together(
    server: FlowerServer, site: tuple[Site, int]
) -> None:
    weights = ArrayRecord({"0": Array("u1", (2**20,), "x", bytes(2**20))})
    weights["0"].__class__ = Repeated
    identity = server.send(site[1], "train", RecordDict({**content("echo"), "weights": weights}))
    reply = server.reply(identity)
    assert (reply.error.code, reply.error.reason) == (1000, "OversizedMessageError")
    assert ask(server, *site, "echo")[0].has_content()


def test_the_note_of_the_task_is_for_its_owner_alone_and_does_not_stay(
    server: FlowerServer, site: tuple[Site, int]
) -> None:
    file = site[0].state / "runner-task.json"
    (site[0].state / "working").unlink(missing_ok=True)
    identity = server.send(site[1], "train", content("sleep 1"))
    wait_for((site[0].state / "working").exists, 20, "work")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    server.reply(identity)
    wait_for(lambda: not file.exists(), 5, "the end of the task")


@pytest.mark.parametrize("point", ["claimed", "started"])
def test_killed_before_it_had_the_message_it_does_the_task_after_all(
    server: FlowerServer, tmp_path: Path, point: str
) -> None:
    with site_of(server, tmp_path / "site", die_at=point) as (site, node):
        reply, seconds = ask(server, site, node, "echo")
        print(f"killed when {point}: {seconds:.1f} s")
        assert (site.state / "died").exists()
        assert not reply.has_error()
        assert seconds < SECONDS
        assert not ask(server, site, node, "echo")[0].has_error(), "the next round is normal"


def test_killed_in_training_it_tells_the_server_at_once(server: FlowerServer, tmp_path: Path) -> None:
    with site_of(server, tmp_path / "site") as (site, node):
        reply, seconds = ask(server, site, node, "die")
        print(f"killed in training: {seconds:.1f} s")
        assert reply.error.code == 1006
        assert seconds < SECONDS
        assert not ask(server, site, node, "echo")[0].has_error(), "the next round is normal"


def test_killed_while_replying_no_half_reply_reaches_the_server(server: FlowerServer, tmp_path: Path) -> None:
    with site_of(server, tmp_path / "site", die_at="replying") as (site, node):
        reply, seconds = ask(server, site, node, "echo", weights=300_000)
        print(f"killed while replying: {seconds:.1f} s")
        assert (site.state / "died").exists()
        assert reply.error.code == 1006
        assert seconds < SECONDS
        assert not ask(server, site, node, "echo")[0].has_error(), "the next round is normal"


def test_a_full_disk_costs_one_task_and_no_other(server: FlowerServer, tmp_path: Path) -> None:
    with site_of(server, tmp_path / "site", die_at="full") as (site, node):
        lost = server.send(node, "train", content("echo"))
        wait_for((site.state / "full").exists, 60, "a full disk", site.supervisor.poll)
        assert server.reply(lost, 120).has_error(), "SuperNode answers in the runner's place"
        assert not ask(server, site, node, "echo")[0].has_error(), "the next round is normal"
        assert {state["restarts"] for state in site.supervisor.states().values()} == {0}


def test_a_task_is_broken_off_when_supernode_does_not_know_it_any_more(server: FlowerServer, tmp_path: Path) -> None:
    with site_of(server, tmp_path / "site") as (site, node):
        server.send(node, "train", content("sleep 120"))
        wait_for((site.state / "working").exists, 20, "work", site.supervisor.poll)
        os.kill(site.pid("supernode"), signal.SIGKILL)
        wait_for((site.state / "broken-off").exists, SECONDS, "the end of the task", site.supervisor.poll)
        assert (site.state / "broken-off").read_text() == "TaskStoppedError"
        wait_for(lambda: not (site.state / "runner-task.json").exists(), 5, "the note to go")
        assert site.supervisor.states()["runner"]["restarts"] == 0


def test_sigterm_in_the_middle_of_a_task_tells_the_server_and_ends(server: FlowerServer, tmp_path: Path) -> None:
    with site_of(server, tmp_path / "site") as (site, node):
        identity = server.send(node, "train", content("sleep 120"))
        wait_for((site.state / "working").exists, 20, "work", site.supervisor.poll)
        os.kill(site.pid("runner"), signal.SIGTERM)
        assert server.reply(identity, 20).error.code == 1006
        wait_for(lambda: site.supervisor.states()["runner"]["restarts"] == 1, 10, "its end", site.supervisor.poll)
        assert site.supervisor.states()["runner"]["exit_status"] == 0


def test_a_wrong_secret_gets_no_task(server: FlowerServer, tmp_path: Path) -> None:
    with site_of(server, tmp_path / "site") as (site, node):
        (site.state / "secret").write_bytes(b"another secret")
        os.kill(site.pid("runner"), signal.SIGKILL)
        server.send(node, "train", content("echo"))
        report = site.state / "report"
        report.unlink(missing_ok=True)
        wait_for(lambda: report.exists() and report.read_text() == "refused", 20, "a refusal", site.supervisor.poll)
        assert not (site.state / "runner-task.json").exists()
        assert "another secret" in site.log()


def test_the_canary_sings_where_flower_runs_the_bundle_itself(tmp_path: Path) -> None:
    """Without this, the canary's silence in all other tests would prove nothing."""
    with flower_server(tmp_path / "server") as server:
        command = [*NICE, program("flower-supernode"), "--insecure", "--superlink", server.address]
        command += ["--port", str(free_port())]
        stock = Child("stock", command, environment(tmp_path / "flwr-home"), tmp_path / "stock.log")
        supervisor = Supervisor([stock], lambda name, event: None)
        supervisor.start()
        try:
            [node] = server.wait_for_nodes(1)
            server.send(node, "train", content("echo"))
            wait_for(server.canary.exists, 60, "the canary", supervisor.poll)
        finally:
            supervisor.stop(5)
