"""Whatever is killed at whatever point of a round, every round counts once and the model is the one it must be.

A point of a round is recognised by the files that appear there. The half of the site that would go on is frozen at
that moment, so that the kill really happens there, and let go when the one that was killed is back.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from client.ledger.ledger import Ledger
from client.state_folder import AUDIT_FILE
from common.audit import read_entries, verify
from common.planning.resolve import plan_from_config
from server.rounds.initial_weights import initial_weights
from server.run_store.gateway_folder import GatewayFolder
from server.run_store.locks import app_holder
from tests.e2e.network_federation import SCRIPTED, Federation, assert_same_model, federation, simulated, wait_for

pytestmark = pytest.mark.network

VICTIM = "west"
"""The site at which rounds are caught."""
PATIENCE_SECONDS = 300
POLL_SECONDS = 0.001
TRANSFER_SECONDS = 1.0
PROCESSES = ("gateway", "superlink", "app", "courier", "runner", "everything")
POINTS = {
    "handed-out": "courier",
    "half-a-download": "courier",
    "task-there": "runner",
    "training": "",
    "reply-there": "courier",
    "half-an-upload": "courier",
    "half-an-announcement": "courier",
    "reply-with-the-server": "courier",
}
"""Points of a round in their order, and which half of the site is frozen there."""


class Catcher:
    """Catches rounds at one point, at one site.

    Args:
        made: the federation.
        point: one of ``POINTS``.
        size: bytes of the model and of an update.
    """

    def __init__(self, made: Federation, point: str, size: int) -> None:
        self._made = made
        self._point = point
        self._size = size
        self._gateway = GatewayFolder(made.run)
        self._state = made.state(VICTIM)
        self._seen: set[str] = set()

    @contextmanager
    def caught(self, round_number: int) -> Iterator[None]:
        """The block runs while the round is at the point."""
        name = self._next_task()
        self._wait(lambda: self._is_there(name, round_number), f"{self._point} in round {round_number}")
        half = POINTS[self._point]
        pid = self._made.site_pid(VICTIM, half) if half else None
        if pid is not None:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            if pid is not None:
                with suppress(ProcessLookupError):  # it may be what was killed
                    os.kill(pid, signal.SIGCONT)

    def _next_task(self) -> str:
        """The name of the task of a new round."""
        found: list[str] = []

        def is_new() -> bool:
            found[:] = [task.name for task in self._gateway.open_tasks(VICTIM) if task.name not in self._seen]
            return bool(found)

        self._wait(is_new, "the next round's task")
        self._seen.add(found[0])
        return found[0]

    def _is_there(self, name: str, round_number: int) -> bool:
        shared = self._state.shared
        if self._point == "handed-out":
            return (self._state.path / "courier" / f"{name}.json").exists()
        if self._point == "half-a-download":
            return self._is_half(shared / "inbox")
        if self._point == "task-there":
            return (shared / "inbox" / f"{name}.task").exists()
        if self._point == "training":
            return self._made.held_in(VICTIM) == round_number
        if self._point == "reply-there":
            return (shared / "outbox" / f"{name}.reply").exists()
        if self._point == "half-an-upload":
            return self._is_half(self._gateway.updates(VICTIM))
        if self._point == "half-an-announcement":
            return (self._state.path / "courier" / f"{name}.sent").exists()
        # The server has the reply, and the courier has not cleared up.
        message = self._state.path / "courier" / f"{name}.sent"
        return message.exists() and any((self._gateway.path / "replies").iterdir())

    def _is_half(self, folder: Path) -> bool:
        with suppress(FileNotFoundError):
            return any(0.2 < file.stat().st_size / self._size < 0.8 for file in folder.glob(".*.part"))
        return False

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}: {self._made.log('server')[-800:]}"
            time.sleep(POLL_SECONDS)


def kill(made: Federation, name: str) -> None:
    """SIGKILL; returns when there is a successor."""
    if name == "everything":
        kill_everything(made)
        return
    wait_for(lambda: pid_of(made, name), PATIENCE_SECONDS, name)
    pid = pid_of(made, name)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: pid_of(made, name) not in (None, pid), PATIENCE_SECONDS, f"another {name}")


def pid_of(made: Federation, name: str) -> int | None:
    if name == "app":
        holder = app_holder(made.run)
        return holder.pid if holder is not None and holder.alive else None
    return made.site_pid(VICTIM, name) if name in ("courier", "runner") else made.pid(name)


def kill_everything(made: Federation) -> None:
    starters = [made.processes["server"], made.processes[VICTIM]]
    names = ("gateway", "superlink", "superexec", "app", "courier", "runner")
    pids = [*(starter.pid for starter in starters), *filter(None, (pid_of(made, name) for name in names))]
    for pid in pids:
        with suppress(ProcessLookupError):  # some die with the one that started them
            os.kill(pid, signal.SIGKILL)
    for starter in starters:
        starter.wait()
    made.start_server()
    made.start_site(VICTIM, client=SCRIPTED)


def hold_up_files(made: Federation, size: int) -> None:
    """Lets large files take a while at the victim."""
    made.state(VICTIM).make()
    limit = {"network": {"max_megabits": max(1, round(8 * size / TRANSFER_SECONDS / 1e6))}}
    (made.state(VICTIM).path / "site.yaml").write_text(yaml.safe_dump(limit))


def check_record(made: Federation, rounds: int, folder: Path) -> None:
    """Every round counted once, nobody was lost, nothing was done twice, and the model is that of a simulation."""
    lines = made.rounds()
    assert [line["round"] for line in lines] == list(range(1, rounds + 2))
    outcomes = {
        (line["round"], site): (entry["status"], entry["reason"])
        for line in lines
        for site, entry in line["sites"].items()
    }
    expected = {(number, site): ("ok", None) for number in range(1, rounds + 2) for site in made.sites}
    assert outcomes == expected
    verify(made.run / "audit.jsonl")
    for site in made.sites:
        assert_one_answer_a_round(made, site)
    assert_same_model(made.run, simulated(made, folder).path, rounds)


def assert_one_answer_a_round(made: Federation, site: str) -> None:
    """However often a site's answer left, it was the same one."""
    answers: dict[tuple[str, int], set[str]] = {}
    for entry in read_entries(made.state(site).path / AUDIT_FILE):
        if entry.event == "sent" and entry.details.get("kind") in ("train", "evaluate"):
            about = entry.details
            answers.setdefault((about["run"], about["round"]), set()).add(about["sha256"])
    assert answers and {len(sent) for sent in answers.values()} == {1}, (site, answers)


