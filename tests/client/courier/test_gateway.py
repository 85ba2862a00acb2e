"""The courier with the real gateway and a real SuperLink."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.protocol.codec import from_record, pack
from common.protocol.messages import Hello, Task
from common.system.supervisor import answers, free_port
from server.run_store.gateway_folder import GatewayFolder, OpenTask
from server.run_store.locks import NODES_FILE
from tests.client.courier.kits import Kits
from tests.client.courier.site import REPOSITORY, Site, info, result, task
from tests.client.courier.stand_in import wait_for
from tests.client.courier.superlink import SuperLink

_random = random.Random(5)


class Federation:
    """A gateway as a process, and one site of it.

    Args:
        folder: for everything.
    """

    def __init__(self, folder: Path, kits: Kits, link: SuperLink) -> None:
        self.link, self.kits, self.port = link, kits, free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.kit = shutil.copytree(kits.server, folder / "server")
        (self.kit / "sites").mkdir()
        self.run = folder / "run"
        self.gateway = GatewayFolder(self.run)
        self.gateway.make()
        self.gateway.set_superlink(link.port)
        self.site = Site(folder / "north", kits, self.port, link)
        shutil.copy(self.site.kit / "site.crt", self.kit / "sites" / "north.crt")
        (self.run / NODES_FILE).write_text(json.dumps({str(self.site.node): "north"}))

    def start(self) -> None:
        command = [sys.executable, "-m", "server.gateway", "--kit", str(self.kit), "--run", str(self.run)]
        with (self._folder / "gateway.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--listen", f"127.0.0.1:{self.port}"], cwd=REPOSITORY, stdout=log, stderr=log
            )
        wait_for(lambda: answers(self.port), "the gateway", 30)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def open(self, model: bytes, update_bytes: int) -> Task:
        """Opens a task for the site; the model is at the gateway then."""
        question = task(hashlib.sha256(model).hexdigest())
        (self.run / question.model).write_bytes(model)
        self.gateway.open_task(
            "north", OpenTask(question.name, question.model, question.model, 0, len(model), update_bytes)
        )
        return question

    def ask(self, question: Task | Hello) -> str:
        """Sends a question; Flower's identity of the message."""
        self.site.wait(lambda: self.link.is_online(self.site.node), "the node")
        identity = self.link.send(self.site.node, question)
        self.gateway.bell(self.site.node).touch()
        return identity

    def part(self, update: bytes) -> int:
        """How much of an update has come."""
        file = self.gateway.updates("north") / f".{hashlib.sha256(update).hexdigest()}.part"
        return file.stat().st_size if file.exists() else 0


@contextmanager
def _federation(folder: Path, kits: Kits, link: SuperLink) -> Iterator[Federation]:
    federation = Federation(folder, kits, link)
    federation.start()
    federation.site.start()
    try:
        yield federation
    finally:
        if federation.site.process is not None:
            federation.site.kill()
        federation.kill()


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, kits: Kits, link: SuperLink) -> Iterator[Federation]:
    with _federation(tmp_path_factory.mktemp("federation"), kits, link) as federation:
        yield federation


def finish(federation: Federation, question: Task, identity: str, update: bytes) -> None:
    """Answers a task, and sees that everything arrives."""
    site = federation.site
    text = site.answer(question.name, result(question, update), update)
    site.wait_over(question.name)
    assert federation.gateway.has_reply(identity)
    assert from_record(federation.link.reply(identity).content) == text
    assert (federation.gateway.updates("north") / hashlib.sha256(update).hexdigest()).read_bytes() == update


def test_a_hello(federation: Federation) -> None:
    question = Hello("a-run", "0" * 64)
    identity = federation.ask(question)
    assert federation.site.wait_task(identity[:32]) == pack(question).encode()
    text = federation.site.answer(identity[:32], info())
    federation.site.wait_over(identity[:32])
    assert from_record(federation.link.reply(identity).content) == text


def test_a_round(federation: Federation) -> None:
    model, update = _random.randbytes(3_000_000), _random.randbytes(3_000_000)
    question = federation.open(model, len(update))
    identity = federation.ask(question)
    federation.site.wait_task(question.name)
    assert (federation.site.shared.inbox / question.model).read_bytes() == model

    def is_known() -> bool:
        last = federation.gateway.heartbeat("north")
        return last is not None and last.beat.tasks == (question.name,)

    federation.site.wait(is_known, "a heartbeat with the task")
    finish(federation, question, identity, update)


def test_files_of_several_windows(federation: Federation) -> None:
    model = os.urandom(2**20) * 150
    update = model[::-1]
    question = federation.open(model, len(update))
    identity = federation.ask(question)
    federation.site.wait(federation.site.shared.task(question.name).exists, "the task", 60)
    finish(federation, question, identity, update)
    lines = [line.split("fedvox.courier: ")[1] for line in federation.site.log.splitlines() if "157.3 MB" in line]
    print("; ".join(lines))


def test_an_update_that_is_too_large_is_refused_while_it_is_sent(federation: Federation) -> None:
    """The gateway answers before it has read the body: the courier must not take that for a broken line."""
    update = os.urandom(2**20) * 40
    question = federation.open(b"model", len(update) - 1)
    identity = federation.ask(question)
    federation.site.wait_task(question.name)
    federation.site.answer(question.name, result(question, update), update)
    federation.site.wait_over(question.name)
    assert federation.link.reply(identity).error.reason == "UploadRefusedError"


def test_a_task_that_is_closed_is_dropped(federation: Federation) -> None:
    update = _random.randbytes(100_000)
    question = federation.open(b"model 2", len(update))
    federation.ask(question)
    federation.site.wait_task(question.name)
    federation.gateway.close_tasks()
    federation.site.answer(question.name, result(question, update), update)
    federation.site.wait_over(question.name)
    assert f"task {question.name[:12]}: dropped" in federation.site.log


def test_a_gateway_that_is_killed_in_an_upload(federation: Federation) -> None:
    update = os.urandom(2**20) * 200
    question = federation.open(b"model 3", len(update))
    identity = federation.ask(question)
    federation.site.wait_task(question.name)
    text = federation.site.answer(question.name, result(question, update), update)
    federation.site.wait(lambda: federation.part(update) > 2**20, "a part of the update")
    federation.kill()
    kept = federation.part(update)
    assert 0 < kept < len(update)
    federation.start()
    federation.site.wait_over(question.name)
    assert from_record(federation.link.reply(identity).content) == text
    assert "resuming at byte" in federation.site.log


def test_a_courier_that_is_killed_in_an_upload(federation: Federation) -> None:
    update = os.urandom(2**20) * 200
    question = federation.open(b"model 4", len(update))
    identity = federation.ask(question)
    site = federation.site
    site.wait_task(question.name)
    text = site.answer(question.name, result(question, update), update)
    site.wait(lambda: federation.part(update) > 2**20, "a part of the update")
    site.kill()
    site.start()
    site.wait_over(question.name)
    assert from_record(federation.link.reply(identity).content) == text


def test_a_stop_of_either_end(federation: Federation) -> None:
    assert federation.site.kill(signal.SIGTERM) < 2
    wait_for(lambda: not federation.link.is_online(federation.site.node), "the sign-off")
    federation.site.start()
    began = time.monotonic()
    federation.site.wait(lambda: federation.link.is_online(federation.site.node), "the node")
    print(f"online after {time.monotonic() - began:.2f} s")
