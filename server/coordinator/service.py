"""Runs a federation's server over a network: starts and restarts its processes until the federation ends.

There are four more processes: Flower's SuperLink on the loopback interface; Flower's superexec, which starts the server
app (``server.coordinator.server_app``); and the gateway in front (``server.gateway``). Any of them may be killed at any
time; the run folder holds what is needed to resume. The gateway may also run separately, in its own container, if it
shares the run folder and the loopback interface.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.audit import AuditLog
from common.certificates import AUTHORITY_FILE, fingerprint, load_certificate
from common.config.federation import FederationConfig
from common.config.kit import Kit, read_kit
from common.errors import DamagedFileError, FedvoxError
from common.system.flower import check_flower_version
from common.system.supervisor import Child, Supervisor, free_port
from server.coordinator.app_bundle import build_bundle
from server.coordinator.control_client import ControlError, SuperLinkControl
from server.coordinator.node_registry import Registration
from server.coordinator.round_audit import check_run
from server.coordinator.run_watchdog import FlowerRun, outcome_of
from server.coordinator.startup import (
    PREPARED,
    check_certificate,
    draw_first_weights,
    flower_processes,
    forget_messages,
    gateway_process,
    make_run_folder,
    put_damaged_database_aside,
    read_federation,
    refuse_others,
    take_over_run,
)
from server.gateway.listen import Listen, check_port, default_listen
from server.progress.event_stream import EventReader, LatestProgress
from server.progress.events import EventSink, Notice, RunStarted
from server.release.summary import write_summary
from server.reporting.report import write_report
from server.run_store.folder import AUDIT_FILE, RunFolder
from server.run_store.gateway_folder import GatewayFolder
from server.run_store.ledgers_seen import ledgers_carried_over
from server.run_store.live_status import NetworkStatus, write_network_status
from server.run_store.locks import kill_app, only_start

LOOK_SECONDS = 1.0
SYNC_SECONDS = 3.0
STATUS_SECONDS = 2.0


@dataclass(frozen=True)
class StartOptions:
    """The options of ``fedvox-server start``.

    Attributes
    ----------
    kit
        The server's kit.
    run
        The run folder.
    listen
        The gateway's address. None means the kit's port on all interfaces, or on the kit's address alone if that is a
        loopback address.
    gateway
        Whether to start the gateway; False if it runs separately.
    health
        The address of SuperLink's gRPC health service (host:port); empty for none.
    """

    kit: Path
    run: Path
    listen: Listen | None = None
    gateway: bool = True
    health: str = ""


def start(options: StartOptions, emit: EventSink) -> Path:
    """Run a federation to its end, resuming it if it was started before.

    Returns
    -------
    Path
        The path of the report.

    Raises
    ------
    FedvoxError
        A prerequisite is missing, or the federation cannot continue.
    KeyboardInterrupt
        The operator interrupted it. Finished work is kept, and the federation can be started again.
    """
    check_flower_version()
    kit = read_kit(options.kit, "server")
    config = read_federation(options.kit, kit)
    check_certificate(options.kit, options.gateway, lambda text: emit(Notice(text)))
    listen = options.listen or default_listen(kit)
    refuse_others(options.run)
    with only_start(options.run, PREPARED | ({"gateway"} if options.gateway else set()), mode=0o700) as claim:
        make_run_folder(options.run)
        # An app that outlived a killed server would go on writing.
        kill_app(options.run)
        folder = take_over_run(options.run, options.kit, config)
        check_run(folder, lambda text: emit(Notice(text)))
        put_damaged_database_aside(options.run, lambda text: emit(Notice(text)))
        if outcome_of(options.run) == "finished":
            emit(Notice(f"{options.run} is finished; nothing is left to do"))
            return write_report(options.run)
        (options.run / "summary.json").unlink(missing_ok=True)
        if options.gateway:
            check_port(listen)
        # First, because it needs a lot of memory.
        draw_first_weights(options.run)
        run, port = folder.path.resolve(), free_port()
        gateway = GatewayFolder(run)
        gateway.make()
        gateway.set_superlink(port)
        children = flower_processes(run, port, options.health)
        if options.gateway:
            children.append(gateway_process(run, options.kit.resolve(), listen))
        authority = fingerprint(load_certificate(options.kit / AUTHORITY_FILE))
        with ledgers_carried_over(options.run, authority, lambda text: emit(Notice(text))):
            server = _Server(kit, config, folder, options.kit.resolve(), port, children, emit)
            claim.keep()
            return server.run()


class _Server:
    """One start of a federation's server."""

    def __init__(
        self,
        kit: Kit,
        config: FederationConfig,
        folder: RunFolder,
        kit_folder: Path,
        port: int,
        children: Sequence[Child],
        emit: EventSink,
    ) -> None:
        run = folder.path.resolve()
        self._kit = kit
        self._config = config
        self._folder = folder
        self._emit = emit
        self._port = port
        self._audit = AuditLog(run / AUDIT_FILE)
        self._registration = Registration(kit_folder, run, self._audit, self._say)
        self._flower_run = FlowerRun(run, build_bundle(config), self._audit, self._say)
        self._events = EventReader(run, only_new=True)
        self._progress = LatestProgress()
        self._supervisor = Supervisor(children, self._on_event)
        self._control: SuperLinkControl | None = None
        self._checked = self._synced = self._status_written = float("-inf")
        self._last_error = ""
        self._refused: Mapping[str, Mapping[str, int]] = {}

    def run(self) -> Path:
        """Run until the federation ends; write a summary and a report in any case."""
        network = self._config.network
        sites = sorted(network.sites) if network else []
        self._emit(RunStarted(self._config.name, self._config.rounds, tuple(sites)))
        self._audit.append("server_started", endpoint=self._kit.endpoint, digest=self._kit.digest)
        reason = None
        try:
            self._supervisor.start()
            while self._flower_run.outcome is None:
                self._tick()
                time.sleep(0.1)
            self._pass_on_events()
        except FedvoxError as error:
            reason = str(error)
            raise
        finally:
            self._end(reason)
            report = write_report(self._folder.path)
        self._raise_if_stopped()
        return report

    def _tick(self) -> None:
        self._supervisor.poll()
        self._pass_on_events()
        states = self._supervisor.states()
        now = time.monotonic()
        if states["superlink"]["state"] == "ready" and now - self._checked >= LOOK_SECONDS:
            self._check()
            self._checked = time.monotonic()
        if now - self._status_written >= STATUS_SECONDS:
            self._write_status(running=True)
            self._status_written = now

    def _check(self) -> None:
        try:
            self._control = self._control or SuperLinkControl(self._port)
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self._registration.sync(self._control)
                self._synced = time.monotonic()
            self._flower_run.tick(self._control)
            self._last_error = ""
        except ControlError as error:
            if str(error) != self._last_error:
                self._last_error = str(error)
                self._say(self._last_error)

    def _pass_on_events(self) -> None:
        """Show what the server app wrote since the last call."""
        for event in self._events.read():
            self._progress(event)
            self._emit(event)

    def _say(self, text: str) -> None:
        self._emit(Notice(text))

    def _end(self, reason: str | None) -> None:
        # Write the summary first, so that it is not lost if the operator interrupts the shutdown.
        outcome = self._flower_run.outcome
        if outcome is None:
            # From here on, nothing else writes to the run folder.
            kill_app(self._folder.path)
            self._write_summary("stopped" if reason else "interrupted", reason)
        if self._control is not None:
            self._control.close()  # SuperLink waits for open connections before it exits
        self._supervisor.stop()
        if outcome is not None:
            forget_messages(self._folder.path)
        self._audit.append("server_stopped", outcome=outcome or ("stopped" if reason else "interrupted"))
        self._write_status(running=False)

    def _write_summary(self, status: str, reason: str | None) -> None:
        try:
            write_summary(self._folder, self._config, self._folder.plan(), status, reason)
        except DamagedFileError as error:
            self._say(str(error))

    def _raise_if_stopped(self) -> None:
        if self._flower_run.outcome == "stopped":
            raise FedvoxError(f"the federation was stopped: {self._progress.last_notice or 'see the report'}")

    def _on_event(self, name: str, what: str) -> None:
        self._folder.event("process", name=name, what=what)
        if what not in ("started", "ready", "stopped"):
            self._say(f"{name}: {what}")

    def _write_status(self, *, running: bool) -> None:
        # After the end the gateway's folder is gone.
        self._refused = GatewayFolder(self._folder.path).refused() or self._refused
        sites = {}
        for name in sorted({*self._registration.online, *(self._config.network.sites if self._config.network else ())}):
            step, steps = self._progress.steps.get(name, (None, None))
            connected = running and self._registration.online.get(name, False)
            status = self._progress.done.get(name)
            sites[name] = {"connected": connected, "step": step, "steps": steps, "status": status}
            if not connected:
                sites[name]["seen"] = self._registration.left.get(name)
        doing = self._doing() if running else (self._flower_run.outcome or "interrupted")
        write_network_status(
            self._folder.path,
            NetworkStatus(
                running=running,
                written="",
                doing=doing,
                endpoint=self._kit.endpoint,
                processes=self._supervisor.states(),
                sites=sites,
                submissions=self._flower_run.submissions,
                refused=self._refused,
            ),
        )

    def _doing(self) -> str:
        if self._progress.round is not None:
            final = self._progress.phase == "evaluate"
            return "final evaluation" if final else f"round {self._progress.round} of {self._config.rounds}"
        return self._progress.last_notice or "starting"
