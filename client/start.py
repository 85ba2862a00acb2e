"""Brings up a site and keeps it up: looks around first, then runs SuperNode and runner until it is told to stop."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import client
from client import preflight
from client.preflight import Item
from client.request import KEY_FILE
from client.site_state import StateFolder, default_ledger, site_status, write_json
from client.supernode import STATE_VARIABLE
from common.config import FederationConfig, load_federation
from common.errors import FedvoxError
from common.flower import flower_environment
from common.network_config import Kit, read_kit
from common.supervise import Child, Supervisor, free_port

POLL_SECONDS = 0.1
STATUS_SECONDS = 2.0
STOP_SECONDS = 10.0

Say = Callable[[str], None]


class PreflightError(FedvoxError):
    """Something must be put right before the site can start."""


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
    authority = options.kit / "ca.crt"
    yield preflight.check_version()
    yield preflight.check_kit(options.kit, kit, config)
    found = preflight.check_authority(authority, datetime.now(UTC))
    yield found
    if found.severity != "error":
        yield from preflight.check_server(kit, authority)
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
        items = []
        for item in look_around(options):
            say(str(item))
            items.append(item)
        if wrong := [item.name for item in items if item.severity == "error"]:
            raise PreflightError(f"not started; put right first: {', '.join(wrong)}")
        folder.new_secret()
        _Site(options, folder, kit, config, say).run()
    return 0


class _Site:
    """SuperNode and runner of one site, under supervision."""

    def __init__(self, options: SiteOptions, folder: StateFolder, kit: Kit, config: FederationConfig, say: Say) -> None:
        self._folder = folder
        self._say = say
        self._since = time.time()
        self._written = 0.0
        self._was_ready = False
        self._supervisor = Supervisor(_children(options, folder, kit, free_port()), self._on_event)
        self._title = f"site {kit.site} of {config.name}"

    def run(self) -> None:
        """Keeps both alive; returns when told to stop."""
        for leftover in (self._folder.contact, self._folder.runner):
            leftover.unlink(missing_ok=True)
        try:
            self._supervisor.start()
            while True:
                self._supervisor.poll()
                self._write_status()
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            self._say("stopping")
        finally:
            self._supervisor.stop(STOP_SECONDS)
            self._write_status(now=True)

    def _on_event(self, name: str, event: str) -> None:
        if name == "supernode" and event.startswith("started"):
            self._folder.contact.unlink(missing_ok=True)
        with (self._folder.logs / "start.log").open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {name}: {event}\n")
        if "again in" in event:
            self._say(f"{name} {event} (see {self._folder.logs / (name + '.log')})")
        self._written = 0.0

    def _write_status(self, now: bool = False) -> None:
        if not now and time.monotonic() - self._written < STATUS_SECONDS and self._was_ready:
            return
        self._written = time.monotonic()
        content = {"pid": os.getpid(), "since": self._since, "processes": self._supervisor.states()}
        write_json(self._folder.status, content)
        ready = site_status(self._folder)["ready"]
        if ready and not self._was_ready:
            self._say(f"ready for tasks: {self._title}")
        self._was_ready = ready


def _children(options: SiteOptions, folder: StateFolder, kit: Kit, port: int) -> list[Child]:
    # Children must run the very code that runs here, whatever folder they are started from.
    root = str(Path(client.__file__).resolve().parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = flower_environment(folder.flower_home) | {"PYTHONSAFEPATH": "1", "PYTHONPATH": path}
    address = f"127.0.0.1:{port}"
    supernode = [sys.executable, "-m", "client.supernode", "--superlink", kit.endpoint]
    supernode += ["--root-certificates", str(options.kit / "ca.crt")]
    supernode += ["--auth-supernode-private-key", str(options.kit / KEY_FILE)]
    supernode += ["--isolation", "process", "--superexec-auth-secret-file", str(folder.secret)]
    supernode += ["--host", "127.0.0.1", "--port", str(port)]
    runner = [sys.executable, "-m", "client.site_runner", "--address", address, "--device", options.device]
    runner += ["--kit", str(options.kit), "--data", str(options.data), "--state", str(folder.path)]
    runner += ["--cache", str(options.cache)] if options.cache else []
    runner += ["--ledger", str(options.ledger)]
    place = {STATE_VARIABLE: str(folder.path)}
    return [
        Child("supernode", supernode, environment | place, folder.logs / "supernode.log", folder.contact.exists),
        Child("runner", runner, environment, folder.logs / "runner.log"),
    ]
