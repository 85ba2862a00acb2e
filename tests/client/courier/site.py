"""A courier as a process of its own, with the test in the place of its runner."""

from __future__ import annotations

import hashlib
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.shared_folder import SharedFolder, put_file, reply_content
from common.protocol.codec import Answer, pack
from common.protocol.messages import ErrorCode, Failure, Hello, Result, SiteInfo, Task
from tests.client.courier.kits import Kits
from tests.client.courier.stand_in import StandIn, wait_for
from tests.client.courier.superlink import SuperLink

REPOSITORY = Path(__file__).resolve().parents[3]
_rounds = itertools.count(1)


class Site:
    """A site's folders and its courier.

    Args:
        folder: for everything.
        kits: of the federation.
        port: of the gateway.
        link: where it is registered.
    """

    def __init__(self, folder: Path, kits: Kits, port: int, link: SuperLink) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.kit = kits.site(folder / "kit", port)
        self.link = link
        self.node = link.register(self.kit / "site.crt")
        self.state = folder / "state"
        self.shared = SharedFolder(folder / "shared")
        self.log_file = folder / "courier.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        options = ["--kit", str(self.kit), "--state", str(self.state), "--shared", str(self.shared.path)]
        return [sys.executable, "-m", "client.courier", *options]

    def start(self) -> None:
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(self.command, cwd=REPOSITORY, stdout=log, stderr=log)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> float:
        """Ends the courier; the seconds that it took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(10)
        self.process = None
        return time.monotonic() - began

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def wait(self, condition: object, what: str, seconds: float = 60.0) -> object:
        """Polls; shows the log if it was in vain."""
        try:
            return wait_for(condition, what, seconds)  # type: ignore[arg-type]
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None

    def wait_connected(self) -> None:
        self.wait((self.state / "contact").exists, "a contact")

    def answer(self, name: str, answer: Answer, update: bytes | None = None) -> str:
        """Puts an answer into the outbox, as the runner does; its text."""
        if update is not None:
            put_file(self.shared.outbox / hashlib.sha256(update).hexdigest(), update)
        text = pack(answer)
        put_file(self.shared.reply(name), reply_content(name, text).encode())
        return text

    def held(self) -> list[str]:
        """Names of the tasks whose messages are written down."""
        folder = self.state / "courier"
        return sorted(file.stem for file in folder.glob("*.json") if file.stem != "node") if folder.exists() else []

    def wait_task(self, name: str) -> bytes:
        """The content of a task in the inbox."""
        self.wait(self.shared.task(name).exists, f"task {name}")
        return self.shared.task(name).read_bytes()

    def wait_over(self, name: str) -> None:
        """Waits until nothing of a task is left."""
        self.wait(lambda: name not in self.held(), f"the end of {name}")
        assert not self.shared.task(name).exists()
        assert not self.shared.reply(name).exists()
        assert not (self.state / "courier" / f"{name}.sent").exists()

    def audit(self, name: str) -> list[dict[str, object]]:
        """What the audit log says of a task."""
        file = self.state / "courier-audit.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [line for line in lines if line.get("task") == name]


class StandInSite(Site):
    """A site whose gateway is a stand-in."""

    def __init__(self, folder: Path, gateway: StandIn, link: SuperLink) -> None:
        super().__init__(folder, gateway.kits, gateway.port, link)
        gateway.let_in(self.kit)
        self.gateway = gateway

    def ask(self, question: Hello | Task | str, update_bytes: int | None = None) -> str:
        """Sends a question; Flower's identity of the message.

        Args:
            update_bytes: that the gateway takes for the task; None is none at all.
        """
        self.wait(lambda: self.link.is_online(self.node), "the node")
        if isinstance(question, Task) and update_bytes is not None:
            self.gateway.update_bytes[question.name] = update_bytes
        identity = self.link.send(self.node, question)
        self.gateway.bell.set()
        return identity


@contextmanager
def site(folder: Path, gateway: StandIn, link: SuperLink) -> Iterator[StandInSite]:
    """A site that runs."""
    site = StandInSite(folder, gateway, link)
    site.start()
    try:
        yield site
    finally:
        if site.process is not None:
            site.kill()


def task(model: str, train: bool = True) -> Task:
    """A task that no other test has."""
    return Task(f"run-{next(_rounds)}", "0" * 64, 1, 3, train, model)


def info() -> SiteInfo:
    return SiteInfo("north", 10, 2, "0.1.0", "1.42.0", "2.10", "3.11", "cpu", "float32")


def result(question: Task, update: bytes | None) -> Result:
    digest = None if update is None else hashlib.sha256(update).hexdigest()
    return Result("north", question.run, 1, 10, 2, 5, 0.5, 0.4, {1: 0.8}, 1.0, 0.1, 0.8, 0.1, update=digest)


def failure() -> Failure:
    return Failure(ErrorCode.PAUSED, "PausedError")
