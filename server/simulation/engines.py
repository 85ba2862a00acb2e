"""Engines that run simulated sites: this process, one site after another, or Ray."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flwr.app import Context, RecordDict, UserConfig
from flwr.serverapp import ServerApp

from client.runner.client_app import SiteWeights, make_client_app
from common.errors import ConfigError, FedvoxError
from common.weights.store import FileStore, MemoryStore, WeightStore
from server.rounds.round_loop import Link
from server.rounds.weight_transfer import StoreTransfer
from server.simulation.inline_grid import InlineGrid
from server.simulation.simulated_sites import SimulatedSites
from server.simulation.virtual_grid import VirtualGrid

Engine = Literal["inline", "ray"]
MakeServerApp = Callable[[Link], ServerApp]


@dataclass(frozen=True)
class RayUse:
    """What a run on Ray took: workers, the processor cores and GPUs of each, and the largest one's memory in bytes."""

    workers: int
    cpus: float
    gpus: float
    largest_memory: int | None


def run_inline(make_server_app: MakeServerApp, sites: SimulatedSites) -> None:
    """Run the apps in this process, one site after another."""
    store = MemoryStore()
    grid = InlineGrid(make_client_app(sites, SiteWeights(store, store)), _nodes(sites))
    _serve(make_server_app, sites, grid, store)


def check_engine(engine: Engine, ray_address: str | None) -> None:
    """Check that an engine can be used, without starting it.

    Raises
    ------
    ConfigError
        The address is for the other engine.
    FedvoxError
        Ray is not installed.
    """
    if engine == "inline":
        if ray_address is not None:
            raise ConfigError("--ray-address: is for --engine ray")
    elif importlib.util.find_spec("ray") is None:
        raise FedvoxError(
            "engine ray: Ray is not installed; install the extra (pip install 'fedvox[ray]') or use inline"
        )


@contextmanager
def engine_ready(engine: Engine, ray_address: str | None) -> Iterator[None]:
    """Have the engine ready for a block; inline always is.

    Parameters
    ----------
    engine
        The engine.
    ray_address
        Of a Ray cluster, such as ``ray://head:10001``; None uses ``$RAY_ADDRESS``, or starts Ray on this machine.

    Raises
    ------
    ConfigError
        There is no cluster at the address, or it is for the other engine.
    FedvoxError
        Ray is not installed.
    """
    check_engine(engine, ray_address)
    if engine == "inline":
        yield
        return
    from server.simulation.ray_workers import connected

    with connected(ray_address):
        yield


def run_on_ray(make_server_app: MakeServerApp, sites: SimulatedSites, folder: Path, log: Path) -> RayUse:
    """Run the sites in Ray workers, several at a time; ``engine_ready`` has connected to Ray.

    Parameters
    ----------
    make_server_app
        Makes the server's app.
    sites
        The sites that take part.
    folder
        Holds the weights exchanged between processes, on a disk that all machines share. Removed at the end.
    log
        File for the causes of failures at the sites.

    Returns
    -------
    RayUse
        What the run took.
    """
    from server.simulation.ray_grid import RayGrid
    from server.simulation.ray_workers import Shared, divide, largest_memory, share_of, start_workers

    settings = sites.config.simulation
    cpus, gpus = (settings.cpus_per_site, settings.gpus_per_site) if settings is not None else (None, None)
    nodes = _nodes(sites)
    store = FileStore(folder.resolve())
    try:
        share = share_of(len(nodes), cpus, gpus)
        grid = RayGrid(nodes)
        shared = Shared(folder.resolve(), store.put([secrets.token_bytes(32)]), log.resolve())
        workers = start_workers(_for_workers(sites, share.gpus), grid.run.run_id, nodes, share, shared)
        members = (sites.partition.sites[name] for name in sites.names)
        chosen = divide([len(site.train) + len(site.validation) for site in members], len(workers))
        grid.use({node: workers[worker] for node, worker in zip(nodes, chosen, strict=True)})
        _serve(make_server_app, sites, grid, store)
        return RayUse(len(workers), share.cpus, share.gpus, largest_memory(workers))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _for_workers(sites: SimulatedSites, gpus: float) -> SimulatedSites:
    """Return the sites as other processes open them: by whole paths, and on no GPU that is not theirs."""
    if gpus == 0 and sites.device == "cuda":
        raise ConfigError(
            "--device cuda: the Ray workers have no GPU; raise simulation.gpus_per_site, or leave --device out"
        )
    return replace(
        sites,
        data=sites.data.resolve(),
        cache=sites.cache.resolve() if sites.cache is not None else None,
        device="cpu" if gpus == 0 else sites.device,
    )


def _nodes(sites: SimulatedSites) -> dict[int, UserConfig]:
    count = len(sites.names)
    return {index + 1: {"partition-id": index, "num-partitions": count} for index in range(count)}


def _serve(make_server_app: MakeServerApp, sites: SimulatedSites, grid: VirtualGrid, store: WeightStore) -> None:
    context = Context(run_id=grid.run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config={})
    link = Link(StoreTransfer(store, sites.config.transport.download), make_message=grid.message)
    make_server_app(link)(grid, context)
