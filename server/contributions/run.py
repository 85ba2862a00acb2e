"""The contributions of the sites of a simulation, from its run folder and its data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from common.config.federation import load_federation
from common.errors import ConfigError
from common.system.devices import choose_device
from server.contributions.valuation import Contributions, Sampling, contributions
from server.run_store.folder import FEDERATION_FILE, PARTITION_FILE, RunFolder
from server.simulation.data_setup import PHANTOMS
from server.simulation.partition import read_partition
from server.simulation.simulated_sites import SimulatedSites


def contributions_of_run(
    run: Path,
    data: Path | None,
    cache: Path | None,
    device: str,
    sampling: Sampling,
    progress: Callable[[int, int], None],
) -> Contributions:
    """Return what each site of a simulation contributed, in mean Dice on the sites' validation scans.

    Parameters
    ----------
    run
        The run folder.
    data
        The dataset folder; None for the phantoms in the run folder.
    cache
        Folder of preprocessed scans; None keeps them in memory.
    device
        As in ``choose_device``.
    sampling
        How much is computed.
    progress
        Called with rounds done and rounds in all.

    Raises
    ------
    FedvoxError
        The folder is not one of a simulation that kept updates, or the data cannot be used.
    """
    folder = RunFolder.open(run)
    config = load_federation(run / FEDERATION_FILE)
    if config.privacy is not None:
        raise ConfigError("privacy: what a site contributed is computed from exact scores, which no private site sends")
    if data is None and not (run / PHANTOMS).is_dir():
        raise ConfigError(f"{run}: has no phantoms; give the dataset folder of the simulation (--data)")
    partition = read_partition(run / PARTITION_FILE)
    sites = SimulatedSites(config, folder.plan(), partition, data or run / PHANTOMS, cache, choose_device(device).type)
    return contributions(run, partial(sites.score, patients=sampling.patients), sampling, progress)
