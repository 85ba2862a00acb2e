"""Preparation of a simulation: data, fingerprint, plan, sites and preprocessed scans."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.config.federation import FederationConfig, as_json
from common.config.labels import check_class_weights
from common.errors import ConfigError, DataError
from common.formatting import counted
from common.imaging.cache.case_cache import CaseCache
from common.imaging.datasets.comparison import Wanted, compare
from common.imaging.datasets.dataset import Dataset, find_dataset
from common.imaging.datasets.patients_csv import read_patients, with_patients
from common.imaging.phantoms.dataset import write_phantom_dataset
from common.plan.plan import Plan
from common.planning.fingerprint import Fingerprint, fingerprint_dataset
from common.planning.resolve import resolve_plan, with_privacy
from common.seeds import seed_of
from common.system.files import new_folder
from common.system.state_file import CHANGED, MISSING, digest_of_file, put_aside
from server.progress.events import EventSink, Notice, Stage
from server.run_store.folder import PARTITION_FILE, PLAN_FILE, RunFolder
from server.simulation.data_record import DATA_FILE, record_data
from server.simulation.partition import SitePartition, make_partition, read_partition

PHANTOMS = "phantoms"
PHANTOM_DIGESTS = "phantoms.sha256"
"""For ``sha256sum --check``."""


@dataclass(frozen=True)
class Arranged:
    """Plan and sites that were decided on for several runs, in place of those that a run derives from its data.

    Attributes
    ----------
    pooled
        Whether all patients are trained on in one place.
    """

    plan: Plan
    partition: SitePartition
    pooled: bool = False


def find_or_make_data(config: FederationConfig, data: Path | None, folder: RunFolder, emit: EventSink) -> Path:
    """Return the given dataset folder, or make phantoms in the run folder, anew if a file of theirs was changed.

    Raises
    ------
    ConfigError
        If no folder is given and the federation file has no phantoms.
    """
    if data is not None:
        return data
    phantom = config.simulation.phantom if config.simulation else None
    if phantom is None:
        raise ConfigError(
            "--data: is missing; give the folder of a dataset (with imagesTr/ and labelsTr/, or images/ and labels/), "
            "or add simulation.phantom: {} to the federation file to use synthetic volumes"
        )
    root, count = folder.path / PHANTOMS, counted(sum(phantom.cases_per_site), "phantom")
    if not root.exists():
        emit(Notice(f"no data given: making {count} (synthetic volumes, not patients)"))
    elif (problem := damage_of_phantoms(folder)) is not None:
        aside = put_aside(root)
        emit(Notice(f"{problem}; making {count} anew{f', the old ones are now {aside.name}' if aside else ''}"))
    else:
        return root
    with new_folder(root) as made:
        write_phantom_dataset(
            made, phantom.cases_per_site, phantom.seed, phantom.shape, phantom.anatomy, phantom.spacing_mm
        )
        # First, so that there are never phantoms without digests.
        folder.write_text(PHANTOM_DIGESTS, "".join(f"{digest}  {name}\n" for name, digest in _digests(made).items()))
    return root


def _digests(root: Path) -> dict[str, str]:
    """Return the digest of every file of the phantoms in a folder, by its path in the run folder."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {f"{PHANTOMS}/{path.relative_to(root).as_posix()}": digest_of_file(path) for path in files}


def damage_of_phantoms(folder: RunFolder) -> str | None:
    """Return a sentence about the first file of the phantoms that is not as it was written; None if all are."""
    listed = folder.path / PHANTOM_DIGESTS
    try:
        lines = [line.split("  ", 1) for line in listed.read_text(encoding="utf-8").splitlines()]
        written = {name: digest for digest, name in lines}
    except (OSError, ValueError):
        return f"{listed}: {MISSING} or cannot be read"
    found = _digests(folder.path / PHANTOMS)
    different = [name for name in sorted({*written, *found}) if written.get(name) != found.get(name)]
    return f"{folder.path / different[0]}: {CHANGED}" if different else None


def plan_and_partition(
    config: FederationConfig,
    dataset: Dataset,
    folder: RunFolder,
    cache: Path | None,
    emit: EventSink,
    arranged: Arranged | None = None,
) -> None:
    """Write those of ``plan.json``, ``partition.json`` and ``data.json`` that are missing, and fill the cache.

    Parameters
    ----------
    config
        The federation.
    dataset
        The cases that take part.
    folder
        The run folder; files that are there stay as they are.
    cache
        Folder for all preprocessed scans; None preprocesses none.
    emit
        Takes notices and progress.
    arranged
        The plan and the partition to write; None derives both from the data.

    Raises
    ------
    ConfigError
        If the configuration does not fit the data.
    DataError
        If a scan cannot be used.
    """
    if arranged is not None:
        plan, partition = with_privacy(arranged.plan, config), arranged.partition
    else:
        plan, fingerprint = _plan_of(config, dataset, cache, emit)
        file = folder.path / PARTITION_FILE
        partition = read_partition(file) if file.exists() else _partition_of(config, dataset, fingerprint)
    _fill_cache(dataset, plan, partition, cache, emit)
    for name, content in ((PLAN_FILE, plan), (PARTITION_FILE, partition)):
        if not (folder.path / name).exists():
            folder.write_text(name, as_json(content))
    if not (folder.path / DATA_FILE).exists():
        record_data(folder, config, dataset, cache)


