"""Kills a runner, as ``kill -9`` does, at each of its operations on files, and starts it anew each time.

``python -m tests.client.runner.kill_points FOLDER every|each-kind`` is the courier of a runner that an audit hook kills
just before its operation of a certain number: it gives a task, gives it again after the answer, and gives the next.
Whatever was killed, both times the answer is the same, nothing is trained once its answer is known, each round is paid
for and counted once, and the audit log has every answer. Prints ``killed N times``.
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
from tests.kill_schedule import Act, chosen, kill_before, on_operations, write_kinds

IDLE = ("runner.json", "progress.json")
"""Files that belong to waiting."""
LONGEST_SECONDS = 30.0


class Courier:
    """Gives tasks to a runner and takes its answers; starts the runner anew whenever it is dead.

    Args:
        site: folders.
        act: what the first runner does before each of its operations.
    """

    def __init__(self, site: StandIn, act: Act) -> None:
        self.site = site
        self.kills = 0
        self._journal = TaskJournal(site.state.journal)
        self._child = self._fork(act)

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

    def _fork(self, act: Act | None) -> int:
        child = os.fork()
        if child != 0:
            return child
        if act is not None:
            on_operations(self.site.folder, act, IDLE)
        status = 1
        try:
            self.site.serve(step_seconds=0)
            status = 0
        finally:
            os._exit(status)


def survive(site: StandIn, act: Act) -> int:
    """Two tasks, the first asked for twice; how often the runner was killed."""
    site.make()
    courier = Courier(site, act)
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


def main(root: Path, places: str) -> int:
    """Kills at every place, or at one of each kind; exit status 1 if that was not survived."""
    kinds = root / "kinds"
    assert survive(StandIn(root / "whole"), write_kinds(kinds)) == 0
    kills = 0
    for operation in chosen(kinds, places):
        try:
            kills += survive(StandIn(root / f"killed_{operation}"), kill_before(operation))
        except AssertionError as error:
            print(f"killed before operation {operation}: {error}")
            return 1
    print(f"killed {kills} times")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
