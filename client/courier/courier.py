"""The courier carries tasks and models to the runner, and answers and updates to the server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from client.consent.site_config import SITE_FILE, load_site_config
from client.courier.connection import Access, client_context
from client.courier.errors import LineError, RefusedError, StoppedError
from client.courier.fleet_client import HEARTBEAT_SECONDS, FleetNode
from client.courier.flower_messages import Arrival
from client.courier.heartbeat import Heartbeats, keep_node_online
from client.courier.mailbox import HeldTask, Mailbox, held_task
from client.courier.proxy import find_address, settle
from client.courier.retry import Backoff, Complaint, Retries
from client.courier.task_handler import TaskContext, TaskHandler
from client.courier.transfers.download import part_name
from client.courier.transfers.pace import Pace
from client.courier.transfers.transfers import Transfers
from client.shared_folder import REPLY, TASK, SharedFolder
from client.state_folder import StateFolder
from common.audit import AuditError, AuditLog
from common.certificates import AUTHORITY_FILE, site_identity
from common.config.federation import load_federation
from common.config.kit import check_kit_files, read_kit
from common.errors import ConfigError, FedvoxError, OutputError, ProtocolError
from common.protocol.codec import MAX_TASKS, is_task_name
from common.system.files import cannot_write
from common.system.state_file import DAMAGED
from common.weights.digest import is_sha256

AUDIT_FILE = "courier-audit.jsonl"
MAILBOX_FOLDER = "courier"
BEGUN_FILE = "log-begun"
"""In the mailbox's folder: says that there is a log, also when the log is removed together with its head."""
SIGN_OFF_SECONDS = 1.0
LOOK_AROUND_SECONDS = 1.0
INCOMPLETE_PATIENCE_SECONDS = 10.0
"""How long to wait for message objects that were announced but not yet stored: the server may have been killed."""
TOO_MANY_REQUESTS = 429
log = logging.getLogger("fedvox.courier")


