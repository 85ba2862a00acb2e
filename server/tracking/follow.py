"""Follows a run beside it, and never holds it up: a thread of its own sends, and the run does not wait for it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from common.errors import FedvoxError
from common.system.locks import FileLock, lock_for_one
from server.progress.events import Event, EventSink, Notice, RunStarted
from server.run_store.folder import STATE_FILE, TRACKING_LOCK, RunFolder
from server.run_store.locks import is_started
from server.tracking.settings import TrackingSettings

_log = logging.getLogger("fedvox.tracking")


@dataclass(frozen=True)
class Patience:
    """How long a follower waits, in seconds.

    Attributes
    ----------
    look
        Between two looks at the run folder.
    longest_pause
        At most between two attempts at a server that failed.
    call
        For an answer of a server.
    end
        After the run's end, for a server that fails.
    upload
        After the run's end, for one that takes what it is sent.
    """

    look: float = 1.0
    longest_pause: float = 60.0
    call: float = 10.0
    end: float = 10.0
    upload: float = 120.0


class Tracker(Protocol):
    """Something that takes what happens in a run."""

    @property
    def name(self) -> str:
        """What it is called in notices."""

    def send(self, ended: bool) -> None:
        """Send what it lacks; after the end of the run, results too."""

    def close(self) -> None:
        """Release what it holds."""


def make_trackers(settings: TrackingSettings, run: Path, call_seconds: float = Patience.call) -> list[Tracker]:
    """Return one for each place that the settings name."""
    trackers: list[Tracker] = []
    if settings.mlflow is not None:
        from server.tracking.mlflow_client import MlflowClient
        from server.tracking.mlflow_run import MlflowRun

        trackers.append(MlflowRun(MlflowClient(settings.mlflow, call_seconds), run, settings.experiment))
    if settings.tensorboard:
        from server.tracking.tensorboard_log import TensorboardLog

        trackers.append(TensorboardLog(run))
    return trackers


def track(run: Path, settings: TrackingSettings) -> None:
    """Send a run as it is now.

    Raises
    ------
    FedvoxError
        It is not a run that has begun, is being tracked already, or could not be sent.
    """
    folder = RunFolder.open(run)
    if folder.load_state() is None:
        raise FedvoxError(f"{run}: has not begun; nothing can be sent yet")
    with _only_tracker(run):
        for tracker in make_trackers(settings, run):
            try:
                tracker.send(ended=not is_started(run))
            finally:
                tracker.close()


@contextmanager
def followed(
    run: Path, settings: TrackingSettings, emit: EventSink, patience: Patience | None = None
) -> Iterator[EventSink]:
    """Follow a run for a block, from ``RunStarted`` on: a start that is refused sends nothing of what is there already.

    Parameters
    ----------
    run
        The run folder, which the block may make.
    settings
        Where to send.
    emit
        Takes notices about what could not be sent, in the thread of the block, and all that the block emits.
    patience
        None for the usual.

    Yields
    ------
    EventSink
        What the block must emit to.
    """
    follower = _Follower(run, settings, patience or Patience())

    def pass_on(event: Event) -> None:
        if isinstance(event, RunStarted):
            follower.start()
        follower.tell(emit)
        emit(event)

    try:
        yield pass_on
        follower.start()  # a run that was finished before begins no more
    finally:
        follower.end()
        follower.tell(emit)


class _Place:
    """A tracker, and how it is doing."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.problem = ""
        self._told: set[str] = set()
        self._pause = self._again = 0.0

    def attempt(self, ended: bool, patience: Patience) -> str:
        """Send what is missing, unless it failed a moment ago; return what a person should know."""
        if not ended and time.monotonic() < self._again:
            return ""
        try:
            self.tracker.send(ended)
        except FedvoxError as error:
            self.problem = str(error)
        except Exception as error:  # a bug in here must not end the run
            self.problem = f"internal error, {type(error).__name__}"
            _log.exception("tracking failed")
        else:
            before, self.problem, self._pause = self.problem, "", 0.0
            self._told.clear()
            return f"tracking: {self.tracker.name}: works again; what was missed has been sent" if before else ""
        self._pause = min(2 * self._pause or patience.look, patience.longest_pause)
        self._again = time.monotonic() + self._pause
        if self.problem in self._told:
            return ""
        self._told.add(self.problem)
        return f"tracking: {self.tracker.name}: {self.problem}; the run goes on, and what is missed is sent later"


class _Follower:
    """The thread, and what it has to tell."""

    def __init__(self, run: Path, settings: TrackingSettings, patience: Patience) -> None:
        self._run, self._patience = run, patience
        self._places = [_Place(tracker) for tracker in make_trackers(settings, run, patience.call)]
        self._notices: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._ended, self._given_up = threading.Event(), threading.Event()
        self._taken = ""
        # A daemon: a call that hangs does not keep the program from exiting.
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def start(self) -> None:
        """Begin; a second call does nothing."""
        if self._thread.ident is None:
            self._thread.start()

    def end(self) -> None:
        """Let it send the rest, and wait for that as long as patience lasts."""
        self._ended.set()
        if self._thread.ident is None:
            for place in self._places:
                place.tracker.close()
            return
        try:
            self._thread.join(self._patience.upload)
        finally:
            self._given_up.set()
            if self._taken or self._thread.is_alive() or any(place.problem for place in self._places):
                later = f"fedvox-server track {self._run}"
                self._notices.put(f"tracking: not everything was sent; to send it later: {later}")

    def tell(self, emit: EventSink) -> None:
        """Emit the notices so far."""
        with suppress(queue.Empty):
            while True:
                emit(Notice(self._notices.get_nowait()))

    def _work(self) -> None:
        with ExitStack() as stack:
            for place in self._places:
                stack.callback(place.tracker.close)
            locked = False
            while not self._ended.wait(self._patience.look):
                locked = locked or self._lock(stack)
                if locked:
                    self._attempt(self._places, ended=False)
            if locked or self._lock(stack):
                self._finish()

    def _finish(self) -> None:
        """Send the rest, again and again until it is sent or patience is over."""
        end = time.monotonic() + self._patience.end
        left = self._attempt(self._places, ended=True)
        while left and time.monotonic() < end and not self._given_up.wait(self._patience.look):
            left = self._attempt(left, ended=True)

    def _attempt(self, places: Sequence[_Place], ended: bool) -> list[_Place]:
        """Return the places where it failed."""
        for place in places:
            if notice := place.attempt(ended, self._patience):
                self._notices.put(notice)
        return [place for place in places if place.problem]

    def _lock(self, stack: ExitStack) -> bool:
        """Return whether the run has begun, and nobody else tracks it."""
        if not (self._run / STATE_FILE).is_file():
            return False
        try:
            stack.enter_context(_only_tracker(self._run))
        except FedvoxError as error:
            if not self._taken:
                self._taken = str(error)
                self._notices.put(f"tracking: {error}")
            return False
        self._taken = ""
        return True


def _only_tracker(run: Path) -> FileLock:
    return lock_for_one(
        run / TRACKING_LOCK, FedvoxError(f"{run}: is tracked by another process already; stop that one")
    )
