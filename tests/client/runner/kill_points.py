"""Kills a runner, as ``kill -9`` does, at each of its operations on files, and starts it anew each time.

``python -m tests.client.runner.kill_points FOLDER`` is the courier of a runner that an audit hook kills just before its
operation of a certain number: it gives a task, gives it again after the answer, and gives the next task. Whatever was
killed, both times the answer is the same, nothing is trained once its answer is known, each round is paid for and
counted once, and the audit log has every answer. Prints ``killed N times``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from client.consent.hospital_file import HospitalFile
from client.ledger.ledger import Ledger, Witness
from client.runner.task_journal import TaskJournal
from client.state_folder import AUDIT_FILE
from common.audit import read_entries, verify
from common.protocol.codec import pack, unpack_answer
from common.protocol.messages import Result
from common.weights.store import FileStore, digest_of
from tests.client.runner.stand_in import StandIn

OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir"}
LONGEST_SECONDS = 30.0


class Courier:
    """Gives tasks to a runner and takes its answers; starts the runner anew whenever it is dead.

    Args:
        site: folders.
        operation: number of the first runner's operation before which it is killed.
    """

    def __init__(self, site: StandIn, operation: int) -> None:
        self.site = site
        self.kills = 0
        self._journal = TaskJournal(site.state.journal)
        self._child = self._fork(operation)

    def answer(self, round_number: int) -> bytes:
        """What the runner answers to the task of a round; takes task and answer away."""
        task = self.site.task(round_number)
        shared = self.site.shared
        before = self._record(task.name)
        trained = self.site.trained().count(round_number)
        temporary = shared.inbox / ".task"
        temporary.write_text(pack(task))
        temporary.replace(shared.task(task.name))
        deadline = time.monotonic() + LONGEST_SECONDS
        while not shared.reply(task.name).exists():
            self._keep_alive()
            assert time.monotonic() < deadline, f"no answer to round {round_number}"
            time.sleep(0.002)
        reply = shared.read_reply(task.name).encode()
        if before:
            assert self.site.trained().count(round_number) == trained, "trained again although the answer was known"
        answer = unpack_answer(reply)
        assert isinstance(answer, Result) and answer.update is not None, reply
        assert digest_of(FileStore(shared.outbox).get(answer.update)) == answer.update
        shared.task(task.name).unlink()
        shared.reply(task.name).unlink()
        return reply

    def end(self) -> None:
        """Ends the runner, by SIGTERM."""
        self._keep_alive()
        os.kill(self._child, signal.SIGTERM)
        os.waitpid(self._child, 0)

    def _record(self, name: str) -> bool:
        record = self._journal.find(name)
        return record is not None and record.is_done

    def _keep_alive(self) -> None:
        dead, status = os.waitpid(self._child, os.WNOHANG)
        if dead:
            assert os.WIFSIGNALED(status), f"the runner ended by itself: {status}"
            self.kills += 1
            self._child = self._fork(None)

    def _fork(self, operation: int | None) -> int:
        child = os.fork()
        if child != 0:
            return child
        if operation is not None:
            _kill_before(operation, self.site.folder)
        status = 1
        try:
            self.site.serve(step_seconds=0)
            status = 0
        finally:
            os._exit(status)


def _kill_before(operation: int, folder: Path) -> None:
    left = operation

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in OPERATIONS and str(folder) in str(arguments[0]) and not _is_idle(arguments):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)


def _is_idle(arguments: tuple[object, ...]) -> bool:
    """Whether an operation belongs to waiting: how often there is one depends on the machine."""
    return "runner.json" in str(arguments[0]) or "progress.json" in str(arguments[0])


def survive(site: StandIn, operation: int) -> int:
    """Two tasks, the first asked for twice; how often the runner was killed."""
    site.make()
    courier = Courier(site, operation)
    first = courier.answer(1)
    assert courier.answer(1) == first, "another answer to the same task"
    assert courier.answer(2) != first
    courier.end()
    paid = Counter(item.entry.round for item in Ledger(site.ledger, Witness(site.state.path)).read().rounds)
    assert paid == {1: 1, 2: 1}, f"paid: {paid}"
    contract = HospitalFile(site.consent).contract(site.config.digest(), "north")
    assert len(contract.begun) == 2, f"counted: {contract.begun}"
    trained = Counter(site.trained())
    assert sum(trained.values()) <= 2 + courier.kills, f"trained: {trained}"
    log = site.state.path / AUDIT_FILE
    verify(log)
    sent = Counter(entry.details["round"] for entry in read_entries(log) if entry.event == "sent")
    assert sent[1] >= 2 and sent[2] >= 1, f"sent: {sent}"
    left = [file.name for file in site.shared.outbox.iterdir() if file.name.startswith(".")]
    assert left in ([], [".spare"]), left
    return courier.kills


def main(root: Path) -> int:
    """Kills at every point; exit status 1 if that was not survived."""
    kills = 0
    while True:
        try:
            if survive(StandIn(root / f"killed_{kills}"), kills) == 0:
                print(f"killed {kills} times")
                return 0
        except AssertionError as error:
            print(f"killed before operation {kills}: {error}")
            return 1
        kills += 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
