"""The ServerApp of a federation over a network, started by Flower's superexec.

Everything it needs is in the run folder, whose path the environment gives. Flower may start it any number of times: it
resumes after the last finished round. Only one at a time works on a run. It never loads PyTorch.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.audit import AuditLog
from common.config.federation import FederationConfig, load_federation
from common.errors import RESTART_CANNOT_HELP, FedvoxError
from common.models.export_manifest import RELEASE_EVENT
from common.plan.plan import Plan
from common.system.logs import LogFormatter
from server.coordinator.round_audit import audited, check_run
from server.progress.event_stream import EventWriter
from server.progress.events import EventSink, Notice
from server.release.model import save_released_model
from server.release.summary import write_reason, write_summary
from server.rounds.round_log import contributors
from server.rounds.round_loop import FederationError, Link, Patience, RoundLoop
from server.rounds.terms import Terms
from server.rounds.weight_transfer import GatewaySignals, GatewayTransfer
from server.run_store.folder import AUDIT_FILE, FEDERATION_FILE, PLAN_FILE, RunFolder
from server.run_store.gateway_folder import GatewayFolder
from server.run_store.locks import APP_LOG, RUN_VARIABLE, only_app, registered_names

log = logging.getLogger("fedvox.server")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rest of the federation whose run folder the environment names."""
    folder = RunFolder.open(Path(os.environ[RUN_VARIABLE]))
    with only_app(folder.path, context.run_id):
        _log_to(folder.path / APP_LOG)
        try:
            run_federation(grid, folder)
        except Exception:
            log.exception("the server app failed")
            raise


def _log_to(file: Path) -> None:
    """Write this process's log to a file, because Flower does not show its output."""
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(LogFormatter())
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def run_federation(grid: Grid, folder: RunFolder) -> None:
    """Run the rest of a federation, release its model, and write its summary.

    A federation that cannot continue is stopped, with the reason in its summary; so is one that another server app
    could not help either. Any other error is raised, and the caller tries again.
    """
    emit = audited(EventWriter(folder.path), AuditLog(folder.path / AUDIT_FILE), folder)
    try:
        config = load_federation(folder.path / FEDERATION_FILE)
        check_run(folder, lambda text: emit(Notice(text)))
        plan = folder.plan()
        _run_rounds(grid, folder, config, plan, emit)
        _release(folder, config, plan)
        write_summary(folder, config, plan, "finished", None)
    except FedvoxError as error:
        emit(Notice(str(error)))
        if not isinstance(error, FederationError) and error.exit_status != RESTART_CANNOT_HELP:
            raise
        log.error("%s", error)
        _stop(folder, str(error))


def _stop(folder: RunFolder, reason: str) -> None:
    """Write the summary of a run that cannot go on, as far as its files allow."""
    try:
        config, plan = load_federation(folder.path / FEDERATION_FILE), folder.plan()
        write_summary(folder, config, plan, "stopped", reason)
    except FedvoxError:
        write_reason(folder, reason)


def _run_rounds(grid: Grid, folder: RunFolder, config: FederationConfig, plan: Plan, emit: EventSink) -> None:
    state = folder.load_state()
    layout = folder.layout(0 if state is None else state.round)
    if state is None:
        folder.begin(config.digest(), "network", (PLAN_FILE,))
    elif not state.finished:
        folder.event("resumed", round=state.round)
        emit(Notice(f"resuming after round {state.round} of {config.rounds}"))
    sites = set(registered_names(folder.path).values())
    patience = Patience()
    if config.network is not None:
        network = config.network
        silence = network.silence_deadline_seconds
        patience = Patience(network.round_deadline_seconds, silence, min(patience.offline_seconds, silence))

    def name_of(node: int) -> str | None:
        return registered_names(folder.path).get(node)

    gateway = GatewayFolder(folder.path.resolve())
    gateway.make()
    link = Link(
        GatewayTransfer(gateway, config.transport.download),
        names=name_of,
        patience=patience,
        signals=GatewaySignals(gateway),
    )
    RoundLoop(Terms.of(config, plan, layout), len(sites), folder, emit, link).run(grid)


def _release(folder: RunFolder, config: FederationConfig, plan: Plan) -> None:
    state = folder.load_state()
    if state is None or not state.finished:
        raise FedvoxError(f"{folder.path}: the rounds did not finish")
    number = state.released_round
    sites = contributors(folder.read_rounds(), number)
    save_released_model(folder, config, plan, state, number, sites)
    weights = folder.path / "model" / "model.safetensors"
    with weights.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    AuditLog(folder.path / AUDIT_FILE).append(RELEASE_EVENT, round=number, sites=sites, sha256=digest)
