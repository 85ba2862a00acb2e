"""Starts a site and keeps it running: preflight first, then courier and runner until told to stop."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import client
from client.runner.isolation import can_isolate
from client.site import preflight
from client.site.preflight_item import Item
from client.site.supervision import MessageSink, Upkeep, require_preflight
from client.state_folder import DATA_CHECK_FILE, StateFolder, default_consent, default_ledger
from common.audit import AuditError
from common.config.federation import FederationConfig, load_federation
from common.config.kit import Kit, read_kit
from common.errors import ConfigError, DataError, FedvoxError
from common.system.flower import flower_environment
from common.system.supervisor import Child


@dataclass(frozen=True)
class SiteOptions:
    """Command-line options of a site.

    Attributes
    ----------
    kit
        Folder that the coordinator sent.
    data
        Dataset folder.
    state
        The site's state folder.
    shared
        Folder shared by courier and runner.
    cache
        Folder for preprocessed scans; None keeps them in memory.
    ledger
        The hospital's privacy ledger.
    """

    kit: Path
    data: Path
    state: Path
    shared: Path
    cache: Path | None
    device: str = "auto"
    ledger: Path = field(default_factory=default_ledger)


def run_preflight(options: SiteOptions) -> Iterator[Item]:
    """Check everything that a site needs, one item after another."""
    kit, config = read_kit(options.kit, "site"), load_federation(options.kit / "federation.yaml")
    yield preflight.check_version()
    yield preflight.check_kit(options.kit, kit, config)
    yield from check_connection(options.kit, kit)
    yield preflight.check_shared(options.shared)
    yield preflight.check_isolation(can_isolate())
    yield from check_work(options, kit, config)


def check_connection(folder: Path, kit: Kit) -> Iterator[Item]:
    """Check what the courier needs from the network: certificates, a route to the server, the right time."""
    found = preflight.check_authority(folder / "ca.crt", datetime.now(UTC))
    yield found
    if found.severity != "error":
        yield from preflight.check_server(folder, kit)


def check_work(options: SiteOptions, kit: Kit, config: FederationConfig) -> Iterator[Item]:
    """Check what the runner needs: data, disk space, a device, an approval, privacy budget."""
    yield from _check_data(options, kit, config)
    folders = {"site's files": options.state} | ({"cache": options.cache} if options.cache else {})
    yield preflight.check_disk(folders)
    yield preflight.check_device(options.device)
    # Late: it imports SciPy or PyTorch, which take seconds.
    from client.consent.disclosure import read_request

    try:
        privacy = read_request(options.kit).plan.privacy
        yield preflight.check_approval(options.kit, options.state, default_consent())
    except FedvoxError as error:
        yield Item("plan", "error", str(error))
        return
    yield from _check_rollback(options)
    if privacy is not None:
        from client.site.budget_check import check_privacy

        yield check_privacy(options.state, config, privacy, kit.site or "", options.data, options.ledger)


def _check_data(options: SiteOptions, kit: Kit, config: FederationConfig) -> Iterator[Item]:
    """Check that the plan can be carried out: its data, the split into training and validation, and its memory."""
    # Late: reading scans needs nibabel, and a courier reads none.
    from client.consent.disclosure import read_plan
    from client.consent.site_config import SITE_FILE, load_site_config
    from client.runner.site_split import SiteDataError, labelled_cases, split_site
    from client.site.data_item import check_data
    from common.imaging.datasets.comparison import Wanted

    try:
        site, plan = load_site_config(options.state / SITE_FILE), read_plan(options.kit / "plan.json", config)
    except ConfigError as error:
        yield Item("data", "error", str(error))
        return
    wanted = Wanted.by(plan, config.modality)
    item = check_data(options.data, wanted, options.state / DATA_CHECK_FILE, None, site.data_terms)
    if item.severity != "error" and config.privacy is None and config.network is not None:
        held_out = site.validation_cases or config.network.validation_fraction
        try:
            cases = labelled_cases(options.data, wanted, site.data_terms)
            split_site(config, kit.site or "", cases, held_out, None)
        except (DataError, SiteDataError) as error:
            item = Item("data", "error", str(error))
    yield item
    yield preflight.check_memory(plan, config, options.device)


def _check_rollback(options: SiteOptions) -> Iterator[Item]:
    """Say that the site was set back to older files, if the server has noticed."""
    from client.ledger.rollback import pending_claim, recorded_claim

    try:
        if recorded_claim(options.state) is None:
            return
        # Late: the ledger's accountant takes seconds to import.
        from client.ledger.ledger import Ledger, Witness

        stopped = pending_claim(options.state, Ledger(options.ledger, Witness(options.state)))
    except AuditError as error:
        yield Item("records", "error", str(error))
        return
    if stopped is not None:
        claim, lacking = stopped
        text = (
            f"{' and '.join(lacking)}: older than what this site has reported to the server ({claim}); put the newest "
            "files back, or have a person decide: fedvox-client ledger --recover --help"
        )
        yield Item("records", "error", text)


def start(options: SiteOptions, say: MessageSink) -> int:
    """Run the site until SIGTERM or Ctrl-C.

    Parameters
    ----------
    options
        Command-line options.
    say
        Shows a line.

    Raises
    ------
    PreflightError
        If preflight finds an error.
    AlreadyRunningError
        If the site is already running.
    """
    folder = StateFolder(options.state)
    kit, config = read_kit(options.kit, "site"), load_federation(options.kit / "federation.yaml")
    with folder.locked() as claim:
        require_preflight(run_preflight(options), say)
        claim.keep()
        children = [courier_process(options.kit, folder, options.shared), runner_process(options, folder)]
        Upkeep(folder, children, "site", f"ready for tasks: site {kit.site} of {config.name}", say).run()
    return 0


def courier_process(kit: Path, folder: StateFolder, shared: Path) -> Child:
    """Return the courier as a supervised child process.

    Parameters
    ----------
    kit
        The kit, with the site's key.
    folder
        State folder, also for its log.
    shared
        Folder shared by courier and runner.
    """
    command = [sys.executable, "-m", "client.courier", "--kit", str(kit)]
    command += ["--state", str(folder.path), "--shared", str(shared)]
    return Child(
        "courier", command, _environment(folder), folder.logs / "courier.log", folder.contact.exists, gives_up=True
    )


def runner_process(options: SiteOptions, folder: StateFolder) -> Child:
    """Return the runner as a supervised child process.

    Parameters
    ----------
    options
        Options of the site.
    folder
        State folder, also for its log.
    """
    command = [sys.executable, "-m", "client.runner", "--kit", str(options.kit), "--data", str(options.data)]
    command += ["--state", str(folder.path), "--shared", str(options.shared)]
    command += ["--cache", str(options.cache)] if options.cache else []
    command += ["--ledger", str(options.ledger), "--device", options.device]
    return Child("runner", command, _environment(folder), folder.logs / "runner.log", gives_up=True)


def _environment(folder: StateFolder) -> dict[str, str]:
    # Children must run the same code as this process, whatever their working directory.
    root = str(Path(client.__file__).resolve().parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return flower_environment(folder.flower_home) | {"PYTHONSAFEPATH": "1", "PYTHONPATH": path}
