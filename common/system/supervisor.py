"""A small supervisor of child processes, used by the ``start`` commands of server and site.

It restarts children that die, with exponential backoff. No process outlives it: the kernel signals the children when
their parent dies, even by SIGKILL, and the remaining processes in a dead child's process group are killed before the
child restarts.
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

from common.errors import RESTART_CANNOT_HELP, FedvoxError
from common.system.files import cannot_write

FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 30.0
HEALTHY_AFTER_SECONDS = 60.0
LARGEST_LOG_BYTES = 16 * 2**20
MOST_FAILURES = 10
"""Ends with the same exit status, one soon after the other, after which a child is given up."""
MOST_HOPELESS_FAILURES = 3
"""The same for ``RESTART_CANNOT_HELP``: more than one, because files may be in the middle of being replaced."""
_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1


class GaveUpError(FedvoxError):
    """A child keeps ending for a cause that does not change.

    Attributes
    ----------
    exit_status
        ``RESTART_CANNOT_HELP`` if the child ended with it.
    """

    def __init__(self, child: Child, status: int, times: int) -> None:
        self.exit_status = status if status == RESTART_CANNOT_HELP else FedvoxError.exit_status
        super().__init__(
            f"{child.name} ended {times} times with status {status}: {_last_line(child.log)}; "
            f"remove the cause, see {child.log}, and start again"
        )


@dataclass(frozen=True)
class Child:
    """A process to keep alive.

    Attributes
    ----------
    name
        Unique among the supervisor's children.
    env
        The complete environment; nothing is inherited.
    log
        File that its output is appended to; rotated to ``.1`` at a start once it is large.
    ready
        Readiness check; ``poll`` calls it until it returns true, so it must not block. None: a running process counts
        as ready.
    after
        Names of children that must have been ready once before this one is started for the first time.
    gives_up
        Whether to give up a child that keeps ending for the same cause.
    on_parent_death
        Signal that the kernel sends when this process dies. SIGKILL cannot be ignored; SIGTERM suits programs that
        pass it on to their own children (nginx).
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    log: Path
    ready: Callable[[], bool] | None = None
    after: tuple[str, ...] = ()
    gives_up: bool = False
    on_parent_death: signal.Signals = signal.SIGKILL


@dataclass
class _Kept:
    """State of a child; times are from ``time.monotonic``, except ``since`` (seconds since the epoch)."""

    child: Child
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    start_at: float = 0.0
    delay: float = 0.0
    ready: bool = False
    was_ready: bool = False
    restarts: int = 0
    same_ends: int = 0
    exit_status: int | None = None
    stopped: bool = False
    since: float = field(default_factory=time.time)


def next_delay(previous: float, lived: float) -> float:
    """Return the seconds to wait before restarting a child that ran ``lived`` seconds after waiting ``previous``."""
    if lived >= HEALTHY_AFTER_SECONDS or previous == 0:
        return FIRST_DELAY_SECONDS
    return min(2 * previous, LONGEST_DELAY_SECONDS)


