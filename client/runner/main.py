"""Opens everything a runner needs, then serves its shared folder until SIGTERM."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context

from client.consent.disclosure import read_plan
from client.consent.guard import open_guard
from client.consent.site_config import SITE_FILE, load_site_config
from client.ledger.ledger import Ledger, Witness
from client.ledger.rollback import RollbackGuard
from client.runner.app_call import ReceivedWeights
from client.runner.client_app import Site, SiteWeights, make_client_app
from client.runner.isolation import Isolation
from client.runner.local_site import LedgerAccess, LocalSite, SiteData
from client.runner.progress import RunnerStatus, TaskProgress
from client.runner.task_journal import TaskJournal
from client.runner.task_loop import TaskLoop
from client.shared_folder import SharedFolder
from client.state_folder import StateFolder, default_consent, default_ledger
from common.config.federation import load_federation
from common.config.kit import check_kit_files, read_kit
from common.errors import ConfigError, FedvoxError
from common.system.flower import check_flower_version
from common.system.logs import log_to_stderr
from common.weights.store import FileStore

log = logging.getLogger("fedvox.runner")


def main(isolation: Isolation, arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; return an exit status only if the runner cannot start.

    Parameters
    ----------
    isolation
        The network access of this process.
    arguments
        Command-line arguments; None takes this process's.
    """
    options = _options(arguments)
    log_to_stderr(logging.INFO)
    log.log(logging.INFO if isolation.is_isolated else logging.WARNING, "the runner %s", isolation)
    try:
        check_flower_version()
        folder = SharedFolder(options.shared)
        folder.make()
        with folder.held_by("runner"):
            folder.probe()
            _serve(options, folder, isolation)
    except FedvoxError as error:
        log.error("%s", error)
        return error.exit_status
    # Skip the interpreter's shutdown, which would wait for the threads of interrupted work.
    logging.shutdown()
    os._exit(0)


def _serve(options: argparse.Namespace, folder: SharedFolder, isolation: Isolation) -> None:
    state = StateFolder(options.state)
    state.make()
    config = load_federation(options.kit / "federation.yaml")
    if config.network is None:
        raise ConfigError(f"{options.kit / 'federation.yaml'}: network: is missing; ask for a new kit")
    kit = read_kit(options.kit, "site")
    check_kit_files(options.kit, kit)
    status = RunnerStatus(state.runner)
    status.say(state="preparing data", network=str(isolation), isolated=isolation.is_isolated)
    progress = TaskProgress(folder, status)
    journal = TaskJournal(state.journal)
    guard = open_guard(options.kit, options.state, default_consent(), journal.attempt)
    own = load_site_config(options.state / SITE_FILE)
    ledger = Ledger(options.ledger or default_ledger(), Witness(options.state))
    continuity = RollbackGuard(options.state, ledger, config.privacy.delta if config.privacy else None)
    site = LocalSite(
        config,
        read_plan(options.kit / "plan.json", config),
        SiteData(
            kit.site or "",
            options.data,
            options.cache,
            own.validation_cases or config.network.validation_fraction,
            own.data_terms,
        ),
        options.device,
        progress,
        status.prepared,
        LedgerAccess(options.state, ledger, journal.attempt, guard.more_rounds),
    )

    def open_site(context: Context | None = None) -> Site:
        del context
        try:
            opened = site.open()
        except FedvoxError as error:
            status.say(problem=f"the data cannot be used: {error}")
            raise
        status.say(problem=None, train=len(opened.train_cases), validation=len(opened.validation_cases))
        return opened

    def prepare() -> None:
        try:
            open_site()
        except FedvoxError as error:
            # Serve all the same: the server gets an error code, and once the data are repaired the next task succeeds.
            log.error("the data cannot be used: %s", error)

    weights = SiteWeights(ReceivedWeights(folder.inbox, state.global_model), FileStore(folder.outbox))
    app = make_client_app(open_site, weights, guard, continuity)
    TaskLoop(folder, journal, app, guard, progress, status).serve(prepare)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="client.runner")
    for name in ("--kit", "--data", "--state", "--shared"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--ledger", type=Path)
    parser.add_argument("--device", default="auto")
    return parser.parse_args(arguments)
