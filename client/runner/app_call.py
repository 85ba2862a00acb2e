"""Calls the site's ClientApp as Flower would, with messages read from the shared folder."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message, MessageType, Metadata, RecordDict

from client.flower import make_message
from common.errors import FedvoxError, ProtocolError
from common.protocol.codec import HELLO, Question, from_record, pack, to_record, unpack_answer
from common.protocol.messages import ErrorCode, Failure, Hello
from common.weights.store import Content, FileStore, MissingWeightsError

log = logging.getLogger("fedvox.runner")

App = Callable[[Message, Context], Message]
_TTL_SECONDS = 10 * 365 * 86400.0


class BadWeightsError(FedvoxError):
    """The weights that a task names are missing or do not match their digest."""

    code = ErrorCode.BAD_TASK


class ReceivedWeights(FileStore):
    """The weights that the courier fetched; returns only files whose SHA-256 matches their name.

    Parameters
    ----------
    folder
        The inbox.
    last
        Folder that keeps the last weights that were returned, for the hospital's page; None keeps none.
    """

    def __init__(self, folder: Path, last: Path | None = None) -> None:
        super().__init__(folder)
        self._last = last

    def get(self, digest: str) -> Content:
        """Map a file after verifying all of its content.

        Raises
        ------
        BadWeightsError
            The file is missing, or its content does not match.
        """
        try:
            content = self.verified(digest)
        except MissingWeightsError as error:
            raise BadWeightsError(str(error)) from None
        if self._last is not None:
            _keep(self.path(digest), self._last)
        return content


def _keep(file: Path, folder: Path) -> None:
    """Let a file be the only one in a folder, by a second name: that costs no writing, and no round depends on it."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.link(file, folder / file.name)
        for other in folder.iterdir():
            if other.name != file.name:
                other.unlink()
    except OSError as error:
        log.info("%s: does not keep the model for the page: %s", folder, error.strerror)


def kind_of(question: Question) -> str:
    """Return the kind of work that a message asks for."""
    if isinstance(question, Hello):
        return HELLO
    return MessageType.TRAIN if question.train else MessageType.EVALUATE


def ask(app: App, name: str, question: Question, text: str) -> str:
    """Return the app's answer to a message; any exception becomes a failure answer.

    Parameters
    ----------
    app
        The site's ClientApp.
    name
        Name of the task.
    question
        The server's message, decoded.
    text
        The same message, as received.
    """
    kind = kind_of(question)
    metadata = Metadata(
        run_id=0,
        message_id=name,
        src_node_id=0,
        dst_node_id=0,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=_TTL_SECONDS,
        message_type=f"{MessageType.QUERY}.{HELLO}" if kind == HELLO else kind,
    )
    context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
    try:
        reply = app(make_message(metadata, content=to_record(text)), context)
        answer = from_record(reply.content) if reply.has_content() else _failure_of(reply)
        unpack_answer(answer)
    except Exception as error:  # whatever happens, only a code and a class name leave
        log.exception("the task failed")
        return failure(ErrorCode.INTERNAL, type(error).__name__)
    return answer


def failure(code: ErrorCode, reason: str) -> str:
    """Encode a failure answer."""
    return pack(Failure(code, reason))


def _failure_of(reply: Message) -> str:
    try:
        return failure(ErrorCode(reply.error.code), reply.error.reason or "")
    except ValueError:
        raise ProtocolError(f"the app failed with the unknown code {reply.error.code}") from None
