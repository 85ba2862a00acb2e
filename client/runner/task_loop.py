"""Takes tasks from the shared folder, works on one at a time, and writes the answers back.

An answer is released in an order that lets a runner resume after a crash at any point: the update is written to the
outbox, then the answer to the journal and to the audit log, and last a rename makes it appear in the outbox.
"""

from __future__ import annotations

import logging
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import FrameType

from client.consent.guard import HeldBackError, TaskGuard
from client.consent.policy import PolicyError
from client.runner.app_call import App, ask, failure, kind_of
from client.runner.memory import return_freed_memory
from client.runner.progress import RunnerStatus, SupersededError, TaskProgress
from client.runner.task_journal import Record, TaskJournal
from client.shared_folder import SharedFolder, reply_content
from common.errors import DamagedFileError, FedvoxError, ProtocolError
from common.protocol.codec import MAX_MESSAGE_BYTES, Answer, Question, unpack_answer, unpack_question
from common.protocol.messages import ErrorCode, Failure, Hello, Result, SiteInfo, Task
from common.system.files import OWN_FILE, to_appear
from common.weights.digest import is_sha256
from common.weights.store import FileStore, MissingWeightsError

log = logging.getLogger("fedvox.runner")

SHORT_PAUSE_SECONDS, LONG_PAUSE_SECONDS = 0.02, 0.1
IDLE_SECONDS, IDLE_FOR_LONG_SECONDS = 1.0, 60.0
BUSY_PAUSE_SECONDS = 0.05
LOOK_SECONDS = 5.0
"""The inbox is read this often even if it seems unchanged."""
SETTLED_SECONDS = 1.0
"""A folder that changed more recently is read again: two changes within one clock tick look like one."""
RETRY_SECONDS = 3.0
_LEFT_BY_A_CRASH = re.compile(r"\.([0-9a-f]{16}|[0-9a-f]{32}\.reply\.[0-9a-f]{12})\.part")


@dataclass(frozen=True)
class _Asked:
    """A message from the server: task name, text as received, decoded question (None if invalid)."""

    name: str
    text: str
    question: Question | None

    @property
    def kind(self) -> str:
        return kind_of(self.question) if self.question is not None else "unknown"


@dataclass(frozen=True)
class _Job:
    """Work on a message in a thread; ``is_replay``: its answer is in the journal already."""

    asked: _Asked
    answer: Future[str]
    is_replay: bool = False


