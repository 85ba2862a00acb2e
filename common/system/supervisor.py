"""A small supervisor of child processes, used by the server's and by the site's ``start`` command.

It restarts what dies, waits longer each time that helps nothing, and lets nothing outlive it: children get a signal
from the kernel when their parent dies, also by SIGKILL, and whatever a dead child leaves behind in its process group
is killed before the child is started again.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import FedvoxError
from common.system.files import cannot_write

FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 30.0
HEALTHY_AFTER_SECONDS = 60.0
LARGEST_LOG_BYTES = 16 * 2**20
_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Child:
    """A process to keep alive.

    Attributes
    ----------
    name
        unique among the supervisor's children.
    env
        the whole environment, not additions to ours.
    log
        where its output goes, appended; moved to ``.1`` at a start once it is large.
    ready
        says whether it does its work yet; called by ``poll`` until it is true, so it must answer at once. None: a
        process that runs is ready.
    after
        names of children that must have been ready once before this one is started for the first time.
    on_parent_death
        what the kernel sends it when this process dies. SIGKILL cannot be missed; a program that has children of its
        own and passes SIGTERM on to them (nginx) is better told so.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    log: Path
    ready: Callable[[], bool] | None = None
    after: tuple[str, ...] = ()
    on_parent_death: signal.Signals = signal.SIGKILL


@dataclass
class _Kept:
    """A child and what is known of its present and past processes; times are of ``time.monotonic``."""

    child: Child
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    start_at: float = 0.0
    delay: float = 0.0
    ready: bool = False
    was_ready: bool = False
    restarts: int = 0
    exit_status: int | None = None
    stopped: bool = False
    since: float = field(default_factory=time.time)


def next_delay(previous: float, lived: float) -> float:
    """Seconds to wait before a child that lived ``lived`` seconds is started again, after a wait of ``previous``."""
    if lived >= HEALTHY_AFTER_SECONDS or previous == 0:
        return FIRST_DELAY_SECONDS
    return min(2 * previous, LONGEST_DELAY_SECONDS)


