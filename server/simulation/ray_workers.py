"""Ray actors that hold simulated sites, on this machine or on a cluster.

A site stays with one worker. A worker opens its sites once, keeps their scans and one network, and answers for them one
after another. Ray starts a worker that died anew and asks it again.
"""

from __future__ import annotations

import math
import os
import resource
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from flwr.app import Message, UserConfig

import common
from client.runner.client_app import SiteWeights, make_client_app
from common.errors import ConfigError, FedvoxError
from common.formatting import counted
from common.system.logs import log_to_file
from common.weights.store import FileStore, MissingWeightsError
from server.simulation.simulated_sites import SimulatedSites
from server.simulation.virtual_grid import node_contexts

START_SECONDS = 600
_CONNECT_SECONDS = 10
_RESTARTS = 5
_OBJECT_STORE_BYTES = 100 * 2**20
"""Messages have a kilobyte; weights travel as files."""


@dataclass(frozen=True)
class Shared:
    """Folders that all machines of a cluster can read under the same names.

    Attributes
    ----------
    weights
        Holds the weights that servers and sites exchange.
    token
        Digest of a file in ``weights``, by which a worker checks that it sees the same folder.
    log
        Where causes of failures go.
    """

    weights: Path
    token: str
    log: Path


@dataclass(frozen=True)
class Share:
    """What a worker takes of a machine: processor cores, and GPUs or a fraction of one."""

    cpus: float
    gpus: float


class Worker:
    """Answers for some sites, in a process of its own."""

    def __init__(self, sites: SimulatedSites, run_id: int, nodes: dict[int, UserConfig], shared: Shared) -> None:
        self._data, self._shared = sites.data, shared
        store = FileStore(shared.weights)
        self._app = make_client_app(sites, SiteWeights(store, store))
        self._contexts = node_contexts(run_id, nodes)
        self._log = ExitStack()  # until the process ends
        self._log.enter_context(log_to_file(shared.log))

    def complaint(self, version: str) -> str | None:
        """Return why this machine cannot work on the sites; None if it can."""
        if version != common.__version__:
            return f"has Fedvox {common.__version__}, and the server {version}; install the same version"
        try:
            FileStore(self._shared.weights).get(self._shared.token)
        except MissingWeightsError:
            return (
                f"cannot read {self._shared.weights}; put --out on a disk that all machines share under the same path"
            )
        if not self._data.is_dir():
            return f"cannot read {self._data}; put --data where all machines find it under the same path"
        return None

    def answer(self, message: Message) -> Message:
        """Answer a message to one of the sites."""
        return self._app(message, self._contexts[message.metadata.dst_node_id])

    def largest_memory(self) -> int:
        """Return the most memory that the process has taken so far, in bytes, mapped files included."""
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Use the Ray cluster at ``address`` or ``$RAY_ADDRESS``, or else start Ray on this machine, for a block.

    Raises
    ------
    ConfigError
        There is no cluster at the address.
    FedvoxError
        Ray did not start on this machine.
    """
    where = address or os.environ.get("RAY_ADDRESS")
    # Ray would otherwise report on its use over the internet.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # The default of later versions, of which this one would tell.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if where is None:
        quiet |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    if where is not None:
        _require_answer(where)
    try:
        ray.init(address=where or "local", **quiet)
    except Exception as error:  # Ray raises whatever it meets
        reason = " ".join(str(error).split())[:300]
        if where is None:
            raise FedvoxError(f"Ray did not start here ({reason}); try again, or use --engine inline") from error
        raise ConfigError(f"Ray cluster {where}: cannot be used ({reason}); correct --ray-address") from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Refuse an address at which nobody listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"Ray cluster {address}: cannot be reached ({error}); correct --ray-address") from None


def share_of(sites: int, cpus: float | None, gpus: float | None) -> Share:
    """Return what each worker takes, so that as many sites as possible work at once; see ``start_workers``.

    Parameters
    ----------
    sites
        How many sites there are.
    cpus, gpus
        What the federation file says; None divides all that the cluster has.
    """
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # -- Ray's
    cores = max(1, int(have.get("CPU", 1)))
    at_once = min(sites, cores if cpus is None else max(1, int(cores / cpus)))
    return Share(
        cpus=float(max(1, cores // at_once)) if cpus is None else cpus,
        gpus=equal_part(int(have.get("GPU", 0)), at_once) if gpus is None else gpus,
    )


def equal_part(gpus: int, at_once: int) -> float:
    """Return what each of so many workers gets of these GPUs: at most one, and a fraction that divides one evenly."""
    return 1 / max(1, math.ceil(at_once / gpus)) if gpus else 0.0


def places(share: Share) -> int:
    """Return how many workers the cluster has room for."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # -- Ray's
    return sum(room_for(share, node["Resources"]) for node in nodes if node["Alive"])


def room_for(share: Share, have: Mapping[str, float]) -> int:
    """Return how many workers a machine has room for; a fraction of a GPU is never made of pieces of two."""
    rooms = [int(have.get("CPU", 0) / share.cpus + 1e-9)]
    if share.gpus > 0:
        gpus = int(have.get("GPU", 0))
        rooms.append(gpus * int(1 / share.gpus + 1e-9) if share.gpus < 1 else int(gpus / share.gpus))
    return min(rooms)


def start_workers(
    sites: SimulatedSites, run_id: int, nodes: dict[int, UserConfig], share: Share, shared: Shared
) -> list[Any]:
    """Start one worker per place in the cluster, but no more than there are sites, and check that they can work.

    Raises
    ------
    ConfigError
        The cluster has no place for a worker.
    FedvoxError
        A worker did not start, or cannot work.
    """
    count = min(places(share), len(nodes))
    if count == 0:
        raise ConfigError(
            f"the Ray cluster has no machine with {share.cpus:g} processor cores and {share.gpus:g} GPUs; "
            "lower simulation.cpus_per_site or simulation.gpus_per_site"
        )
    actor: Any = ray.remote(Worker).options(
        num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=_RESTARTS, max_task_retries=_RESTARTS
    )
    workers = [actor.remote(sites, run_id, nodes, shared) for _ in range(count)]
    waiting = [worker.complaint.remote(common.__version__) for worker in workers]
    try:
        complaints = ray.get(waiting, timeout=START_SECONDS)
    except ray.exceptions.GetTimeoutError:
        raise FedvoxError(
            f"Ray did not start {counted(count, 'worker')} within {START_SECONDS} s; is the cluster at work for others?"
        ) from None
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise FedvoxError(f"a Ray worker did not start: {reason}; is Fedvox installed on every machine?") from error
    for complaint in complaints:
        if complaint is not None:
            raise FedvoxError(f"a machine of the Ray cluster {complaint}")
    return workers


def divide(sizes: Sequence[int], workers: int) -> list[int]:
    """Return each site's worker: the largest sites first, each to the worker that has least to do.

    Parameters
    ----------
    sizes
        Number of scans of each site.
    workers
        How many workers there are.
    """
    load = [0] * workers
    chosen = [0] * len(sizes)
    for site in sorted(range(len(sizes)), key=lambda site: (-sizes[site], site)):
        chosen[site] = min(range(workers), key=lambda worker: (load[worker], worker))
        # Training takes as long at every site; one more for it keeps the numbers of sites even.
        load[chosen[site]] += sizes[site] + 1
    return chosen


def largest_memory(workers: Sequence[Any]) -> int | None:
    """Return the memory in bytes of the worker that took most; None if one is dead."""
    try:
        return int(max(ray.get([worker.largest_memory.remote() for worker in workers])))
    except ray.exceptions.RayError:
        return None