def find_simulated_dataset(config: FederationConfig, data: Path) -> Dataset:
    """Find the dataset of a simulation and assign its cases to patients.

    Raises
    ------
    DataError
        If the folder or its table of patients cannot be used.
    """
    dataset, problems = find_dataset(data).with_channels(config.channels, {})
    for problem in problems:
        if problem.severity == "error":
            raise DataError(problem.path, problem.text)
    if dataset.structures:
        # Which segments are labels depends on the federation; what contradicts it is told where the plan is made.
        dataset, _ = compare(
            dataset, Wanted.of(config.label_names, config.label_codes, config.channels, config.modality)
        )
    table = config.simulation.patients if config.simulation else None
    if table is None:
        return dataset
    names = [case.name for case in dataset.cases]
    patients = read_patients(data / table.file, names, (), table.column, table.case_column)
    return replace(dataset, cases=tuple(with_patients(dataset.cases, patients)))


def examine(
    config: FederationConfig, data: Path, cache: Path | None, emit: EventSink
) -> tuple[Dataset, Plan, SitePartition]:
    """Derive the plan and the partition from the data, without preprocessing any scan.

    Raises
    ------
    ConfigError
        If the configuration does not fit the data.
    DataError
        If a scan cannot be used.
    """
    dataset = find_simulated_dataset(config, data)
    plan, fingerprint = _plan_of(config, dataset, cache, emit)
    return dataset, plan, _partition_of(config, dataset, fingerprint)


def _plan_of(
    config: FederationConfig, dataset: Dataset, cache: Path | None, emit: EventSink
) -> tuple[Plan, Fingerprint]:
    _, problems = compare(dataset, Wanted.of(config.label_names, config.label_codes, config.channels, config.modality))
    for problem in problems:
        if problem.severity == "error":
            raise DataError(problem.path, problem.text)
        emit(Notice(f"{problem.path}: {problem.text}"))
    labels = _labels_of(config, dataset)
    workers = os.cpu_count() or 1

    def report(done: int, total: int) -> None:
        emit(Stage("reading scans", done, total))

    fingerprint = fingerprint_dataset(dataset.cases, labels, workers, report, cache)
    if fingerprint.missing_labels:
        value = fingerprint.missing_labels[0]
        raise ConfigError(f"labels.{value}: no case in {dataset.root} has label {value} ({labels[value]}); remove it")
    return resolve_plan(config, fingerprint, config.channels or dataset.channels, labels), fingerprint


def _partition_of(config: FederationConfig, dataset: Dataset, fingerprint: Fingerprint) -> SitePartition:
    if config.simulation is None:
        raise ConfigError("simulation: is missing")
    names = [case.name for case in dataset.cases]
    volumes = {
        name: sum(values[index] for values in fingerprint.label_volumes_ml.values()) for index, name in enumerate(names)
    }
    simulation = config.simulation
    owners = {case.name: case.owner for case in dataset.cases}
    partition = make_partition(simulation.partition, dataset.root, names, volumes, config.seed, owners)
    return _describe_sites(partition, fingerprint, names)


def _labels_of(config: FederationConfig, dataset: Dataset) -> dict[int, str]:
    labels = config.label_names or dataset.labels
    if not labels:
        raise ConfigError(f"labels: is missing, and {dataset.root} declares none; add labels: {{1: name, ...}}")
    if sorted(labels) != list(range(1, len(labels) + 1)):
        raise ConfigError(f"labels: must be 1, 2, 3, ... without gaps, not {', '.join(map(str, sorted(labels)))}")
    try:
        check_class_weights(config.training.class_weights, len(labels))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    unlabelled = [case for case in dataset.cases if case.label is None]
    if unlabelled:
        raise ConfigError(
            f"{dataset.root}: case {unlabelled[0].name} has no label map; training needs one for every case"
        )
    return labels


def _describe_sites(partition: SitePartition, fingerprint: Fingerprint, names: Sequence[str]) -> SitePartition:
    """Add each site's median spacing, intensity and labelled volume to its description."""
    index = {name: position for position, name in enumerate(names)}
    volumes = np.sum(list(fingerprint.label_volumes_ml.values()), axis=0)
    sites = {}
    for name, site in partition.sites.items():
        members = [index[case] for case in (*site.train, *site.validation)]
        spacing = " x ".join(f"{mm:.3g}" for mm in np.median([fingerprint.spacings[i] for i in members], axis=0))
        parts = [site.differs, f"{spacing} mm", f"labelled volume {np.median(volumes[members]):.3g} ml"]
        if intensities := [fingerprint.medians[i][0] for i in members if fingerprint.medians[i]]:
            parts.append(f"intensity within labels {np.median(intensities):.3g}")
        sites[name] = site.model_copy(update={"differs": "; ".join(part for part in parts if part)})
    return partition.model_copy(update={"sites": sites})


def _fill_cache(dataset: Dataset, plan: Plan, partition: SitePartition, cache: Path | None, emit: EventSink) -> None:
    """Preprocess every case once, on all cores. Without a cache folder the sites do so when they are opened."""
    if cache is None:
        return
    cases = {case.name: case for case in dataset.cases}
    store = CaseCache(cache, plan.preprocessing, plan.labels)
    done, total = 0, sum(len(site.train) + len(site.validation) for site in partition.sites.values())
    for name, site in partition.sites.items():
        members = [cases[case] for case in (*site.train, *site.validation)]

        def report(count: int, _: int, before: int = done) -> None:
            emit(Stage("preparing scans", before + count, total))

        store.prepare(members, os.cpu_count() or 1, report, site.shift, seed_of(partition.seed, name))
        done += len(members)
