"""Engines that run simulated sites: this process, one site after another, or Ray."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import ConfigRecordValues, Context, RecordDict, UserConfig
from flwr.serverapp import ServerApp

from client.runner.client_app import SiteWeights, make_client_app
from common.errors import FedvoxError
from common.system.devices import choose_device
from common.weights.store import FileStore, MemoryStore, WeightStore
from server.rounds.round_loop import Link
from server.rounds.weight_transfer import StoreTransfer
from server.simulation.inline_grid import InlineGrid
from server.simulation.simulated_sites import SimulatedSites

MakeServerApp = Callable[[Link], ServerApp]


def run_inline(make_server_app: MakeServerApp, sites: SimulatedSites) -> None:
    """Run the apps in this process, one site after another."""
    names = sites.names
    nodes: dict[int, UserConfig] = {
        index + 1: {"partition-id": index, "num-partitions": len(names)} for index in range(len(names))
    }
    store = MemoryStore()
    grid = InlineGrid(make_client_app(sites, SiteWeights(store, store)), nodes)
    context = Context(run_id=grid.run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config={})
    link = Link(StoreTransfer(store, sites.config.transport.download), make_message=grid.message)
    make_server_app(link)(grid, context)


def require_ray() -> None:
    """Require Ray to be installed.

    Raises
    ------
    FedvoxError
        If it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise FedvoxError(
            "engine ray: Ray is not installed; install the extra (pip install 'fedvox[ray]') or use inline"
        )


def run_on_ray(make_server_app: MakeServerApp, sites: SimulatedSites, folder: Path) -> None:
    """Run the apps on Flower's simulation engine, several sites at a time.

    As many sites run at once as there are processor cores. They share the GPUs in equal fractions.

    Parameters
    ----------
    make_server_app
        Makes the server's app.
    sites
        The sites that take part.
    folder
        Holds the weights exchanged between processes, on a disk that all of them can read. Removed at the end.
    """
    require_ray()
    from flwr.simulation import run_simulation

    count = len(sites.names)
    processors = os.cpu_count() or 1
    at_once = min(count, processors)
    resources: dict[str, ConfigRecordValues] = {"num_cpus": max(1, processors // at_once), "num_gpus": 0.0}
    if choose_device(sites.device).type == "cuda":
        resources["num_gpus"] = torch.cuda.device_count() / at_once
    logging.getLogger("flwr").setLevel(logging.ERROR)
    store: WeightStore = FileStore(folder.resolve())
    try:
        run_simulation(
            server_app=make_server_app(Link(StoreTransfer(store, sites.config.transport.download))),
            client_app=make_client_app(sites, SiteWeights(store, store)),
            num_supernodes=count,
            backend_config={"client_resources": resources, "init_args": {"include_dashboard": False}},
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
