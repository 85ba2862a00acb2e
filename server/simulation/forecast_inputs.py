"""Inputs of ``plan-privacy`` beyond the federation file: patients of each site and size of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from common.config.federation import FederationConfig
from common.config.simulation import ColumnPartition, IidPartition, PhantomConfig, QuantityPartition, ScannerPartition
from common.errors import ConfigError
from common.formatting import counted
from common.imaging.phantoms.dataset import phantom_labels, phantom_sites
from common.models.trainable import train_only
from common.models.unet3d import build_model
from common.plan.base import Kernel, Stride
from common.plan.plan import ModelPlan
from common.planning.planner import plan_network
from common.planning.resolve import plan_from_config
from server.progress.events import EventSink
from server.simulation.data_setup import examine
from server.simulation.partition import make_partition


@dataclass(frozen=True)
class PrivacyInputs:
    """Training patients of each site, and number of all and of trained parameters of the network.

    Attributes
    ----------
    notes
        One sentence for each assumption.
    """

    patients: Mapping[str, int]
    parameters: int
    trained_parameters: int
    notes: tuple[str, ...]


def find_inputs(
    config: FederationConfig,
    counts: Sequence[int] | None,
    data: Path | None,
    cache: Path | None,
    emit: EventSink,
) -> PrivacyInputs:
    """Find the patients: from the given counts, else from the dataset's partition, else from the phantoms.

    Parameters
    ----------
    config
        The federation.
    counts
        Training patients of each site, without validation patients.
    data
        Dataset folder, read for its plan and its partition.
    cache
        Folder that caches what was read.
    emit
        Receives the progress of reading.

    Raises
    ------
    ConfigError
        If the counts do not fit the federation, or no source gives the number of patients.
    DataError
        If a scan in ``data`` cannot be used.
    """
    if data is not None:
        patients, model = _from_data(config, data, cache, emit)
        given = dict(patients) if counts is None else _named(config, counts)
        return _inputs(config, given, model, ())
    patients = _from_phantoms(config) if counts is None else _named(config, counts)
    model, notes = _model_without_data(config)
    return _inputs(config, patients, model, notes)


def _inputs(
    config: FederationConfig, patients: Mapping[str, int], model: ModelPlan, notes: tuple[str, ...]
) -> PrivacyInputs:
    with torch.device("meta"):
        network = build_model(model)
    trained = train_only(network, config.training.trainable)
    return PrivacyInputs(patients, sum(parameter.numel() for parameter in network.parameters()), trained, notes)


def _named(config: FederationConfig, counts: Sequence[int]) -> dict[str, int]:
    if not counts or min(counts) < 1:
        raise ConfigError("--patients: give the number of training patients of each site, such as 117,37,23")
    names = config.network.sites if config.network else [f"site-{index + 1}" for index in range(len(counts))]
    if len(names) != len(counts):
        raise ConfigError(
            f"--patients: {counted(len(counts), 'number')}, but network.sites has {counted(len(names), 'site')}"
        )
    return dict(zip(names, counts, strict=True))


def _from_data(
    config: FederationConfig, data: Path, cache: Path | None, emit: EventSink
) -> tuple[dict[str, int], ModelPlan]:
    if config.simulation is None:
        raise ConfigError("--data: needs simulation.partition in the federation file; or give --patients instead")
    dataset, plan, partition = examine(config, data, cache, emit)
    owners = {case.name: case.owner for case in dataset.cases}
    patients = {name: len({owners[case] for case in site.train}) for name, site in partition.sites.items()}
    return patients, plan.model


def _from_phantoms(config: FederationConfig) -> dict[str, int]:
    if config.simulation is None or config.simulation.phantom is None:
        raise ConfigError("--patients or --data: one is needed, because the federation file has no simulation.phantom")
    phantom, partition = config.simulation.phantom, config.simulation.partition
    if isinstance(partition, ColumnPartition):
        names = [site.name for site in phantom_sites(len(phantom.cases_per_site), phantom.seed)]
        counts = phantom.cases_per_site
        return {name: n - max(1, int(partition.validation_fraction * n)) for name, n in zip(names, counts, strict=True)}
    if isinstance(partition, IidPartition | ScannerPartition | QuantityPartition):
        cases = [f"{index:06d}" for index in range(_total(phantom))]
        assigned = make_partition(partition, Path(), cases, {}, config.seed)
        return {name: len(site.train) for name, site in assigned.sites.items()}
    raise ConfigError(
        "--patients: is needed, because simulation.partition depends on the scans; give the counts, or give --data"
    )


def _total(phantom: PhantomConfig) -> int:
    return sum(phantom.cases_per_site)


def _model_without_data(config: FederationConfig) -> tuple[ModelPlan, tuple[str, ...]]:
    """Plan the network from the file; assume one channel and isotropic 3 x 3 x 3 kernels where data would decide."""
    try:
        return plan_from_config(config).model, ()
    except ConfigError:
        pass
    phantom = config.simulation.phantom if config.simulation else None
    labels = config.label_names or (phantom_labels(phantom.anatomy) if phantom else None)
    if labels is None:
        raise ConfigError("labels: is missing; name every label ({1: name, ...}), or give --data")
    stages = len(config.model.channels)
    halved: Stride = (2, 2, 2)
    isotropic: Kernel = (3, 3, 3)
    strides, kernels = [(1, 1, 1), *[halved] * (stages - 1)], [isotropic] * stages
    model = plan_network(config.model, len(config.channels or ("one",)), len(labels), strides, kernels)
    return model, ("The network's size assumes isotropic scans with one channel; give --data for the exact size.",)
