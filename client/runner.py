"""The long-lived process that does a site's work: it serves the site's SuperNode, task after task.

Model, data and device stay warm between tasks. What is run is the client app that is installed at the site; the app
bundle that Flower sends along with a task is never unpacked. A killed runner leaves a note of its task, and the next
one goes on with it or, where the message is lost, tells the server at once.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

import httpx
from flwr.app import Context, Error, Message
from flwr.proto import message_pb2

from client.app import Guard
from client.runtime import ClaimedTask, Header, NoMessageError, TaskSource, bare_message, identity_of
from client.task_file import OpenTask, Stage, TaskFile
from common.errors import FedvoxError
from common.protocol import ErrorCode

log = logging.getLogger("fedvox.runner")

SHORTEST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 0.5
SHARE_OF_WAIT = 0.02
AWAY_PAUSE_SECONDS = 0.5
App = Callable[[Message, Context], Message]


class TaskStoppedError(KeyboardInterrupt):
    """SuperNode does not want the task any more; raised in the middle of the work, whatever that is."""


class StoppedError(SystemExit):
    """This process shall end; raised in the middle of the work, whatever that is."""


class _Interrupts:
    """Turns signals into exceptions, but only where the work can be broken off."""

    def __init__(self) -> None:
        self.stopping = False
        self._stopped = False
        self._interruptible = False
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGINT, self._on_interrupt)

    def __enter__(self) -> None:
        if self.stopping:
            raise StoppedError
        if self._stopped:
            raise TaskStoppedError
        self._interruptible = True

    def __exit__(self, *_: object) -> None:
        self._interruptible = self._stopped = False

    def stop_task(self) -> None:
        """Stops the work from another thread."""
        # To the main thread itself: a signal to another one would not wake it from a wait.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def forget(self) -> None:
        """A new task begins, to which earlier requests to stop do not apply."""
        self._stopped = False

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.stopping = True
        if self._interruptible:
            raise StoppedError

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._stopped = True
        if self._interruptible:
            raise TaskStoppedError


class Runner:
    """Serves one SuperNode. To be made in the main thread: it takes over SIGINT (stop the task) and SIGTERM (end).

    Args:
        address: host:port of SuperNode's runtime interface.
        secret: shared with SuperNode.
        file: remembers the open task.
        app: answers messages.
        guard: writes down the answers that the runner gives instead of the app.
        report: is told what this runner does: ``waiting`` (connected, no task), ``working``, ``away`` (no
            SuperNode), ``refused`` (it has another secret).
    """

    def __init__(
        self,
        address: str,
        secret: bytes,
        file: TaskFile,
        app: App,
        report: Callable[[str], None] = lambda _: None,
        guard: Guard | None = None,
    ) -> None:
        self._address = address
        self._source = TaskSource(address, secret)
        self._file = file
        self._app = app
        self._report = report
        self._guard = guard
        self._refused = False
        self._interrupts = _Interrupts()

    def serve(self) -> None:
        """Follows up what an earlier runner left, then does task after task until SIGTERM."""
        self._take_up()
        idle_since = time.monotonic()
        while not self._interrupts.stopping:
            try:
                token = self._source.acquire()
            except httpx.HTTPError as error:
                self._note_absence(error)
                self._pause(AWAY_PAUSE_SECONDS)
                continue
            if token is None:
                self._report("waiting")
                waited = time.monotonic() - idle_since
                self._pause(min(max(SHORTEST_PAUSE_SECONDS, SHARE_OF_WAIT * waited), LONGEST_PAUSE_SECONDS))
                continue
            self._report("working")
            self._file.save(OpenTask(Stage.CLAIMED, token))
            self._do(OpenTask(Stage.CLAIMED, token))
            idle_since = time.monotonic()

    def _note_absence(self, error: httpx.HTTPError) -> None:
        refused = isinstance(error, httpx.HTTPStatusError)
        if refused and not self._refused:
            log.error("%s: it was started with another secret", _describe(error))
        self._refused = refused
        self._report("refused" if refused else "away")

    def _pause(self, seconds: float) -> None:
        try:
            with self._interrupts:
                time.sleep(seconds)
        except (StoppedError, TaskStoppedError):
            return

    def _take_up(self) -> None:
        """Goes on with a task that an earlier runner left, as far as that is possible."""
        task = self._file.load()
        if task is None:
            return
        log.warning("an earlier runner left a task behind (%s)", task.stage)
        if task.stage in (Stage.CLAIMED, Stage.STARTED):
            self._do(task)
        elif task.stage is Stage.WORKING:
            self._tell_lost(task)
        else:
            # Nobody has the rest of the reply any more; SuperNode gives it up after a while.
            self._file.clear()

    def _do(self, task: OpenTask) -> None:
        """Does one task to its end, however it ends; afterwards nothing is open."""
        self._interrupts.forget()
        try:
            with ClaimedTask(self._address, task.token, self._interrupts.stop_task) as claimed:
                self._work(claimed, task)
        except TaskStoppedError:
            log.warning("the task was stopped: SuperNode does not know it any more")
        except NoMessageError:
            # Not given back: SuperNode then answers for it when the token has run out, which it otherwise would not.
            log.warning("the task has no message; SuperNode will drop it")
        except (httpx.HTTPError, FedvoxError) as error:
            # Such as an answer that could not be written down and so must not leave. SuperNode answers in our place.
            log.warning("the task was not given back: %s", _describe(error))
        except Exception:
            log.exception("the task was not given back")
        self._file.clear()

    def _work(self, claimed: ClaimedTask, task: OpenTask) -> None:
        packed = message_pb2.Context.FromString(task.context)
        if task.stage is Stage.CLAIMED:
            with self._interrupts:
                packed = claimed.start()
            task = OpenTask(Stage.STARTED, task.token, packed.SerializeToString())
            try:
                self._file.save(task)
            except OSError:
                # A full disk. SuperNode would wait for ever for whoever began a task and never fetches its message.
                claimed.header()
                raise
        context = identity_of(packed)
        with self._interrupts:
            header = claimed.header()
        task = OpenTask(
            Stage.WORKING, task.token, task.context, header.message.SerializeToString(), header.tree.SerializeToString()
        )
        self._file.save(task)
        failure = ""
        try:
            with self._interrupts:
                reply = self._answer(claimed, header, context)
        except StoppedError:
            failure = StoppedError.__name__
            reply = self._failed(ErrorCode.TASK_LOST, failure, header)
        except Exception as error:  # whatever happens, only a code and a class name leave
            log.exception("the task failed")
            failure = type(error).__name__
            reply = self._failed(ErrorCode.INTERNAL, failure, header)
        self._send(claimed, OpenTask(**vars(task) | {"stage": Stage.REPLYING}), reply, context, failure)

    def _failed(self, code: ErrorCode, reason: str, header: Header) -> Message:
        """An answer of the runner's own, written down before it leaves."""
        task = bare_message(header)
        reply = Message(Error(code=code, reason=reason), reply_to=task)
        if self._guard is not None:
            self._guard.record(task.metadata.message_type, task, reply)
        return reply

    def _answer(self, claimed: ClaimedTask, header: Header, context: Context) -> Message:
        message = claimed.message(header, context)
        log.info("task: %s, round %s", message.metadata.message_type, message.metadata.group_id)
        return self._app(message, context)

    def _send(self, claimed: ClaimedTask, task: OpenTask, reply: Message, context: Context, failure: str) -> None:
        self._file.save(task)
        claimed.reply(reply, context)
        claimed.finish(context, failure)

    def _tell_lost(self, task: OpenTask) -> None:
        """Answers a task whose message is gone, so that the server need not wait for it."""
        self._interrupts.forget()
        header = Header(message_pb2.Message.FromString(task.message), message_pb2.ObjectTree.FromString(task.tree))
        try:
            with ClaimedTask(self._address, task.token, lambda: None) as claimed:
                context = identity_of(message_pb2.Context.FromString(task.context))
                reply = self._failed(ErrorCode.TASK_LOST, "Restarted", header)
                self._send(claimed, OpenTask(**vars(task) | {"stage": Stage.REPLYING}), reply, context, "Restarted")
                log.warning("told the server that the task is lost")
        except Exception as error:
            log.warning("could not say that the task is lost: %s", _describe(error))
        self._file.clear()


def _describe(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"SuperNode refused it with status {error.response.status_code}"
    return str(error) if isinstance(error, FedvoxError) else type(error).__name__