class Courier:
    """One site's courier.

    Parameters
    ----------
    kit
        The site's kit.
    state
        The courier's state folder; holds ``site.yaml`` if the hospital limits transfers.
    shared
        Folder shared by courier and runner.

    Raises
    ------
    FedvoxError
        If the kit, the site file, a folder or a proxy variable cannot be used.
    """

    def __init__(self, kit: Path, state: Path, shared: Path) -> None:
        self._stop = threading.Event()
        self._failed = ""
        folder = StateFolder(state)
        folder.make()
        folder.contact.unlink(missing_ok=True)  # left by an earlier process; its presence would mean "connected"
        self.shared = SharedFolder(shared)
        self.shared.make()
        self.shared.probe()
        self._access, heartbeat_seconds = _open_kit(kit, folder.contact)
        retries = Retries(self._stop)
        pace = Pace(load_site_config(state / SITE_FILE).network, self._stop)
        mailbox = Mailbox(state / MAILBOX_FOLDER, lambda: self._heartbeats.hurry())
        self._heartbeats = Heartbeats(self._access, self.shared, mailbox.names, heartbeat_seconds, self._stop)
        self._node = FleetNode(self._access, mailbox.node_file)
        transfers = Transfers(self._access, pace, retries)
        audit = open_log(state)  # a damaged one is named now, not when an answer is ready
        self._context = TaskContext(self.shared, mailbox, transfers, self._node, audit, retries)
        self._handlers: dict[str, TaskHandler] = {}
        self._unknown: set[str] = set()

    def run(self) -> None:
        """Work until ``KeyboardInterrupt`` (which SIGTERM raises), then sign off.

        Raises
        ------
        SharedFolderError
            If another courier uses the shared folder.
        FedvoxError
            If one of its threads has failed for good.
        """
        with self.shared.held_by("courier"):
            self._remove_orphans()
            try:
                self._start("heartbeats", self._heartbeats.run)
                self._start("messages", self._receive_messages)
                while not self._stop.wait(LOOK_AROUND_SECONDS):
                    self._report_unexpected_files()
            finally:
                self._stop.set()
                self._sign_off()
        if self._failed:
            raise FedvoxError(self._failed)

    def _start(self, name: str, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except StoppedError:
                pass
            except BaseException as error:  # also SystemExit, which Flower's client raises for a refused version
                log.error("%s: %s", name, error, exc_info=not isinstance(error, SystemExit))
                self._failed = f"{name}: {type(error).__name__}: {error}"
                self._stop.set()

        # Daemon threads: a blocked network call must not delay the end of the process.
        threading.Thread(target=guarded, name=name, daemon=True).start()

    def _receive_messages(self) -> None:
        complaint, backoff = Complaint("asking for messages"), Backoff()
        self._connect()
        self._start("Flower's heartbeat", lambda: keep_node_online(self._node.heartbeat, HEARTBEAT_SECONDS, self._stop))
        self._resume_tasks()
        while not self._stop.is_set():
            try:
                arrival = self._node.pull() if len(self._context.mailbox.names()) < MAX_TASKS else None
            except (LineError, RefusedError) as error:
                complaint.say(error)
                self._context.retries.pause(backoff.pause())
                if isinstance(error, RefusedError) and error.status != TOO_MANY_REQUESTS:
                    self._connect()
            else:
                complaint.over()
                backoff.reset()
                if arrival is not None:
                    self._receive(arrival)
                elif len(self._context.mailbox.names()) >= MAX_TASKS:
                    self._context.retries.pause(LOOK_AROUND_SECONDS)

    def _connect(self) -> None:
        """Sign the node on, however long it takes."""
        complaint, backoff = Complaint("signing on"), Backoff()
        while True:
            try:
                self._node.activate()
            except (LineError, RefusedError, OutputError) as error:
                complaint.say(error)
                self._context.retries.pause(backoff.pause())
            else:
                complaint.over()
                log.info("connected to %s as %s, node %d", self._access.address, self._access.site, self._node.number)
                return

    def _resume_tasks(self) -> None:
        """Resume the tasks that were held when the last process ended."""
        mailbox = self._context.mailbox
        for name in mailbox.names():
            log.info("task %s: resumed", name[:12])
            self._handle(name)
        for name in mailbox.names():
            self._confirm(mailbox.get(name).header)

    def _receive(self, arrival: Arrival) -> None:
        """Store a message, start its task and confirm the message to Flower."""
        try:
            contents = {name: self._fetch(arrival, name) for name in arrival.objects()}
            text = arrival.text(contents)
        except ProtocolError as error:
            log.warning("message %s: %s", arrival.message[:12], error)
            text = ""
        except RefusedError as error:
            log.warning("message %s: dropped: %s", arrival.message[:12], error)
            return
        task = held_task(arrival, text)
        self._context.retries.until_done("keeping a message", lambda: self._store(task))
        self._confirm(arrival.header)

    def _store(self, task: HeldTask) -> None:
        with self._context.mailbox.lock:
            self._context.mailbox.put(task)
            self._handle(task.name)

    def _fetch(self, arrival: Arrival, name: str) -> bytes:
        retries = Retries(self._stop, INCOMPLETE_PATIENCE_SECONDS)
        return retries.until_done("fetching a message", lambda: self._node.fetch(arrival, name))

    def _confirm(self, header: bytes) -> None:
        try:
            self._context.retries.until_done("confirming a message", lambda: self._node.confirm(header))
        except RefusedError as error:
            log.info("%s", error)  # its run is over; the task will find out too

    def _handle(self, name: str) -> None:
        """Start a task unless it has a handler; the handler picks up newer messages itself."""
        with self._context.mailbox.lock:
            if name in self._handlers:
                return
            handler = TaskHandler(name, self._context, lambda: self._handlers.pop(name, None))
            self._handlers[name] = handler
        self._start(f"task {name[:12]}", lambda: self._run_with_retries(handler))

    def _run_with_retries(self, handler: TaskHandler) -> None:
        """Retry a task after unexpected errors, so that they do not affect other tasks."""
        backoff = Backoff()
        while True:
            try:
                handler.run()
                return
            except StoppedError:
                raise
            except Exception:
                log.exception("task %s: internal error; trying again", handler.name[:12])
            self._context.retries.pause(backoff.pause())

    def _remove_orphans(self) -> None:
        """Remove inbox files that a killed process left behind while it wrote or cleared up."""
        mailbox = self._context.mailbox
        needed = {f"{name}{TASK}" for name in mailbox.names()}
        needed |= {name for model in mailbox.models() for name in (model, part_name(model))}
        for file in self.shared.inbox.iterdir():
            is_ours = file.name.startswith(".") or file.suffix == TASK or is_sha256(file.name)
            if is_ours and file.name not in needed:
                try:
                    file.unlink(missing_ok=True)
                except OSError as error:
                    raise OutputError(f"{file}: cannot be removed: {error.strerror}; remove it") from None

    def _report_unexpected_files(self) -> None:
        """Warn about files in the outbox that no task asked for. They are never sent."""
        held = set(self._context.mailbox.names())
        try:
            there = [file for file in self.shared.outbox.iterdir() if not file.name.startswith(".")]
        except OSError as error:
            log.warning("%s: cannot be read: %s", self.shared.outbox, error.strerror)
            return
        for file in (file for file in there if file.suffix != DAMAGED):
            is_reply = file.suffix == REPLY and is_task_name(file.stem)
            if is_sha256(file.name) or (is_reply and file.stem in held) or file.name in self._unknown:
                continue
            if is_reply and (file.stem in self._context.mailbox.names() or not file.exists()):
                continue
            self._unknown.add(file.name)
            log.warning("%s: no task asked for this file; it is not sent", file)

    def _sign_off(self) -> None:
        def attempt() -> None:
            try:
                self._node.deactivate()
            except FedvoxError as error:
                log.info("%s", error)

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(SIGN_OFF_SECONDS)


def open_log(state: Path) -> AuditLog:
    """Open the courier's audit log, and begin it if there never was one.

    Raises
    ------
    AuditError
        The log is damaged or gone.
    OutputError
        It cannot be written.
    """
    audit, begun = AuditLog(state / AUDIT_FILE), state / MAILBOX_FOLDER / BEGUN_FILE
    audit.kept()
    if not audit.path.exists():
        if begun.exists():
            remedy = f"restore both from a backup; to begin a new log, remove {begun}"
            raise AuditError(audit.path, f"is gone, and its .head file with it; {remedy}")
        audit.append("log_begun")
    # After the log, so that a crash in between accuses nobody.
    try:
        begun.parent.mkdir(mode=0o700, exist_ok=True)
        begun.touch()
    except OSError as error:
        raise cannot_write(begun, error) from None
    return audit


def _open_kit(kit: Path, contact: Path) -> tuple[Access, float]:
    """Return access to the gateway of a kit, and the federation's heartbeat interval in seconds."""
    description = read_kit(kit, "site")
    check_kit_files(kit, description)
    site = description.site or ""
    identity = site_identity(kit, site)
    config = load_federation(kit / "federation.yaml")
    if config.network is None:
        raise ConfigError(f"{kit / 'federation.yaml'}: network: is missing; ask the coordinator for a new kit")
    address = find_address(description.address, description.port)
    settle(address)
    if address.proxy is not None and ":" in address.host:
        log.warning(
            "%s through the proxy %s: not every proxy accepts an IPv6 address; a host name in the kit always works",
            address,
            address.proxy,
        )
    access = Access(site, identity.key, client_context(kit), address, kit / AUTHORITY_FILE, _Contact(contact).touch)
    return access, config.network.heartbeat_seconds


class _Contact:
    """Touches a file, at most once every ``seconds``."""

    def __init__(self, file: Path, seconds: float = 0.5) -> None:
        self._file = file
        self._seconds = seconds
        self._touched = -seconds

    def touch(self) -> None:
        now = time.monotonic()
        if now - self._touched >= self._seconds:
            self._touched = now
            try:
                self._file.touch()
            except OSError as error:
                log.warning("%s: cannot be touched: %s", self._file, error.strerror)
