"""Split start: a site's courier and runner run separately, in their own containers or under their own accounts.

The courier has the network and the site's key, and sees no scans. The runner has the scans and needs no network. They
share one folder. Each has its own state folder: the site's decisions and its log of what was sent belong to the runner,
out of reach of an attacker who breaks into the courier.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from client.runner.isolation import can_isolate
from client.site import preflight
from client.site.preflight_item import Item
from client.site.start import SiteOptions, check_connection, check_work, courier_process, runner_process
from client.site.supervision import MessageSink, Upkeep, require_preflight
from client.state_folder import Role, StateFolder
from common.config.federation import load_federation
from common.config.kit import read_kit
from common.system.supervisor import Child


@dataclass(frozen=True)
class CourierOptions:
    """Command-line options of the courier.

    Attributes
    ----------
    kit
        The kit, with the site's key.
    state
        The courier's state folder.
    shared
        Folder shared by courier and runner.
    """

    kit: Path
    state: Path
    shared: Path


def run_courier_preflight(options: CourierOptions) -> Iterator[Item]:
    """Check what the courier needs, one item after another."""
    kit, config = read_kit(options.kit, "site"), load_federation(options.kit / "federation.yaml")
    yield preflight.check_version()
    yield preflight.check_kit(options.kit, kit, config)
    yield from check_connection(options.kit, kit)
    yield preflight.check_shared(options.shared, "courier")
    yield preflight.check_disk({"courier's files": options.state, "files of a round": options.shared})


def run_runner_preflight(options: SiteOptions) -> Iterator[Item]:
    """Check what the runner needs, one item after another, without using the network."""
    kit, config = read_kit(options.kit, "site"), load_federation(options.kit / "federation.yaml")
    yield preflight.check_version()
    yield preflight.check_federation(options.kit, kit, config)
    yield preflight.check_no_key(options.kit)
    yield preflight.check_shared(options.shared, "runner")
    yield preflight.check_isolation(can_isolate())
    yield from check_work(options, kit, config)


def start_courier(options: CourierOptions, say: MessageSink) -> int:
    """Run the courier until SIGTERM or Ctrl-C.

    Raises
    ------
    PreflightError
        If preflight finds an error.
    AlreadyRunningError
        If it is already running.
    """
    folder = StateFolder(options.state)
    child = courier_process(options.kit, folder, options.shared)
    return _start(folder, options.kit, run_courier_preflight(options), child, "connected to the server", say)


def start_runner(options: SiteOptions, say: MessageSink) -> int:
    """Run the runner until SIGTERM or Ctrl-C.

    Raises
    ------
    PreflightError
        If preflight finds an error.
    AlreadyRunningError
        If it is already running.
    """
    folder = StateFolder(options.state)
    child = runner_process(options, folder)
    return _start(folder, options.kit, run_runner_preflight(options), child, "ready for tasks", say)


def _start(
    folder: StateFolder, kit_folder: Path, items: Iterator[Item], child: Child, ready: str, say: MessageSink
) -> int:
    kit, config = read_kit(kit_folder, "site"), load_federation(kit_folder / "federation.yaml")
    role: Role = "courier" if child.name == "courier" else "runner"
    with folder.locked() as claim:
        require_preflight(items, say)
        claim.keep()
        Upkeep(folder, [child], role, f"{ready}: site {kit.site} of {config.name}", say).run()
    return 0
