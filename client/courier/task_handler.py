"""Handles one task, from the message that asks for it until its reply is delivered and its files are removed.

Every step can be repeated: after a kill, the courier starts at the first step and finds what was done.
"""

from __future__ import annotations

import hashlib
import http
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from client.courier.errors import GivenUpError, RefusedError
from client.courier.fleet_client import FleetNode
from client.courier.flower_messages import PackedReply, pack_reply
from client.courier.mailbox import HeldTask, Mailbox
from client.courier.retry import Retries
from client.courier.transfers.download import part_name
from client.courier.transfers.files import file_digest
from client.courier.transfers.transfers import Transfers
from client.courier.transfers.upload import verified
from client.shared_folder import SharedFolder, put_file
from common.audit import AuditLog
from common.errors import DamagedFileError, ProtocolError
from common.protocol.codec import MAX_MESSAGE_BYTES, Answer, pack, unpack_answer
from common.protocol.messages import ErrorCode, Failure, Hello, Result, SiteInfo, Task
from common.system.files import cannot_write
from common.system.state_file import put_aside

LOOK_SECONDS = 0.02
"""Interval between two checks for a reply."""
CHECK_EVERY_LOOKS = 100
"""Number of reply checks between two checks of the task file."""
ASK_EVERY_LOOKS = 1500
REFUSED_UPLOADS = frozenset({409, 413, 422})
log = logging.getLogger("fedvox.courier")
T = TypeVar("T")


@dataclass(frozen=True)
class TaskContext:
    """What all tasks share."""

    shared: SharedFolder
    mailbox: Mailbox
    transfers: Transfers
    node: FleetNode
    audit: AuditLog
    retries: Retries
    downloads: dict[str, threading.Lock] = field(default_factory=dict)

    def download_lock(self, digest: str) -> threading.Lock:
        """Return the lock held by the one task that downloads these weights."""
        with self.mailbox.lock:
            return self.downloads.setdefault(digest, threading.Lock())


