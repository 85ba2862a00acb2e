"""Brings up a site and keeps it up: looks around first, then runs SuperNode and runner until it is told to stop."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import client
from client import preflight
from client.preflight import Item
from client.request import KEY_FILE
from client.site_state import StateFolder, default_ledger
from client.supernode import STATE_VARIABLE
from client.upkeep import Say, Upkeep, see_to
from common.config import FederationConfig, load_federation
from common.flower import flower_environment
from common.network_config import Kit, format_endpoint, read_kit
from common.supervise import Child, free_port

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class SiteOptions:
    """What the command line decides.

    kit: the folder that the coordinator sent. data: the dataset folder. state: the site's own files.
    cache: folder for preprocessed scans; None keeps them in memory.
    ledger: the hospital's privacy ledger.
    """

    kit: Path
    data: Path
    state: Path
    cache: Path | None
    device: str = "auto"
    ledger: Path = field(default_factory=default_ledger)


def look_around(options: SiteOptions) -> Iterator[Item]:
    """Checks everything that a site needs, one item after another."""
    kit, config = read_kit(options.kit, "site"), load_federation(options.kit / "federation.yaml")
    yield preflight.check_version()
    yield preflight.check_kit(options.kit, kit, config)
    yield from look_at_server(options.kit, kit)
    yield from look_at_data(options, kit, config)


def look_at_server(folder: Path, kit: Kit) -> Iterator[Item]:
    """What the process that speaks with the server needs: certificates, a way to the server, the right time."""
    authority = folder / "ca.crt"
    found = preflight.check_authority(authority, datetime.now(UTC))
    yield found
    if found.severity != "error":
        yield from preflight.check_server(kit, authority)


def look_at_data(options: SiteOptions, kit: Kit, config: FederationConfig) -> Iterator[Item]:
    """What the process that trains needs: data, room on disks, a device, an approval, privacy to spend."""
    yield preflight.check_data(options.data, config.labels or {}, options.state / "data-check.json")
    folders = {"site's files": options.state} | ({"cache": options.cache} if options.cache else {})
    yield preflight.check_disk(folders)
    yield preflight.check_device(options.device)
    yield preflight.check_approval(options.state, config)
    if config.privacy is not None:
        # Late: it brings PyTorch with it, which takes seconds to import.
        from client.budget_outlook import check_privacy

        yield check_privacy(options.state, config, kit.site or "", options.data, options.ledger)


def start(options: SiteOptions, say: Say) -> int:
    """Runs the site until SIGTERM or Ctrl-C.

    Args:
        options: what and where.
        say: shows a line.

    Raises:
        PreflightError: an item of the preflight stands in the way.
        AlreadyRunningError: the site runs already.
    """
    folder = StateFolder(options.state)
    kit, config = read_kit(options.kit, "site"), load_federation(options.kit / "federation.yaml")
    with folder.locked():
        see_to(look_around(options), say)
        folder.new_secret()
        children = _children(options, folder, kit, free_port())
        Upkeep(folder, children, "site", f"ready for tasks: site {kit.site} of {config.name}", say).run()
    return 0


def _children(options: SiteOptions, folder: StateFolder, kit: Kit, port: int) -> list[Child]:
    return [
        supernode_process(options.kit, kit, folder, (LOOPBACK, port), folder.secret),
        runner_process(options, folder, format_endpoint(LOOPBACK, port), folder.secret),
    ]


def supernode_process(
    kit_folder: Path, kit: Kit, folder: StateFolder, listen: tuple[str, int], secret: Path, health: str = ""
) -> Child:
    """SuperNode, as a child to keep alive.

    Args:
        kit_folder: the kit, with the site's key.
        kit: its content.
        folder: for its state and its log.
        listen: address and port for the runner.
        secret: shared with the runner.
        health: where to tell its health by gRPC (host:port); empty is nowhere.
    """
    command = [sys.executable, "-m", "client.supernode", "--superlink", kit.endpoint]
    command += ["--root-certificates", str(kit_folder / "ca.crt")]
    command += ["--auth-supernode-private-key", str(kit_folder / KEY_FILE)]
    command += ["--isolation", "process", "--superexec-auth-secret-file", str(secret)]
    command += ["--host", listen[0], "--port", str(listen[1])]
    command += ["--health-server-address", health] if health else []
    environment = _environment(folder) | {STATE_VARIABLE: str(folder.path)}
    return Child("supernode", command, environment, folder.logs / "supernode.log", folder.contact.exists)


def runner_process(options: SiteOptions, folder: StateFolder, supernode: str, secret: Path) -> Child:
    """The runner, as a child to keep alive.

    Args:
        options: of the site.
        folder: for its state and its log.
        supernode: host:port where SuperNode listens for it.
        secret: shared with SuperNode.
    """
    command = [sys.executable, "-m", "client.site_runner", "--address", supernode, "--device", options.device]
    command += ["--kit", str(options.kit), "--data", str(options.data), "--state", str(folder.path)]
    command += ["--cache", str(options.cache)] if options.cache else []
    command += ["--ledger", str(options.ledger), "--secret-file", str(secret)]
    return Child("runner", command, _environment(folder), folder.logs / "runner.log")


def _environment(folder: StateFolder) -> dict[str, str]:
    # Children must run the very code that runs here, whatever folder they are started from.
    root = str(Path(client.__file__).resolve().parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return flower_environment(folder.flower_home) | {"PYTHONSAFEPATH": "1", "PYTHONPATH": path}