class Supervisor:
    """Keeps children alive. Must be used from the main thread: the kernel ties children to the thread that made them.

    Parameters
    ----------
    children
        what to keep alive, in the order of starting; they are stopped in reverse.
    on_event
        is told (name, what happened) of every start, readiness, death and stop.
    """

    def __init__(self, children: Sequence[Child], on_event: Callable[[str, str], None]) -> None:
        names = [child.name for child in children]
        if len(set(names)) < len(names):
            raise ValueError(f"two children have the same name: {names}")
        for child in children:
            if unknown := set(child.after) - set(names):
                raise ValueError(f"{child.name} waits for {sorted(unknown)}, which nobody starts")
        self._kept = {child.name: _Kept(child) for child in children}
        self._on_event = on_event

    def start(self) -> None:
        """Starts every child that waits for no other; ``poll`` starts the rest.

        Raises
        ------
        FedvoxError
            a program cannot be run at all.
        """
        self.poll()

    def poll(self) -> None:
        """Notices deaths and readiness, and starts what is due. Returns at once; call it about ten times a second.

        Raises
        ------
        FedvoxError
            a program cannot be run at all (it is not installed).
        """
        for kept in self._kept.values():
            if kept.stopped:
                continue
            if kept.process is not None and _is_dead(kept.process):
                self._bury(kept)
            if kept.process is None and time.monotonic() >= kept.start_at and self._may_start(kept):
                self._launch(kept)
            elif kept.process is not None and not kept.ready and (kept.child.ready is None or kept.child.ready()):
                kept.ready = kept.was_ready = True
                kept.since = time.time()
                self._on_event(kept.child.name, "ready")

    def stop(self, grace_seconds: float = 10.0) -> None:
        """Ends all children in reverse order: SIGTERM, and SIGKILL for what is left after ``grace_seconds`` each."""
        for kept in reversed(self._kept.values()):
            kept.stopped = True
            if kept.process is not None:
                in_time = self._end_in_time(kept, grace_seconds)
                event = "stopped" if in_time else f"killed: still there after {grace_seconds:g} s"
                self._on_event(kept.child.name, event)

    @property
    def all_ready(self) -> bool:
        """Whether every child does its work at this moment, as far as the last ``poll`` saw."""
        return all(kept.ready for kept in self._kept.values())

    def states(self) -> dict[str, dict[str, Any]]:
        """Name -> state (``waiting``, ``starting``, ``ready``, ``restarting``, ``stopped``), pid, restarts, since
        (seconds since the epoch) and exit_status of the last process that ended; negative is a signal's number."""
        return {
            name: {
                "state": _state_of(kept),
                "pid": kept.process.pid if kept.process else None,
                "restarts": kept.restarts,
                "since": kept.since,
                "exit_status": kept.exit_status,
            }
            for name, kept in self._kept.items()
        }

    def _end_in_time(self, kept: _Kept, grace_seconds: float) -> bool:
        """SIGTERM, then SIGKILL; whether the first was enough."""
        process, kept.process, kept.ready = kept.process, None, False
        if process is None:
            return True
        deadline = time.monotonic() + grace_seconds
        if not _is_dead(process):
            process.terminate()
        while not _is_dead(process) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        in_time = _is_dead(process)
        kept.exit_status = _end(process)
        kept.since = time.time()
        return in_time

    def _may_start(self, kept: _Kept) -> bool:
        return all(self._kept[name].was_ready for name in kept.child.after)

    def _launch(self, kept: _Kept) -> None:
        child = kept.child
        with _opened_log(child.log) as log:
            try:
                kept.process = subprocess.Popen(
                    list(child.command),
                    env=dict(child.env),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                    preexec_fn=_tie_to_parent(child.on_parent_death),
                )
            except OSError as error:
                raise FedvoxError(
                    f"{child.command[0]}: cannot be started: {error.strerror}; install it, or see that it may be run"
                ) from None
        kept.started = time.monotonic()
        kept.since = time.time()
        self._on_event(child.name, "started" if kept.exit_status is None else "started again")

    def _bury(self, kept: _Kept) -> None:
        if kept.process is None:
            return
        kept.exit_status = _end(kept.process)
        kept.process, kept.ready = None, False
        now = time.monotonic()
        kept.delay = next_delay(kept.delay, now - kept.started)
        kept.start_at = now + kept.delay
        kept.restarts += 1
        kept.since = time.time()
        self._on_event(kept.child.name, f"{_in_words(kept.exit_status)}; starting again in {kept.delay:g} s")


def put_aside_if_large(log: Path) -> None:
    """Gives a log that has grown another name, in place of the one that was put aside before.

    Raises
    ------
    OutputError
        it cannot be renamed.
    """
    try:
        if log.exists() and log.stat().st_size > LARGEST_LOG_BYTES:
            log.replace(log.with_name(log.name + ".1"))
    except OSError as error:
        raise cannot_write(log, error) from None


def _opened_log(path: Path) -> BinaryIO:
    """To be appended to; one that is large is put aside first.

    Raises
    ------
    OutputError
        it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        put_aside_if_large(path)
        return path.open("ab")
    except OSError as error:
        raise cannot_write(path, error) from None


def _state_of(kept: _Kept) -> str:
    if kept.stopped:
        return "stopped"
    if kept.process is None:
        return "waiting" if kept.exit_status is None else "restarting"
    return "ready" if kept.ready else "starting"


def _in_words(exit_status: int) -> str:
    if exit_status >= 0:
        return f"ended with status {exit_status}"
    try:
        return f"killed by {signal.Signals(-exit_status).name}"
    except ValueError:
        return f"killed by signal {-exit_status}"


def _is_dead(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended; leaves it a zombie, so that its process group's number is not given to another."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(process: subprocess.Popen[bytes]) -> int:
    """Kills what is left of the process and of its group; the exit status."""
    os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _tie_to_parent(death_signal: signal.Signals) -> Callable[[], None] | None:
    """What the child does between fork and exec. Elsewhere than on Linux, children are not tied to their parent."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return tie


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something listens on a TCP port: a ``ready`` for servers on this machine."""
    try:
        with socket.create_connection((host, port), timeout=0.2):
            return True
    except OSError:
        return False
