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
from client.node.folders import STATUS_FILE, NodeFolders, names_in
from client.node.incoming import Incoming
from client.node.outbox import Deliver, Outbox
from client.node.sending import delivery
from client.node.traces import forget_old
from client.pacs.receiver import Receiver, ReceiverSettings
from client.state_folder import write_json
from common.errors import ConfigError, OutputError
from common.models.bundle_file import DESCRIPTION_FILE
from common.system.logs import log_to_stderr
from common.system.supervisor import Child, Supervisor

log = logging.getLogger("fedvox.node")

_POLL_SECONDS = 0.2
_STATUS_SECONDS = 2.0
_CLEANING_SECONDS = 3600.0
_DAY_SECONDS = 86_400.0
_JUMP_SECONDS = 60.0


def listen(node: Node, config_file: Path, model: Path) -> NoReturn:
    """Run the node until SIGTERM or Ctrl-C.

    Raises
    ------
    ConfigError
        The address cannot be listened on, or a file that the configuration names cannot be used.
    FedvoxError
        Another node uses the state folder.
    GaveUpError
        The process that segments cannot start.
    """
    log_to_stderr(logging.INFO)
    logging.getLogger("fedvox").setLevel(logging.INFO)
    threading.excepthook = _one_line
    folders, config = NodeFolders(node.state), node.config
    _ = node.data_terms  # refused now, and not by the other process alone
    if not (model / DESCRIPTION_FILE).is_file():
        raise ConfigError(f"--model {model}: has no {DESCRIPTION_FILE}; give the folder of a model")
    with folders.locked():
        incoming = Incoming(
            folders, config.settle_seconds, config.limits.waiting_studies, int(config.limits.free_gigabytes * 10**9)
        )
        senders = [
            _Sender(Outbox(folders, one.name, config.retry.patience), delivery(node, one)) for one in node.destinations
        ]
        supervisor = Supervisor([_segmenter(config_file, model, folders)], _say)
        receiver = _receiver(node.receiver, incoming)
        supervisor.start()
        try:
            with receiver:
                log.info("listening as %s on %s port %d", config.ae_title, config.address, receiver.port)
                for sender in senders:
                    sender.start()
                _Upkeep(node, folders, incoming, supervisor).run()
        except KeyboardInterrupt:
            log.info("stopping")
        finally:
            supervisor.stop()
    # Without waiting for threads of pynetdicom that wait for a peer: what they do is done again after the next start.
    logging.shutdown()
    os._exit(0)


def _receiver(settings: ReceiverSettings, incoming: Incoming) -> Receiver:
    try:
        return Receiver(settings, incoming.keep)
    except OSError as error:
        where = f"{settings.address} port {settings.port}"
        raise ConfigError(f"cannot listen on {where}: {error.strerror or error}; change address or port") from None


def _segmenter(config_file: Path, model: Path, folders: NodeFolders) -> Child:
    command = [sys.executable, "-m", "client.node", str(config_file.absolute()), str(model.absolute())]
    return Child("segmenter", command, dict(os.environ), folders.logs / "segmenter.log", gives_up=True)


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

    def __init__(self, node: Node, folders: NodeFolders, incoming: Incoming, supervisor: Supervisor) -> None:
        self._node = node
        self._folders = folders
        self._incoming = incoming
        self._supervisor = supervisor

    def run(self) -> NoReturn:
        """Go on until an exception, such as that of SIGTERM."""
        shown, cleaned, clock = -_CLEANING_SECONDS, time.monotonic(), _clock_begin()
        while True:
            self._supervisor.poll()
            now = time.monotonic()
            try:
                self._incoming.settle()
                if now - shown >= _STATUS_SECONDS:
                    shown = now
                    write_json(self._folders.root / STATUS_FILE, self._supervisor.states())
                if now - cleaned >= _CLEANING_SECONDS:
                    cleaned, before, clock = now, clock, _clock_begin()
                    if abs(clock - before) < _JUMP_SECONDS:  # else what is new may seem to be old
                        remove_old(self._folders, _DAY_SECONDS * self._node.config.keep_days)
            except (OSError, OutputError):  # the disk is full: what is on it is safe
                log.exception("upkeep failed")
            time.sleep(_POLL_SECONDS)


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
    for study in names_in(folders.done):
        path = folders.done / study
        if path.stat().st_mtime < oldest:
            folders.discard(path)
    for destination in names_in(folders.sent):
        for name in names_in(folders.sent / destination):
            path = folders.sent / destination / name
            if path.stat().st_mtime < oldest:
                path.unlink()
    forget_old(folders, oldest)
