"""SuperNode and runner of a site, each by itself: in containers of their own, or under accounts of their own.

SuperNode has the network and the site's key, and sees no scan. The runner has the scans, and needs no network but its
way to SuperNode. Each keeps a state folder of its own: what the site has decided, and its log of what left, are the
runner's, out of the reach of whoever might break into SuperNode from outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from client import preflight
from client.preflight import Item
from client.site_state import StateFolder
from client.start import SiteOptions, look_at_data, look_at_server, runner_process, supernode_process
from client.upkeep import Say, Upkeep, see_to
from common.config import load_federation
from common.network_config import read_kit


@dataclass(frozen=True)
class SupernodeOptions:
    """What the command line decides for SuperNode.

    kit: with the site's key. state: SuperNode's own files. listen: address and port for the runner.
    secret: file with the secret that the runner has too. health: host:port where it tells its health; empty: nowhere.
    """

    kit: Path
    state: Path
    listen: tuple[str, int]
    secret: Path
    health: str = ""


@dataclass(frozen=True)
class RunnerOptions:
    """What the command line decides for the runner.

    site: data and all else. supernode: host:port where SuperNode listens. secret: file with the secret that it has too.
    """

    site: SiteOptions
    supernode: str
    secret: Path


def look_around_supernode(options: SupernodeOptions) -> Iterator[Item]:
    """Checks what SuperNode needs, one item after another."""
    kit, config = read_kit(options.kit, "site"), load_federation(options.kit / "federation.yaml")
    yield preflight.check_version()
    yield preflight.check_kit(options.kit, kit, config)
    yield preflight.check_secret(options.secret)
    yield from look_at_server(options.kit, kit)
    yield preflight.check_disk({"SuperNode's files": options.state})


def look_around_runner(options: RunnerOptions) -> Iterator[Item]:
    """Checks what the runner needs, one item after another; asks nobody on a network."""
    kit, config = read_kit(options.site.kit, "site"), load_federation(options.site.kit / "federation.yaml")
    yield preflight.check_version()
    yield preflight.check_federation(options.site.kit, kit, config)
    yield preflight.check_no_key(options.site.kit)
    yield preflight.check_secret(options.secret)
    yield from look_at_data(options.site, kit, config)


def start_supernode(options: SupernodeOptions, say: Say) -> int:
    """Runs SuperNode until SIGTERM or Ctrl-C.

    Raises:
        PreflightError: an item of the preflight stands in the way.
        AlreadyRunningError: it runs already.
    """
    folder = StateFolder(options.state)
    kit, config = read_kit(options.kit, "site"), load_federation(options.kit / "federation.yaml")
    with folder.locked():
        see_to(look_around_supernode(options), say)
        child = supernode_process(options.kit, kit, folder, options.listen, options.secret, options.health)
        line = f"connected to the server: site {kit.site} of {config.name}"
        Upkeep(folder, [child], "supernode", line, say, options.health).run()
    return 0


def start_runner(options: RunnerOptions, say: Say) -> int:
    """Runs the runner until SIGTERM or Ctrl-C.

    Raises:
        PreflightError: an item of the preflight stands in the way.
        AlreadyRunningError: it runs already.
    """
    folder = StateFolder(options.site.state)
    kit, config = read_kit(options.site.kit, "site"), load_federation(options.site.kit / "federation.yaml")
    with folder.locked():
        see_to(look_around_runner(options), say)
        child = runner_process(options.site, folder, options.supernode, options.secret)
        line = f"ready for tasks: site {kit.site} of {config.name}"
        Upkeep(folder, [child], "runner", line, say).run()
    return 0