@pytest.mark.parametrize(
    "point", [pytest.param(point, marks=[] if point == "half-an-upload" else pytest.mark.long) for point in POINTS]
)
def test_killed_at_a_point_of_the_round(tmp_path: Path, point: str) -> None:
    """Each process once, in a round of its own, and at last all of them together."""
    rounds = len(PROCESSES)
    settings = (f"rounds={rounds}", "model.channels=[8, 16, 64, 160]", "strategy.min_sites=2")
    with federation(tmp_path, ("east", VICTIM), settings) as made:
        weights, _ = initial_weights(plan_from_config(made.config), made.config.seed)
        hold_up_files(made, weights.nbytes)
        if point == "training":
            made.hold(VICTIM)
        made.start("east", VICTIM, scripted=(VICTIM,))
        catcher = Catcher(made, point, weights.nbytes)
        for number, name in enumerate(PROCESSES, start=1):
            with catcher.caught(number):
                kill(made, name)
                if point == "training":
                    made.hold(VICTIM, *range(number + 1, rounds + 2))
        made.finish(PATIENCE_SECONDS)
        check_record(made, rounds, tmp_path / "undisturbed")


@pytest.mark.long
def test_no_epsilon_is_spent_twice_whenever_a_runner_is_killed(tmp_path: Path) -> None:
    rounds = 4
    settings = (
        f"rounds={rounds}",
        "strategy.min_sites=2",
        "privacy={epsilon: 50, delta: 1e-5, sample_rate: 0.5, validation: 'off'}",
    )
    with federation(tmp_path, ("east", VICTIM), settings) as made:
        made.hold(VICTIM)
        made.start("east", VICTIM, scripted=(VICTIM,))
        for number in range(1, rounds + 1):
            wait_for(lambda number=number: made.held_in(VICTIM) == number, PATIENCE_SECONDS, f"round {number}")
            for _ in range(2 if number == 2 else 1):
                kill(made, "runner")
                (made.state(VICTIM).path / "held").unlink()
                wait_for(lambda: made.held_in(VICTIM) is not None, PATIENCE_SECONDS, "training again")
            made.hold(VICTIM, *range(number + 1, rounds + 2))
        made.finish(PATIENCE_SECONDS)
        entries = Ledger(made.ledger).read().rounds
        paid = [(each.entry.round, spend.dataset) for each in entries for spend in each.entry.spends]
        assert len(paid) == len(set(paid)) == len(made.sites) * rounds
        assert_one_answer_a_round(made, VICTIM)
