"""Signs of life from a site that trains for long.

Flower lets a site speak only in reply, and hands it one message at a time. So the work runs in a thread of its own:
what is not done after some seconds is answered with how many steps are, and the server asks on with a wait message.
The training never stops for it. It also makes a lost task show at once: a runner that was restarted has no work under
way and says so, and one that hangs reports no new step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from flwr.app import Context, Error, Message, MessageType

from client.app import Guard, Observer
from common.errors import FedvoxError, ProtocolError
from common.protocol import WAIT, ErrorCode, Progress, pack_progress, unpack_wait

WAIT_TYPE = f"{MessageType.QUERY}.{WAIT}"
App = Callable[[Message, Context], Message]


class CancelledError(FedvoxError):
    """The server does not want this work any more."""


class StepCounter:
    """Counts a site's steps; to be given to its ``Site`` as the observer.

    Args:
        following: another observer, which sees everything too.
    """

    def __init__(self, following: Observer | None = None) -> None:
        self._following = following
        self.step = 0
        self.steps = 0
        self.cancelled = False

    def site_started(self, round: int, site: str, steps: int) -> None:
        """Begins to count."""
        self.step, self.steps = 0, steps
        if self._following is not None:
            self._following.site_started(round, site, steps)

    def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
        """Counts; ends the training here if it was cancelled.

        Raises:
            CancelledError: it was.
        """
        if self.cancelled:
            raise CancelledError("the work was cancelled")
        self.step = step
        if self._following is not None:
            self._following.site_step(round, site, step, steps, loss)


@dataclass
class _Work:
    """One task under way."""

    run: str
    round: int
    kind: str
    thread: threading.Thread | None = None
    reply: Message | None = None
    done: threading.Event = field(default_factory=threading.Event)


class PatientApp:
    """A client app that answers within ``seconds``: with its reply, or with a sign of life.

    Args:
        app: does the work; what it returns goes out as it is.
        counter: the observer of the site that ``app`` opens.
        seconds: between signs of life.
        guard: sees signs of life before they leave, as it sees all else.
    """

    def __init__(self, app: App, counter: StepCounter, seconds: float, guard: Guard | None = None) -> None:
        self._app = app
        self._counter = counter
        self._seconds = seconds
        self._guard = guard
        self._work: _Work | None = None

    def __call__(self, message: Message, context: Context) -> Message:
        """Answers one message.

        Raises:
            KeyboardInterrupt: the run was stopped; the work is cancelled.
        """
        try:
            if message.metadata.message_type == WAIT_TYPE:
                return self._go_on(message)
            if message.metadata.message_type in (MessageType.TRAIN, MessageType.EVALUATE):
                return self._begin(message, context)
        except KeyboardInterrupt:
            self.cancel()
            raise
        self.cancel()
        return self._app(message, context)

    def cancel(self) -> None:
        """Ends what is under way at its next step, and waits for that."""
        if self._work is not None and self._work.thread is not None:
            self._counter.cancelled = True
            self._work.thread.join()
        self._work = None

    def _begin(self, message: Message, context: Context) -> Message:
        run, round_number = _task_of(message)
        work = _Work(run, round_number, message.metadata.message_type)
        now = self._work
        # The server asks again for the same work after it was restarted: what is done of it counts.
        if now is None or (now.run, now.round, now.kind) != (work.run, work.round, work.kind):
            self.cancel()
            self._counter.cancelled = False
            self._counter.step = self._counter.steps = 0

            def run_app() -> None:
                try:
                    work.reply = self._app(message, context)
                finally:
                    work.done.set()

            work.thread = threading.Thread(target=run_app, daemon=True)
            self._work = work
            work.thread.start()
        return self._answer(message)

    def _go_on(self, message: Message) -> Message:
        try:
            asked = unpack_wait(message.content)
        except ProtocolError:
            return Message(Error(code=ErrorCode.BAD_TASK, reason=ProtocolError.__name__), reply_to=message)
        if self._work is None or (self._work.run, self._work.round) != asked:
            return Message(Error(code=ErrorCode.TASK_LOST, reason="LookupError"), reply_to=message)
        return self._answer(message)

    def _answer(self, message: Message) -> Message:
        work = self._work
        assert work is not None  # noqa: S101 -- both callers have just made or found it
        if work.done.wait(self._seconds):
            self._work = None
            return _as_reply_to(message, work.reply)
        progress = Progress(work.run, work.round, self._counter.step, max(self._counter.step, self._counter.steps))
        reply = Message(pack_progress(progress), reply_to=message)
        try:
            if self._guard is not None:
                self._guard.record("progress", message, reply)
        except Exception as error:  # what cannot be written down does not leave
            return Message(Error(code=ErrorCode.INTERNAL, reason=type(error).__name__), reply_to=message)
        return reply


def _task_of(message: Message) -> tuple[str, int]:
    """Run and round; the app itself checks everything else, and these again."""
    record = message.content.config_records.get("task")
    run, round_number = (None, None) if record is None else (record.get("run"), record.get("round"))
    return run if isinstance(run, str) else "", round_number if isinstance(round_number, int) else 0


def _as_reply_to(message: Message, reply: Message | None) -> Message:
    if reply is None:
        return Message(Error(code=ErrorCode.INTERNAL, reason="SystemExit"), reply_to=message)
    if reply.has_error():
        return Message(reply.error, reply_to=message)
    return Message(reply.content, reply_to=message)
