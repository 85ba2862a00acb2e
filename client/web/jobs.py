"""Work that takes long, in a child process: one at a time, with a time limit, behind everything else on the machine.

The child (``client.web.work``) gets a request as a line of JSON and answers with lines of JSON. It ends with this
process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import client
from common.errors import FedvoxError

LIMITS_SECONDS: Mapping[str, float] = {"check": 4 * 3600.0, "preflight": 900.0, "cases": 3600.0, "segment": 3600.0}
"""Kinds of work, and after how long each is ended."""


class BusyError(FedvoxError):
    """Something else is being worked on."""


@dataclass
class Work:
    """One piece of work.

    Attributes
    ----------
    since
        On the monotonic clock, in seconds.
    result
        What it found, as JSON values; None until then.
    problem
        Why there is no result; empty until then.
    """

    kind: str
    request: Mapping[str, Any]
    since: float = field(default_factory=time.monotonic)
    done: int = 0
    total: int = 0
    result: Any = None
    problem: str = ""
    has_ended: bool = False

    @property
    def seconds(self) -> int:
        """How long ago it began."""
        return round(time.monotonic() - self.since)


class Jobs:
    """Starts work, and keeps the last result of each kind.

    Parameters
    ----------
    log
        File for what a child prints besides its answers; begun anew with each.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._last: dict[str, Work] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def last(self, kind: str) -> Work | None:
        """Return the work of a kind that runs, or that ended last."""
        return self._last.get(kind)

    def mark(self) -> object:
        """Return a value that changes when there is news."""
        return [(work.kind, work.since, work.done, work.has_ended) for work in self._last.values()]

    def start(self, kind: str, **request: Any) -> None:
        """Begin work.

        Raises
        ------
        BusyError
            Something else is being worked on, or no process can be started.
        """
        with self._lock:
            self.require_free()
            self._last[kind] = Work(kind, request)
            try:
                self._process = self._child()
            except OSError as error:
                self._end(self._last[kind], f"no process could be started: {error.strerror}")
                raise BusyError(self._last[kind].problem) from None
            threading.Thread(
                target=self._follow, args=(self._last[kind], self._process), name="page-work", daemon=True
            ).start()

    def require_free(self) -> None:
        """Return if nothing is being worked on.

        Raises
        ------
        BusyError
            Something is.
        """
        for work in self._last.values():
            if not work.has_ended:
                raise BusyError(f"the page is still at work ({work.kind}, {work.seconds} s); wait for that")

    def stop(self) -> None:
        """End what runs."""
        with self._lock:
            if self._process is not None:
                self._process.kill()

    def _child(self) -> subprocess.Popen[bytes]:
        # The same code as here, whatever the working directory.
        root = str(Path(client.__file__).resolve().parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        threads = str(max(1, (os.cpu_count() or 1) // 2))
        environment = os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": threads}
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", "client.web.work"]
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment)

    def _follow(self, work: Work, process: subprocess.Popen[bytes]) -> None:
        limit = LIMITS_SECONDS[work.kind]
        timer = threading.Timer(limit, process.kill)
        timer.daemon = True
        timer.start()
        problem = ""
        try:
            problem = self._listen(work, process)
        except BrokenPipeError:
            pass  # it ended before it was asked, and its status says how
        except (OSError, ValueError) as error:
            problem = f"its answer cannot be read: {error}"
        finally:
            process.kill()
            status = process.wait()
            timer.cancel()
            if work.seconds >= limit:
                problem = f"it took longer than {limit / 60:.0f} minutes and was ended"
            if work.result is None and not problem:
                problem = f"ended with status {status}; see {self._log}"
            self._end(work, problem)

    def _listen(self, work: Work, process: subprocess.Popen[bytes]) -> str:
        """Send the request, take the answers until there is a result, and return the problem, if that is it."""
        if process.stdin is None or process.stdout is None:
            raise OSError("no pipe")
        process.stdin.write(json.dumps({"kind": work.kind, **work.request}).encode() + b"\n")
        process.stdin.flush()  # and left open: its end tells the child that this process is gone
        for line in process.stdout:
            answer = json.loads(line)
            work.done, work.total = answer.get("progress", (work.done, work.total))
            if "problem" in answer:
                return str(answer["problem"])
            if "result" in answer:
                work.result = answer["result"]
                break
        return ""

    def _end(self, work: Work, problem: str) -> None:
        work.problem = problem
        work.has_ended = True
