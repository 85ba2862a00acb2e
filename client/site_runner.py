"""The program of the runner process: ``python -m client.site_runner``; ``fedvox-client start`` starts it."""

from __future__ import annotations

import argparse
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from client.app import make_client_app
from client.heartbeat import PatientApp, StepCounter
from client.ledger import Ledger, Witness
from client.policy import open_guard
from client.runner import Runner
from client.site_data import LocalSite
from client.site_state import StateFolder, default_ledger, write_json
from client.task_file import TaskFile
from common.config import load_federation
from common.errors import ConfigError, FedvoxError
from common.flower import check_flower_version
from common.network_config import read_kit
from common.plan import Plan
from common.site_config import SITE_FILE, load_site_config

log = logging.getLogger("fedvox.runner")

WRITE_SECONDS = 0.5
SIGN_SECONDS = 10.0
LONGEST_SILENCE_SECONDS = 180.0
"""A case is prepared, or a message fetched, in less than that."""


class RunnerStatus:
    """Writes what the runner does to a file, seldom enough to cost nothing. An ``Observer`` of the site.

    Args:
        path: the file.
        heartbeat_seconds: how often it has something to say while it trains.
    """

    def __init__(self, path: Path, heartbeat_seconds: float = 0) -> None:
        self._path = path
        self._patience = max(LONGEST_SILENCE_SECONDS, 3 * heartbeat_seconds)
        self._content: dict[str, Any] = {"pid": os.getpid(), "state": "starting"}
        self._written = 0.0
        self._lock = threading.Lock()

    def say(self, **content: Any) -> None:
        """Changes entries; a change of state or of a problem is written at once, anything else now and then.

        Also what is unchanged is written every 10 s, with the time by which the next sign of life will have come.
        """
        with self._lock:
            before = dict(self._content)
            self._content |= content
            urgent = any(before.get(name) != self._content.get(name) for name in ("state", "problem"))
            silent = time.monotonic() - self._written
            if urgent or silent >= SIGN_SECONDS or (silent >= WRITE_SECONDS and self._content != before):
                self._written = time.monotonic()
                now = time.time()
                write_json(self._path, self._content | {"time": now, "sign_by": now + self._patience})

    def state(self, name: str) -> None:
        """What the runner reports of itself."""
        self.say(state=name)

    def prepared(self, done: int, cases: int) -> None:
        """How far the data are."""
        self.say(prepared=done, cases=cases)

    def site_started(self, round: int, site: str, steps: int) -> None:
        """A round begins."""
        del site
        self.say(round=round, step=0, steps=steps)

    def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
        """A step is done."""
        del site, loss
        self.say(round=round, step=step, steps=steps)


def main(arguments: list[str] | None = None) -> None:
    """Opens the site's data, then serves its SuperNode until SIGTERM.

    Raises:
        FedvoxError: the kit cannot be used, or another version of Flower is installed.
    """
    options = _options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    check_flower_version()
    folder = StateFolder(options.state)
    config = load_federation(options.kit / "federation.yaml")
    if config.network is None:
        raise ConfigError(f"{options.kit / 'federation.yaml'}: network: is missing; ask for a new kit")
    status = RunnerStatus(folder.runner, config.network.heartbeat_seconds)
    status.state("preparing data")
    counter = StepCounter(status)
    guard = open_guard(options.state, config)
    site = LocalSite(
        config,
        Plan.model_validate_json((options.kit / "plan.json").read_bytes()),
        read_kit(options.kit, "site").site or "",
        options.data,
        options.cache,
        load_site_config(options.state / SITE_FILE).validation_cases or config.network.validation_fraction,
        options.device,
        counter,
        status.prepared,
        options.state,
        Ledger(options.ledger or default_ledger(), Witness(options.state)),
    )
    runner = Runner(
        options.address,
        (options.secret_file or folder.secret).read_bytes(),
        TaskFile(folder.task),
        PatientApp(make_client_app(site, guard), counter, config.network.heartbeat_seconds, guard),
        report=status.state,
        guard=guard,
    )
    try:
        opened = site.open()
        status.say(problem=None, train=len(opened.train_cases), validation=len(opened.validation_cases))
    except FedvoxError as error:
        # Served nonetheless: the server then hears a code, and once the data are put right the next task succeeds.
        log.error("the data cannot be used: %s", error)
        status.say(problem=str(error))
    runner.serve()
    # Not through the interpreter's own end: work that was broken off may still hold threads.
    logging.shutdown()
    os._exit(0)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="client.site_runner")
    for name in ("--kit", "--data", "--state"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--ledger", type=Path)
    parser.add_argument("--secret-file", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--address", required=True)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