class Supervisor:
    """Keeps children alive. Use it from the main thread only: the kernel ties children to the thread that forked them.

    Parameters
    ----------
    children
        Processes to keep alive, in starting order; they are stopped in reverse.
    on_event
        Called with (name, what happened) on every start, readiness, death and stop.
    """

    def __init__(self, children: Sequence[Child], on_event: Callable[[str, str], None]) -> None:
        names = [child.name for child in children]
        if len(set(names)) < len(names):
            raise ValueError(f"two children have the same name: {names}")
        for child in children:
            if unknown := set(child.after) - set(names):
                raise ValueError(f"{child.name} waits for {sorted(unknown)}, which are not among the children")
        self._kept = {child.name: _Kept(child) for child in children}
        self._on_event = on_event

    def start(self) -> None:
        """Start every child that waits for no other; ``poll`` starts the rest.

        Raises
        ------
        FedvoxError
            If a program cannot be executed (it is not installed).
        """
        self.poll()

    def poll(self) -> None:
        """Detect deaths and readiness, and start children that are due. Never blocks; call it about ten times a second.

        Raises
        ------
        FedvoxError
            If a program cannot be executed (it is not installed).
        GaveUpError
            If a child with ``gives_up`` keeps ending for the same cause.
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
        """Stop all children in reverse order: SIGTERM, then SIGKILL after ``grace_seconds`` each."""
        for kept in reversed(self._kept.values()):
            kept.stopped = True
            if kept.process is not None:
                in_time = self._end_in_time(kept, grace_seconds)
                event = "stopped" if in_time else f"killed: still running after {grace_seconds:g} s"
                self._on_event(kept.child.name, event)

    def states(self) -> dict[str, dict[str, Any]]:
        """Return the state of every child by name.

        Keys are ``state`` (``waiting``, ``starting``, ``ready``, ``restarting`` or ``stopped``), ``pid``, ``restarts``,
        ``since`` (seconds since the epoch) and ``exit_status`` of the last ended process (negative: a signal number).
        """
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
        """Send SIGTERM, then SIGKILL; return whether SIGTERM was enough."""
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
                    f"{child.command[0]}: cannot be started: {error.strerror}; install it or make it executable"
                ) from None
        kept.started = time.monotonic()
        kept.since = time.time()
        self._on_event(child.name, "started" if kept.exit_status is None else "started again")

    def _bury(self, kept: _Kept) -> None:
        if kept.process is None:
            return
        before, kept.exit_status = kept.exit_status, _end(kept.process)
        kept.process, kept.ready = None, False
        now = time.monotonic()
        self._give_up_if_hopeless(kept, kept.exit_status, before, now - kept.started)
        kept.delay = next_delay(kept.delay, now - kept.started)
        kept.start_at = now + kept.delay
        kept.restarts += 1
        kept.since = time.time()
        self._on_event(kept.child.name, f"{_in_words(kept.exit_status)}; starting again in {kept.delay:g} s")

    def _give_up_if_hopeless(self, kept: _Kept, status: int, before: int | None, lived: float) -> None:
        """Count ends with the same status; a signal, or a long life, is another cause."""
        if status <= 0 or lived >= HEALTHY_AFTER_SECONDS:
            kept.same_ends = 0
            return
        kept.same_ends = kept.same_ends + 1 if status == before else 1
        most = MOST_HOPELESS_FAILURES if status == RESTART_CANNOT_HELP else MOST_FAILURES
        if kept.child.gives_up and kept.same_ends >= most:
            kept.stopped = True
            self._on_event(kept.child.name, f"{_in_words(status)}; given up")
            raise GaveUpError(kept.child, status, kept.same_ends)


def put_aside_if_large(log: Path) -> None:
    """Rotate a large log to ``.1``, replacing the previous one.

    Raises
    ------
    OutputError
        If it cannot be renamed.
    """
    try:
        if log.exists() and log.stat().st_size > LARGEST_LOG_BYTES:
            log.replace(log.with_name(log.name + ".1"))
    except OSError as error:
        raise cannot_write(log, error) from None


def _opened_log(path: Path) -> BinaryIO:
    """Open a log for appending, after rotating it if it is large.

    Raises
    ------
    OutputError
        If it cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        put_aside_if_large(path)
        return path.open("ab")
    except OSError as error:
        raise cannot_write(path, error) from None


def _last_line(log: Path) -> str:
    """Return the last line of a log, which of a program of ours that failed is its error."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "its log cannot be read"
    return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")


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
    """Return whether a process has ended, but leave it a zombie so that its process group ID is not reused."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(process: subprocess.Popen[bytes]) -> int:
    """Kill what is left of the process and its group, and return the exit status."""
    os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _tie_to_parent(death_signal: signal.Signals) -> Callable[[], None] | None:
    """Return the function that ties a child to its parent between fork and exec; None except on Linux."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the call to prctl
            os._exit(1)

    return tie


def free_port() -> int:
    """Return a currently unused TCP port on the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a server listens on a TCP port; usable in ``Child.ready``."""
    try:
        with socket.create_connection((host, port), timeout=0.2):
            return True
    except OSError:
        return False
