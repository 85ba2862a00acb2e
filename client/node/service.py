"""The process that listens and sends, and keeps the one that segments alive."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from client.node.config import Node
from client.node.folders import (
    SEGMENTING_FILE,
    STATUS_FILE,
    NodeFolders,
    destinations_in,
    names_in,
    studies_in,
    write_note,
)
from client.node.incoming import Incoming
from client.node.outbox import Deliver, Outbox, set_aside_unserved
from client.node.sending import delivery
from client.node.traces import forget_old
from client.pacs.receiver import Receiver, ReceiverSettings
from client.state_folder import write_json
from common.errors import ConfigError, FedvoxError
from common.formatting import visible
from common.models.bundle_file import DESCRIPTION_FILE
from common.system.logs import log_to_stderr
from common.system.supervisor import Child, Supervisor

log = logging.getLogger("fedvox.node")

_POLL_SECONDS = 0.2
_STATUS_SECONDS = 2.0
_CLEANING_SECONDS = 3600.0
_PAUSE_SECONDS = 30.0
_SILENT_SECONDS = 600.0
"""Until the same error is logged again."""
_DAY_SECONDS = 86_400.0
_JUMP_SECONDS = 60.0


def listen(node: Node, model: Path) -> NoReturn:
    """Run the node until SIGTERM or Ctrl-C, or until it cannot hear any more.

    Raises
    ------
    ConfigError
        A file that the configuration names cannot be used.
    FedvoxError
        Another node uses the state folder, or the address cannot be listened on, now.
    """
    log_to_stderr(logging.INFO)
    logging.getLogger("fedvox").setLevel(logging.INFO)
    threading.excepthook = _one_line
    folders, config = NodeFolders(node.state), node.config
    # Whatever is wrong with a file is said before anything is written.
    told, settings = node.segmenting, node.receiver
    deliveries = {one.name: delivery(node, one) for one in node.destinations}
    if not (model / DESCRIPTION_FILE).is_file():
        raise ConfigError(f"--model {model}: has no {DESCRIPTION_FILE}; give the folder of a model")
    with folders.locked():
        incoming = Incoming(
            folders, config.settle_seconds, config.limits.waiting_studies, int(config.limits.free_gigabytes * 10**9)
        )
        write_note(folders.root / SEGMENTING_FILE, told.model_dump(mode="json"))
        set_aside_unserved(folders, deliveries)
        senders = [
            _Sender(Outbox(folders, name, config.retry.patience), deliver) for name, deliver in deliveries.items()
        ]
        supervisor = Supervisor([_segmenter(model, folders)], _say)
        receiver = _receiver(settings, incoming)
        status = 0
        if strays := folders.strays():
            log.warning("no study, left alone: %s", visible(", ".join(strays[:10])))
        try:
            with receiver:
                log.info("listening as %s on %s port %d", config.ae_title, config.address, receiver.port)
                for sender in senders:
                    sender.start()
                _Upkeep(config.keep_days, folders, incoming, supervisor).run(receiver)
        except KeyboardInterrupt:
            log.info("stopping")
        except FedvoxError as error:
            log.error("%s", error)
            status = error.exit_status
        finally:
            supervisor.stop()
    # Without waiting for threads of pynetdicom that wait for a peer: what they do is done again after the next start.
    logging.shutdown()
    os._exit(status)


def _receiver(settings: ReceiverSettings, incoming: Incoming) -> Receiver:
    try:
        return Receiver(settings, incoming.keep)
    except OSError as error:
        where = f"{settings.address} port {settings.port}"
        # No ConfigError: after the start of a machine, its address may come later than this process.
        raise FedvoxError(f"cannot listen on {where}: {error.strerror or error}; change address or port") from None


def _segmenter(model: Path, folders: NodeFolders) -> Child:
    command = [sys.executable, "-m", "client.node", str(folders.root.absolute()), str(model.absolute())]
    return Child("segmenter", command, dict(os.environ), folders.logs / "segmenter.log")


def _one_line(thread: threading.ExceptHookArgs) -> None:
    """Log what ended a thread: with pynetdicom, a message that is none, and with it that association alone."""
    log.warning("an association ended with %s", thread.exc_type.__name__)


def _say(name: str, event: str) -> None:
    log.info("%s: %s", name, event)


class _Sender(threading.Thread):
    """Sends what is in an outbox, for as long as the process lives."""

    def __init__(self, outbox: Outbox, deliver: Deliver) -> None:
        super().__init__(name="sender", daemon=True)
        self._outbox = outbox
        self._deliver = deliver

    def run(self) -> None:
        while True:
            try:
                self._outbox.deliver(self._deliver)
            except Exception:  # a full disk, or a bug: neither must end it
                log.exception("sending failed")
            time.sleep(1)


class _Upkeep:
    """What has to be done again and again, by the main thread."""

    def __init__(self, keep_days: float, folders: NodeFolders, incoming: Incoming, supervisor: Supervisor) -> None:
        self._keep_days = keep_days
        self._folders = folders
        self._incoming = incoming
        self._supervisor = supervisor
        self._poll_at = 0.0

    def run(self, receiver: Receiver) -> NoReturn:
        """Go on until an exception, such as that of SIGTERM.

        Raises
        ------
        FedvoxError
            The receiver hears nobody any more.
        """
        shown, cleaned, clock = -_CLEANING_SECONDS, time.monotonic(), _clock_begin()
        told, told_at = "", 0.0
        while True:
            if not receiver.is_listening:
                raise FedvoxError("no longer listening: see the lines above; the node must be started again")
            now = time.monotonic()
            try:
                self._incoming.settle()
                if now >= self._poll_at:
                    self._poll()
                if now - shown >= _STATUS_SECONDS:
                    shown = now
                    write_json(self._folders.root / STATUS_FILE, self._supervisor.states())
                if now - cleaned >= _CLEANING_SECONDS:
                    cleaned, before, clock = now, clock, _clock_begin()
                    if abs(clock - before) < _JUMP_SECONDS:  # else what is new may seem to be old
                        remove_old(self._folders, _DAY_SECONDS * self._keep_days)
            except (OSError, FedvoxError) as error:  # the disk is full: what is on it is safe
                if str(error) != told or now - told_at > _SILENT_SECONDS:
                    told, told_at = str(error), now
                    log.error("upkeep failed, and is tried again: %s", error)
            time.sleep(_POLL_SECONDS)

    def _poll(self) -> None:
        """Look after the process that segments. Whatever keeps it from starting, studies go on coming in."""
        try:
            self._supervisor.poll()
        except FedvoxError:
            self._poll_at = time.monotonic() + _PAUSE_SECONDS
            raise


def _clock_begin() -> float:
    """Return when the machine started, by the clock: it changes only with a clock that is set."""
    return time.time() - time.monotonic()


def remove_old(folders: NodeFolders, seconds: float) -> None:
    """Remove studies that were done, and results that were sent, so long ago.

    Raises
    ------
    OSError
        The disk fails.
    """
    oldest = time.time() - seconds
    for study in studies_in(folders.done):
        path = folders.done / study
        if path.stat().st_mtime < oldest:
            folders.discard(path)
    for destination in destinations_in(folders.sent):
        for name in names_in(folders.sent / destination):
            path = folders.sent / destination / name
            if path.stat().st_mtime < oldest:
                path.unlink()
    forget_old(folders, oldest)
