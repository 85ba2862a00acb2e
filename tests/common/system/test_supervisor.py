"""The supervisor, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.errors import FedvoxError
from common.system.supervisor import (
    LONGEST_DELAY_SECONDS,
    Child,
    GaveUpError,
    Supervisor,
    answers,
    free_port,
    next_delay,
)

FOREVER = "import signal, sys; print('up', flush=True); signal.pause()"
STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
)


class Bench:
    """A supervisor under test, its events, and a patient ``until``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[tuple[str, str]] = []
        self.supervisor: Supervisor | None = None

    def child(self, name: str, code: str, **options: object) -> Child:
        log = self.folder / f"{name}.log"
        return Child(name, [sys.executable, "-c", code], dict(os.environ), log, **options)  # type: ignore[arg-type]

    def supervise(self, *children: Child) -> Supervisor:
        self.supervisor = Supervisor(children, lambda name, event: self.events.append((name, event)))
        self.supervisor.start()
        return self.supervisor

    def until(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        assert self.supervisor is not None
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain; events: {self.events}"
            self.supervisor.poll()
            time.sleep(0.01)

    def wrote(self, name: str, text: str) -> bool:
        log = self.folder / f"{name}.log"
        return log.exists() and text in log.read_text()

    def pid(self, name: str) -> int:
        assert self.supervisor is not None
        pid = self.supervisor.states()[name]["pid"]
        assert isinstance(pid, int)
        return pid


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    if bench.supervisor is not None:
        bench.supervisor.stop(0.5)


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while runs(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def test_restarts_what_dies(bench: Bench) -> None:
    supervisor = bench.supervise(bench.child("worker", FOREVER))
    bench.until(lambda: bench.wrote("worker", "up"))
    first = bench.pid("worker")
    os.kill(first, signal.SIGKILL)
    bench.until(lambda: supervisor.states()["worker"]["pid"] not in (None, first))
    bench.until(lambda: supervisor.states()["worker"]["state"] == "ready")
    assert supervisor.states()["worker"]["restarts"] == 1
    assert ("worker", "killed by SIGKILL; starting again in 1 s") in bench.events


def test_says_with_which_status_a_child_ended(bench: Bench) -> None:
    supervisor = bench.supervise(bench.child("short", "import sys; sys.exit(7)"))
    bench.until(lambda: supervisor.states()["short"]["state"] == "restarting")
    assert supervisor.states()["short"]["exit_status"] == 7
    assert ("short", "ended with status 7; starting again in 1 s") in bench.events


def test_delay_doubles_to_its_limit_and_starts_over_after_a_healthy_life() -> None:
    delays, delay = [], 0.0
    for _ in range(7):
        delay = next_delay(delay, lived=0.1)
        delays.append(delay)
    assert delays == [1, 2, 4, 8, 16, LONGEST_DELAY_SECONDS, LONGEST_DELAY_SECONDS]
    assert next_delay(LONGEST_DELAY_SECONDS, lived=60) == 1


def test_a_child_is_ready_only_when_it_says_so(bench: Bench) -> None:
    flag = bench.folder / "flag"
    supervisor = bench.supervise(bench.child("slow", FOREVER, ready=flag.exists))
    bench.until(lambda: bench.wrote("slow", "up"))
    supervisor.poll()
    assert supervisor.states()["slow"]["state"] == "starting"
    flag.touch()
    supervisor.poll()
    assert supervisor.states()["slow"]["state"] == "ready"


def test_a_child_waits_for_those_it_comes_after(bench: Bench) -> None:
    flag = bench.folder / "flag"
    first = bench.child("first", FOREVER, ready=flag.exists)
    supervisor = bench.supervise(first, bench.child("second", FOREVER, after=("first",)))
    bench.until(lambda: bench.wrote("first", "up"))
    supervisor.poll()
    assert supervisor.states()["second"]["state"] == "waiting"
    flag.touch()
    bench.until(lambda: supervisor.states()["second"]["state"] == "ready")


def test_stop_ends_children_in_reverse_order(bench: Bench) -> None:
    supervisor = bench.supervise(bench.child("first", FOREVER), bench.child("second", FOREVER))
    bench.until(lambda: bench.wrote("first", "up") and bench.wrote("second", "up"))
    pids = [bench.pid("first"), bench.pid("second")]
    supervisor.stop(10)
    assert not any(runs(pid) for pid in pids)
    assert [name for name, event in bench.events if event == "stopped"] == ["second", "first"]
    assert supervisor.states()["first"]["exit_status"] == -signal.SIGTERM


def test_stop_kills_what_ignores_sigterm(bench: Bench) -> None:
    supervisor = bench.supervise(bench.child("stubborn", STUBBORN))
    bench.until(lambda: bench.wrote("stubborn", "up"))
    pid = bench.pid("stubborn")
    supervisor.stop(0.2)
    assert not runs(pid)
    assert supervisor.states()["stubborn"]["exit_status"] == -signal.SIGKILL


def test_a_dead_childs_own_children_are_killed(bench: Bench) -> None:
    code = f"import subprocess, sys, signal\nchild = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}])\n"
    code += "print(f'pid {child.pid};', flush=True); signal.pause()"
    supervisor = bench.supervise(bench.child("parent", code))
    bench.until(lambda: bench.wrote("parent", "up") and bench.wrote("parent", ";"))
    grandchild = int((bench.folder / "parent.log").read_text().partition("pid ")[2].partition(";")[0])
    assert runs(grandchild)
    os.kill(bench.pid("parent"), signal.SIGKILL)
    bench.until(lambda: supervisor.states()["parent"]["restarts"] == 1)
    wait_until_gone(grandchild)


def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    code = f"""
import os, sys, time
from pathlib import Path
from common.system.supervisor import Child, Supervisor
child = Child("stubborn", [sys.executable, "-c", {STUBBORN!r}], dict(os.environ), Path({str(tmp_path)!r}) / "log")
supervisor = Supervisor([child], lambda name, event: None)
supervisor.start()
while "up" not in child.log.read_text():
    time.sleep(0.01)
print(supervisor.states()["stubborn"]["pid"], flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert runs(pid)
        parent.kill()
    wait_until_gone(pid)


DAMAGED = "import sys; print('site.key: is damaged', file=sys.stderr); sys.exit({status})"


def test_gives_up_a_child_whose_cause_does_not_change_and_says_it(bench: Bench) -> None:
    supervisor = bench.supervise(bench.child("gateway", DAMAGED.format(status=2), gives_up=True))
    with pytest.raises(
        GaveUpError, match=r"gateway ended 3 times with status 2: site\.key: is damaged; .*log"
    ) as error:
        bench.until(lambda: False)
    assert error.value.exit_status == 2
    assert supervisor.states()["gateway"]["state"] == "stopped"
    supervisor.poll()
    assert [event for _, event in bench.events].count("started again") == 2


@pytest.mark.parametrize("options", [{"gives_up": False, "status": 2}, {"gives_up": True, "status": 1}])
def test_goes_on_with_others(bench: Bench, options: dict[str, int]) -> None:
    child = bench.child("runner", DAMAGED.format(status=options["status"]), gives_up=bool(options["gives_up"]))
    supervisor = bench.supervise(child)
    bench.until(lambda: supervisor.states()["runner"]["restarts"] == 3)
    assert supervisor.states()["runner"]["state"] == "restarting"


def test_refuses_a_program_that_is_not_there(bench: Bench) -> None:
    child = Child("ghost", ["/nowhere/ghost"], {}, bench.folder / "ghost.log")
    with pytest.raises(FedvoxError, match="/nowhere/ghost: cannot be started: No such file"):
        bench.supervise(child)


def test_refuses_equal_names_and_unknown_predecessors(bench: Bench) -> None:
    child = bench.child("twin", FOREVER)
    with pytest.raises(ValueError, match="same name"):
        Supervisor([child, child], lambda name, event: None)
    with pytest.raises(ValueError, match="not among the children"):
        Supervisor([bench.child("late", FOREVER, after=("nobody",))], lambda name, event: None)


def test_a_large_log_is_moved_aside_at_a_start(bench: Bench) -> None:
    (bench.folder / "worker.log").write_bytes(b"x" * (16 * 2**20 + 1))
    bench.supervise(bench.child("worker", FOREVER))
    bench.until(lambda: bench.wrote("worker", "up"))
    assert (bench.folder / "worker.log").stat().st_size < 100
    assert (bench.folder / "worker.log.1").stat().st_size == 16 * 2**20 + 1


def test_a_free_port_answers_once_somebody_listens(bench: Bench) -> None:
    port = free_port()
    assert not answers(port)
    code = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(60)"
    supervisor = bench.supervise(bench.child("server", code, ready=lambda: answers(port)))
    bench.until(lambda: supervisor.states()["server"]["state"] == "ready")