class TaskLoop:
    """Serves one shared folder. Create it in the main thread: it handles SIGTERM and SIGINT, which end it.

    One thread works on tasks. Another describes the site and repeats earlier answers, even during training.

    Parameters
    ----------
    folder
        Folder shared with the courier; held by this process.
    journal
        The site's task journal.
    app
        Answers messages.
    guard
        Checks an answer before it is repeated, and records what leaves.
    progress
        The observer of the site that ``app`` opens.
    status
        Status file of this runner.
    """

    def __init__(
        self,
        folder: SharedFolder,
        journal: TaskJournal,
        app: App,
        guard: TaskGuard,
        progress: TaskProgress,
        status: RunnerStatus,
    ) -> None:
        self._folder = folder
        self._outbox = FileStore(folder.outbox)
        self._journal = journal
        self._app = app
        self._guard = guard
        self._progress = progress
        self._status = status
        self._worker = ThreadPoolExecutor(1, "work")
        self._desk = ThreadPoolExecutor(1, "desk")
        self._work: _Job | None = None
        self._talk: _Job | None = None
        self._held: dict[str, tuple[_Job, str]] = {}
        self._retry_at = 0.0
        self._looked_at, self._seen, self._busy_at = 0.0, -1, time.monotonic()
        self._stopping, self._is_lean = False, False
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)

    def serve(self, prepare: Callable[[], None]) -> None:
        """Run ``prepare``, then task after task until SIGTERM, which interrupts the current task.

        Parameters
        ----------
        prepare
            Runs in the worker thread; an exception ends the runner.
        """
        self._clean()
        preparing = self._worker.submit(prepare)
        while not self._stopping and not preparing.done():
            wait([preparing], BUSY_PAUSE_SECONDS)
        if not self._stopping:
            preparing.result()
        while not self._stopping:
            self._collect()
            if self._may_have_changed():
                self._look()
            self._status.state("working" if self._work is not None else "waiting")
            self._pause()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._stopping = True

    def _clean(self) -> None:
        """Remove files that a killed runner left half-written."""
        self._progress.end()
        for file in self._folder.outbox.iterdir():
            if _LEFT_BY_A_CRASH.fullmatch(file.name):
                file.unlink(missing_ok=True)

    def _pause(self) -> None:
        answers = [job.answer for job in (self._work, self._talk) if job is not None]
        if answers:
            self._busy_at, self._is_lean = time.monotonic(), False
            wait(answers, BUSY_PAUSE_SECONDS, FIRST_COMPLETED)
        else:
            idle = time.monotonic() - self._busy_at
            if idle > IDLE_SECONDS and not self._is_lean:
                return_freed_memory()
                self._is_lean = True
            time.sleep(SHORT_PAUSE_SECONDS if idle < IDLE_FOR_LONG_SECONDS else LONG_PAUSE_SECONDS)

    def _may_have_changed(self) -> bool:
        """Return whether the inbox may have changed, at almost no cost."""
        try:
            changed = self._folder.inbox.stat().st_mtime_ns
        except OSError:
            changed = -1  # reading the inbox will report the problem
        now = time.monotonic()
        is_new = changed != self._seen or abs(time.time_ns() - changed) < SETTLED_SECONDS * 1e9
        if is_new or now - self._looked_at >= LOOK_SECONDS:
            self._seen, self._looked_at = changed, now
            return True
        return False

    def _look_again(self) -> None:
        self._seen = -1

    # Incoming tasks

    def _look(self) -> None:
        """Begin the tasks in the inbox that can begin."""
        answered = set(self._folder.replies()) | set(self._held)
        answered |= {job.asked.name for job in (self._work, self._talk) if job is not None}
        tasks = []
        for name in self._folder.tasks():
            asked = self._read(name) if name not in answered else None
            if asked is None:
                continue
            if isinstance(asked.question, Task):
                record = self._journal.find(name)
                if record is not None and record.is_done:
                    self._say_again(asked, record)
                else:
                    tasks.append(asked)
            elif isinstance(asked.question, Hello):
                self._tell(asked)
            else:
                self._fail(asked, ErrorCode.BAD_TASK, ProtocolError.__name__)
        if tasks:
            self._choose(tasks)

    def _read(self, name: str) -> _Asked | None:
        try:
            with self._folder.task(name).open("rb") as file:
                text = file.read(MAX_MESSAGE_BYTES + 1).decode(errors="replace")
        except FileNotFoundError:
            return None  # the courier has taken it back
        except OSError as error:
            log.error("%s: cannot be read: %s; restore its rights", self._folder.task(name), error.strerror)
            return None
        try:
            question = unpack_question(text)
            if isinstance(question, Task) and question.name != name:
                raise ProtocolError("the file is named after another task")
        except ProtocolError as error:
            log.error("%s: %s", self._folder.task(name), error)
            return _Asked(name, text, None)
        return _Asked(name, text, question)

    def _choose(self, tasks: list[_Asked]) -> None:
        """Begin the newest task; the server waits for no other."""
        newest = tasks[-1]
        for asked in tasks:
            if _is_older(newest, asked):
                newest = asked
        for asked in tasks:
            if asked is not newest:
                self._fail(asked, ErrorCode.TASK_LOST, SupersededError.__name__)
        if self._work is None:
            self._begin(newest)
        elif _is_older(newest, self._work.asked):
            self._fail(newest, ErrorCode.TASK_LOST, SupersededError.__name__)
        else:
            self._progress.cancel()

    def _begin(self, asked: _Asked) -> None:
        assert asked.question is not None  # noqa: S101 -- _look has answered invalid messages
        try:
            self._tidy(asked.name)
            self._distrust_older_record(asked)
            self._journal.begin(asked.name)
        except FedvoxError as error:
            log.error("%s", error)
            self._fail(asked, ErrorCode.INTERNAL, type(error).__name__)
            return
        log.info("task %s: %s", asked.name[:8], asked.kind)
        self._progress.begin(asked.name)
        answer = self._worker.submit(ask, self._app, asked.name, asked.question, asked.text)
        self._work = _Job(asked, answer)

    def _distrust_older_record(self, asked: _Asked) -> None:
        """Put aside a record without an answer if the audit log knows that the answer has left.

        What its attempt paid covers that answer; another one must be paid for.

        Raises
        ------
        FedvoxError
            The audit log cannot be read, or the record not be put aside.
        """
        record, task = self._journal.find(asked.name), asked.question
        if record is not None and isinstance(task, Task) and self._guard.has_sent(task, record.attempt):
            self._journal.distrust(asked.name)

    def _tidy(self, name: str) -> None:
        """Remove updates that are no longer needed, and old records, before a task begins.

        Raises
        ------
        OutputError
            An update cannot be removed.
        """
        needed = {update for reply in self._folder.replies() if (update := self._update_in(reply))}
        tasks = [task for task in self._folder.tasks() if task != name]
        needed |= self._journal.updates(tasks)
        for file in self._folder.outbox.iterdir():
            if is_sha256(file.name) and file.name not in needed:
                self._outbox.drop(file.name)
        self._journal.trim([*tasks, name])

    def _update_in(self, reply: str) -> str | None:
        try:
            answer = unpack_answer(self._folder.read_reply(reply))
        except (DamagedFileError, ProtocolError):
            return None
        return answer.update if isinstance(answer, Result) else None

    def _tell(self, asked: _Asked) -> None:
        """Have the app describe this site, as soon as the second thread is free."""
        if self._talk is None and asked.question is not None:
            answer = self._desk.submit(ask, self._app, asked.name, asked.question, asked.text)
            self._talk = _Job(asked, answer)

    def _say_again(self, asked: _Asked, record: Record) -> None:
        if self._talk is None:
            self._talk = _Job(asked, self._desk.submit(self._repeated, asked, record), is_replay=True)

    def _repeated(self, asked: _Asked, record: Record) -> str:
        """Return the answer in the journal, if the site still takes part and the update is intact."""
        assert record.reply is not None and asked.question is not None  # noqa: S101 -- _look has checked both
        try:
            self._guard.check(asked.question.digest)
            unpack_answer(record.reply)  # an earlier version may have written it
            if record.update is not None:
                self._outbox.verified(record.update)
        except PolicyError as error:
            return failure(error.code, type(error).__name__)
        except FedvoxError as error:
            log.error("task %s is done, but its answer cannot be sent again: %s", asked.name[:8], error)
            return failure(ErrorCode.TASK_LOST, type(error).__name__)
        log.info("task %s: repeating its answer", asked.name[:8])
        return record.reply

    # Outgoing answers

    def _collect(self) -> None:
        """Release the answers that are ready."""
        if self._work is not None and self._work.answer.done():
            job, self._work = self._work, None
            self._progress.end()
            self._release(job, job.answer.result())
        if self._talk is not None and self._talk.answer.done():
            job, self._talk = self._talk, None
            self._release(job, job.answer.result())
        if self._held and time.monotonic() >= self._retry_at:
            for job, answer in list(self._held.values()):
                self._release(job, answer)

    def _fail(self, asked: _Asked, code: ErrorCode, reason: str) -> None:
        """Answer a task with a failure instead of beginning it."""
        answer: Future[str] = Future()
        answer.set_result(failure(code, reason))
        self._release(_Job(asked, answer), answer.result())

    def _release(self, job: _Job, answer: str) -> None:
        """Release an answer; if it cannot be recorded, keep it and retry."""
        self._look_again()
        try:
            try:
                self._write(job, answer)
            except HeldBackError as error:
                log.error("%s", error)
                self._write(job, failure(error.code, PolicyError.__name__))
        except FedvoxError as error:
            if job.asked.name not in self._held:
                log.error("task %s is not answered yet: %s", job.asked.name[:8], error)
            self._held[job.asked.name] = (job, answer)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._status.say(problem=str(error))
            return
        if self._held.pop(job.asked.name, None) is not None and not self._held:
            self._status.say(problem=None)

    def _write(self, job: _Job, answer: str) -> None:
        """Write an answer to the journal, the audit log and the outbox.

        Raises
        ------
        FedvoxError
            One of them cannot be written.
        """
        asked, content = job.asked, unpack_answer(answer)
        update = content.update if isinstance(content, Result) else None
        if isinstance(content, Result) and not job.is_replay:
            self._journal.finish(asked.name, answer, update)
        if not self._folder.task(asked.name).exists():
            log.warning("task %s: the server no longer waits for the answer", asked.name[:8])
            return
        self._tell_changed_patients(asked, content)
        size = self._size_of(update) if update is not None else 0
        content_of_file = reply_content(asked.name, answer)
        with to_appear(self._folder.reply(asked.name), content_of_file, durable=False, remedy=OWN_FILE):
            self._guard.record(asked.kind, asked.text, answer, size)
            if isinstance(content, Failure) and not job.is_replay:
                self._journal.forget(asked.name)
        log.info("task %s: answered%s", asked.name[:8], f" ({content.reason})" if isinstance(content, Failure) else "")

    def _tell_changed_patients(self, asked: _Asked, content: Answer) -> None:
        """Tell the hospital what may keep the server from asking; once it asks for a result, that is over."""
        if asked.question is None or isinstance(content, Failure):
            return
        notice = self._guard.changed_patients(asked.question.run, content) if isinstance(content, SiteInfo) else None
        if notice is not None:
            log.warning("%s", notice)
        self._status.say(notice=notice)

    def _size_of(self, update: str) -> int:
        try:
            return self._outbox.path(update).stat().st_size
        except OSError as error:
            raise MissingWeightsError(f"{self._outbox.path(update)}: cannot be read: {error.strerror}") from None


def _is_older(one: _Asked, other: _Asked) -> bool:
    """Return whether a task belongs to an earlier round than another of the same run."""
    first, second = one.question, other.question
    return (
        isinstance(first, Task) and isinstance(second, Task) and first.run == second.run and first.round < second.round
    )
