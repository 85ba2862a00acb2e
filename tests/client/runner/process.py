"""A runner's process, and what a courier does around it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from client.ledger.account import RoundEntry
from client.ledger.ledger import Ledger
from client.shared_folder import SharedFolder
from client.state_folder import AUDIT_FILE, StateFolder, read_json
from common.audit import Entry, read_entries
from common.protocol.codec import Answer, pack, unpack_answer
from common.protocol.messages import Failure, Hello, Task

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "FLWR_TELEMETRY_ENABLED": "0"}


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Polls until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for: {what}"
        time.sleep(0.01)


class Process(Protocol):
    """As much of ``subprocess.Popen`` as is needed here."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> object: ...
    def kill(self) -> None: ...
    def send_signal(self, number: int) -> None: ...


class ForkedProcess:
    """A process of ``multiprocessing`` with the methods of one of ``subprocess`` that are needed here."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        self.pid = process.pid or 0

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> None:
        self._process.join(timeout)
        assert self._process.exitcode is not None, "it does not end"

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def fork(target: Callable[..., None], log: Path, *arguments: object) -> ForkedProcess:
    """Starts a process that has loaded everything already; what it prints goes to a file."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["client.runner.main", "tests.client.runner.stand_in"])
    child = forks.Process(target=_call, args=(target, log, arguments), daemon=True)
    child.start()
    return ForkedProcess(child)


def _call(target: Callable[..., None], log: Path, arguments: Sequence[object]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    target(*arguments)


class RunnerProcess:
    """Folders and process of a runner; the test is the courier.

    Args:
        folder: for everything.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state, self.shared = StateFolder(folder / "state"), SharedFolder(folder / "shared")
        self.ledger, self.log = folder / "ledger.jsonl", folder / "runner.log"
        self.kit, self.consent = folder / "kit", folder / "consent.json"
        self.process: Process | None = None

    # The process

    def run(self, command: Sequence[str]) -> None:
        """Starts a program."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(list(command), env=self.environment, stdout=log, stderr=log)

    @property
    def environment(self) -> dict[str, str]:
        """With a ledger, and the hospital's key beside it, that are this site's alone."""
        return ENVIRONMENT | {"FEDVOX_LEDGER": str(self.ledger)}

    @property
    def status(self) -> dict[str, Any]:
        """What the runner says of itself; empty while its status is an earlier one's."""
        status = read_json(self.state.runner)
        return status if self.process is not None and status.get("pid") == self.process.pid else {}

    def wait_until(self, state: str) -> None:
        """Until the runner says that it is ``waiting`` or ``working``."""
        self.wait_for(lambda: self.status.get("state") == state, state)

    def wait_for_step(self) -> None:
        """Until training is under way; it must last for a second."""
        self.wait_for(lambda: self.shared.work().step > 0, "a step of training")

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
        """Polls until something is true; the runner must be alive until then."""
        wait_for(lambda: condition() or self.is_over(), what, seconds)
        assert condition(), self.text()

    def is_over(self) -> bool:
        """Whether the process has ended."""
        return self.process is not None and self.process.poll() is not None

    def kill(self) -> None:
        """As ``kill -9``."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def terminate(self) -> float:
        """SIGTERM; how many seconds the end took."""
        assert self.process is not None
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        return time.monotonic() - started

    def text(self) -> str:
        """The runner's log."""
        return self.log.read_text(encoding="utf-8")

    # The courier's part

    def give(self, message: Task | Hello | str, name: str | None = None) -> str:
        """Puts a message into the inbox; the name of its task."""
        name = name or (message.name if isinstance(message, Task) else os.urandom(16).hex())
        temporary = self.shared.inbox / f".{name}"
        temporary.write_text(message if isinstance(message, str) else pack(message))
        temporary.replace(self.shared.task(name))
        return name

    def reply(self, name: str, seconds: float = 60.0) -> bytes:
        """The bytes of an answer, as soon as it is there."""
        self.wait_for(self.shared.reply(name).exists, f"the answer to {name[:8]}", seconds)
        return self.shared.read_reply(name).encode()

    def answer(self, name: str, seconds: float = 60.0) -> Answer:
        """An answer, as soon as it is there."""
        return unpack_answer(self.reply(name, seconds))

    def failure(self, name: str) -> tuple[str, str]:
        """Code and reason of an answer that must be a failure."""
        answer = self.answer(name)
        assert isinstance(answer, Failure), answer
        return answer.code.name, answer.reason

    def take(self, name: str) -> bytes:
        """Takes an answer as when it was delivered; its bytes."""
        reply = self.reply(name)
        self.shared.task(name).unlink()
        self.shared.reply(name).unlink()
        return reply

    # What was written down

    def entries(self, event: str) -> list[Entry]:
        """Of the audit log."""
        return [entry for entry in read_entries(self.state.path / AUDIT_FILE) if entry.event == event]

    def paid(self) -> list[RoundEntry]:
        """The rounds in the privacy ledger."""
        return [item.entry for item in Ledger(self.ledger).read().rounds]