class TaskHandler:
    """One task.

    Parameters
    ----------
    name
        Name of a task that the mailbox holds.
    context
        What all tasks share.
    on_end
        Called, under the mailbox's lock, when nothing of the task is left.
    ask_every
        Number of reply checks, ``LOOK_SECONDS`` apart, after which the server is asked whether it still wants a task
        that the runner has not begun.
    """

    def __init__(
        self, name: str, context: TaskContext, on_end: Callable[[], object], ask_every: int = ASK_EVERY_LOOKS
    ) -> None:
        self.name = name
        self._context = context
        self._on_end = on_end
        self._ask_every = ask_every
        self._label = f"task {name[:12]}"
        self._reply_file = context.shared.reply(name)
        self._task_file = context.shared.task(name)

    def run(self) -> None:
        """Handle the task, and again if a newer message asks for it.

        Raises
        ------
        StoppedError
            If the courier stops.
        """
        is_over = False
        while not is_over:
            held = self._context.mailbox.get(self.name)
            try:
                self._deliver(held, self._answer(held))
            except RefusedError as error:
                log.warning("%s: dropped: %s", self._label, error)
            is_over = self._until_done("clearing up", partial(self._clear_up, held.message))

    def _answer(self, held: HeldTask) -> str:
        """Return the answer to send: the runner's, or the courier's own failure if there can be none."""
        sent = self._context.mailbox.sent(self.name)
        if sent is not None:
            return sent.text
        question = held.question
        if question is None:
            log.warning("%s: the server's message cannot be read; answering with a failure", self._label)
            return pack(Failure(ErrorCode.BAD_TASK, "ProtocolError"))
        try:
            return self._read_reply(held, question)
        except GivenUpError as error:
            return self._failure_answer(error)

    def _await_reply(self, held: HeldTask, question: Hello | Task) -> None:
        looks = 0
        while not self._reply_file.exists():
            if looks % CHECK_EVERY_LOOKS == 0 and not self._is_forwarded(question):
                self._forward(held, question)
            looks += 1
            if looks % self._ask_every == 0 and not self._is_wanted(question):
                raise RefusedError("waiting for the runner", http.HTTPStatus.NOT_FOUND, "no longer wanted")
            self._context.retries.pause(LOOK_SECONDS)

    def _is_wanted(self, question: Hello | Task) -> bool:
        is_begun = self._context.shared.work().task == self.name
        return is_begun or isinstance(question, Hello) or self._context.transfers.is_given(question.model)

    def _is_forwarded(self, question: Hello | Task) -> bool:
        is_ready = not isinstance(question, Task) or (self._context.shared.inbox / question.model).exists()
        return is_ready and self._task_file.exists()

    def _forward(self, held: HeldTask, question: Hello | Task) -> None:
        """Put the task into the inbox, after its weights."""
        if isinstance(question, Task):
            log.info("%s: round %d of %d", self._label, question.round, question.rounds)
            self._fetch(question.model)
        if not self._reply_file.exists():
            content = held.text.encode()
            self._until_done("writing the task file", lambda: put_file(self._task_file, content))

    def _fetch(self, model: str) -> None:
        target = self._context.shared.inbox / model
        with self._context.download_lock(model):
            if target.exists() and not _has_digest(target, model):
                log.warning("%s: was changed or damaged; downloading it again", target)
                self._until_done("removing it", lambda: _unlink(target))
            if not target.exists():
                self._context.transfers.download(model, target)

    def _read_reply(self, held: HeldTask, question: Hello | Task) -> str:
        """Return the runner's answer, if it answers this question; a damaged file is put aside and waited for again.

        Raises
        ------
        GivenUpError
            If it does not.
        """
        while True:
            self._await_reply(held, question)
            try:
                content = self._context.shared.read_reply(self.name)
                break
            except DamagedFileError as error:
                log.warning("%s: %s", self._label, error)
                self._until_done("putting it aside", lambda: put_aside(self._reply_file))
        try:
            answer = unpack_answer(content[: MAX_MESSAGE_BYTES + 1])
            fits = isinstance(answer, Failure | (SiteInfo if isinstance(question, Hello) else Result))
            if fits:
                return content
            problem = "does not answer the question that was asked"
        except ProtocolError as error:
            problem = f"is not a valid answer ({error})"
        raise GivenUpError(
            f"{self._reply_file}: {problem}; it is not sent", Failure(ErrorCode.INTERNAL, "ReplyFileError")
        )

    def _failure_answer(self, error: GivenUpError) -> str:
        log.error("%s: %s; reporting %s to the server", self._label, error, error.failure.reason)
        return pack(error.failure)

    def _deliver(self, held: HeldTask, text: str) -> None:
        """Announce the stored reply, if any, then the same answer to the newest message.

        Raises
        ------
        RefusedError
            If the server does not know the task or the message.
        """
        sent = self._context.mailbox.sent(self.name)
        if sent is not None:
            try:
                self._announce(sent)
            except RefusedError:
                if sent.message == held.message:
                    raise
            if sent.message == held.message:
                return
        text = self._send_update(held, text, was_there=sent is not None)
        reply = pack_reply(held.header, unpack_answer(text), text)
        self._until_done("keeping the reply", lambda: self._context.mailbox.put_sent(self.name, reply))
        self._announce(reply)

    def _send_update(self, held: HeldTask, text: str, was_there: bool) -> str:
        """Record what will be sent, send the update, if any, and return the answer, which may now be a failure."""
        update = _update_of(text)
        try:
            if update is None or (was_there and self._context.transfers.is_there(self.name, update)):
                self._record("sending", held.message, text)
                return text
            with verified(self._context.shared.outbox / update, update) as file:
                self._record("sending", held.message, text, file.size)
                self._context.transfers.upload(self.name, update, file)
            return text
        except RefusedError as error:
            if error.status not in REFUSED_UPLOADS:
                raise
            failure = Failure(ErrorCode.INTERNAL, "UploadRefusedError")
            text = self._failure_answer(GivenUpError(str(error), failure))
        except GivenUpError as error:
            text = self._failure_answer(error)
        self._record("sending", held.message, text)
        return text

    def _announce(self, reply: PackedReply) -> None:
        self._until_done("announcing the reply", lambda: self._context.node.announce(reply))
        self._record("delivered", reply.message, reply.text)
        log.info("%s: answered (%s)", self._label, _kind(unpack_answer(reply.text)))

    def _record(self, event: str, message: str, text: str, update_bytes: int = 0) -> None:
        """Record in the audit log what is sent or delivered; wait until that is possible."""
        notes = {
            "task": self.name,
            "message": message,
            "kind": _kind(unpack_answer(text)),
            "update": _update_of(text),
            "update_bytes": update_bytes,
            "reply_sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
        self._until_done("writing the audit log", lambda: self._context.audit.append(event, **notes))

    def _clear_up(self, message: str) -> bool:
        """Remove all files of the task, unless a newer message asks for the same answer; return whether done."""
        mailbox, inbox = self._context.mailbox, self._context.shared.inbox
        with mailbox.lock:
            held = mailbox.get(self.name)
            if held.message != message:
                return False
            # The task first: the runner would work again on a task without a reply.
            _unlink(self._task_file)
            _unlink(self._reply_file)
            if held.model is not None and not mailbox.needs(held.model, besides=self.name):
                _unlink(inbox / held.model)
                _unlink(inbox / part_name(held.model))
            mailbox.remove(self.name)
            self._on_end()
        return True

    def _until_done(self, what: str, action: Callable[[], T]) -> T:
        return self._context.retries.until_done(f"{self._label}: {what}", action)


def _update_of(text: str) -> str | None:
    answer = unpack_answer(text)
    return answer.update if isinstance(answer, Result) else None


def _kind(answer: Answer) -> str:
    if isinstance(answer, Failure):
        return f"failure {answer.code.name} {answer.reason}"
    return "result" if isinstance(answer, Result) else "info"


def _has_digest(file: Path, digest: str) -> bool:
    try:
        with file.open("rb", buffering=0) as content:
            return file_digest(content) == digest
    except OSError:
        return False


def _unlink(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(file, error) from None
