"""The containers of a coordinator and of hospitals, as their compose files start them, on one machine."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from client.shared_folder import SharedFolder
from client.state_folder import StateFolder
from tests.deploy.machine import CLIENT, REPOSITORY, SERVER, Machine, Stack
from tests.e2e.network_federation import Federation

UID = 10001
KIT, STATE = "--kit=/kit", "--state=/state"


class Hospital(Stack):
    """One site's containers.

    Args:
        overlay: a further compose file.
    """

    def __init__(self, machine: Machine, made: Federation, site: str, overlay: Path | None = None) -> None:
        folder = made.folder / "hospitals" / site
        for name in ("ledger", "cache", "shared"):
            (folder / name).mkdir(parents=True)
        made.state(site).make()
        self.data = made.data(site)
        self.shared = SharedFolder(folder / "shared")
        give(folder, made.kits / "sites" / site)
        settings = {
            "FEDVOX_PROJECT": f"fedvox-test-{site}",
            "FEDVOX_CLIENT_IMAGE": CLIENT,
            "FEDVOX_KIT": made.kits / "sites" / site,
            "FEDVOX_DATA": self.data,
            "FEDVOX_STATE": made.state(site).path,
            "FEDVOX_SHARED": folder / "shared",
            "FEDVOX_LEDGER": folder / "ledger",
            "FEDVOX_CACHE": folder / "cache",
            "FEDVOX_DEVICE": "cpu",
            "FEDVOX_RUNNER_MEMORY": "4g",
            # As many threads as the simulation that the model is compared with: sums depend on their order.
            "FEDVOX_RUNNER_CPUS": 1,
            "FEDVOX_TESTS": REPOSITORY / "tests",
        }
        super().__init__(machine, folder, "site", settings, overlay)

    def join(self) -> float:
        """Approves and starts; the seconds from ``up`` until both halves wait for the federation."""
        self.approve()
        began = time.monotonic()
        self.compose("up", "-d")
        self.wait_for_line("courier", "connected to the server")
        self.wait_for_line("runner", "ready for tasks")
        return time.monotonic() - began

    @property
    def courier(self) -> StateFolder:
        """The courier's own files; those of the runner are the federation's ``state``."""
        return StateFolder(self.volume("courier"))

    def approve(self) -> None:
        """As the hospital's README says."""
        self.compose("run", "--rm", "-T", "runner", "approve", KIT, STATE, "--user", "Dr. Example")


class Coordinator(Stack):
    """The server's containers."""

    def __init__(self, machine: Machine, made: Federation) -> None:
        give(made.kits / "server")
        settings = {
            "FEDVOX_PROJECT": "fedvox-test-server",
            "FEDVOX_SERVER_IMAGE": SERVER,
            "FEDVOX_KIT": made.kits / "server",
            "FEDVOX_LISTEN": made.port,
            "FEDVOX_SERVER_MEMORY": "4g",
        }
        super().__init__(machine, made.folder, "server", settings)

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.volume("state") / "run"

    def start(self) -> None:
        """Until it waits for sites."""
        self.compose("up", "-d")
        self.wait_for_line("server", "waiting for sites")


@contextmanager
def removed_at_the_end(*stacks: Stack) -> Iterator[None]:
    """Removes what is left of an earlier run, and what this one leaves."""
    with ExitStack() as todo:
        for stack in stacks:
            stack.down()
            todo.callback(stack.down)
        yield


def give(*folders: Path) -> None:
    """Makes files the containers' account's."""
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, UID, UID)


def own_address() -> str:
    """An address of this machine that containers reach, too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        address: str = probe.getsockname()[0]
        return address
