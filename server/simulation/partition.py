"""Partition one dataset into sites.

All methods are seeded and assign whole patients: a patient's scans stay together. A run can be repeated exactly from
its ``partition.json``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError, model_validator

from common.config.simulation import (
    ColumnPartition,
    IidPartition,
    LabelPartition,
    Partition,
    QuantityPartition,
    ScannerPartition,
)
from common.errors import ConfigError, DataError
from common.formatting import counted
from common.imaging.datasets.patients_csv import read_column
from common.plan.base import Frozen
from common.plan.describe_errors import describe_validation_error
from common.plan.scanner_shift import ScannerShift

Groups = dict[str, list[str]]


class SiteCases(Frozen):
    """The cases of one site.

    Attributes
    ----------
    shift
        How this site's scanner changes images; None leaves them unchanged.
    differs
        Short description of what sets the site apart.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    shift: ScannerShift | None = None
    differs: str = ""


class SitePartition(Frozen):
    """The cases of every site; rejects duplicate cases and sites without training or validation cases."""

    method: str
    seed: int
    sites: dict[str, SiteCases]

    @model_validator(mode="after")
    def _check(self) -> SitePartition:
        home: dict[str, str] = {}
        for name, site in self.sites.items():
            if not site.train:
                raise ValueError(f"site {name} has no training patient; use fewer sites or a larger minimum")
            if not site.validation:
                raise ValueError(f"site {name} has no validation patient; use fewer sites or a larger minimum")
            for case in (*site.train, *site.validation):
                if case in home:
                    raise ValueError(f"case {case} is listed twice (sites {home[case]} and {name}); keep one")
                home[case] = name
        return self


def read_partition(path: Path) -> SitePartition:
    """Read ``partition.json``.

    Raises
    ------
    ConfigError
        If it cannot be read or is invalid.
    """
    try:
        return SitePartition.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, SitePartition, str(path))) from None


def make_partition(
    partition: Partition,
    root: Path,
    cases: Sequence[str],
    foreground_volumes: Mapping[str, float],
    seed: int,
    owners: Mapping[str, str] | None = None,
) -> SitePartition:
    """Distribute the cases of a dataset to sites.

    Parameters
    ----------
    partition
        The method and its settings.
    root
        The dataset folder, which holds the CSV files.
    cases
        Names of all cases.
    foreground_volumes
        Labelled volume of each case in ml, for label skew.
    seed
        Seed of all random draws.
    owners
        Patient of each case; None makes every case a patient of its own.

    Raises
    ------
    ConfigError
        If a site would have no training or validation patients, or a table does not fit.
    """
    rng = np.random.default_rng([seed, 0x5173])
    groups: Groups = {}
    for case in sorted(cases):
        groups.setdefault(case if owners is None else owners[case], []).append(case)
    sites, differs = _assign(partition, root, groups, foreground_volumes, rng)
    shifts = _shifts(partition, list(sites), rng)
    result = {}
    for name, members in sites.items():
        train, validation = _split(name, members, partition.validation_fraction, rng)
        result[name] = SiteCases(
            train=tuple(sorted(case for patient in train for case in groups[patient])),
            validation=tuple(sorted(case for patient in validation for case in groups[patient])),
            shift=shifts[name],
            differs="; ".join(part for part in (differs[name], _describe_shift(shifts[name])) if part),
        )
    return SitePartition(method=partition.method, seed=seed, sites=result)


def next_fold(partition: SitePartition, owners: Mapping[str, str], fold: int) -> SitePartition:
    """Let every site validate on other patients of its own; where a patient is, and its scanner, stay.

    The patients of a site are put in an order that begins with those of its validation split. Fold ``i`` validates on
    the ``i``-th block of that size, from the beginning again after the last: with a share of 0.2, folds 0 to 4 are a
    five-fold cross-validation.

    Parameters
    ----------
    partition
        Fold 0.
    owners
        Patient of each case.
    fold
        The number of the fold.
    """
    rng = np.random.default_rng([partition.seed, 0xF01D])
    sites = {}
    for name, site in partition.sites.items():
        members: Groups = {}
        for case in (*site.train, *site.validation):
            members.setdefault(owners[case], []).append(case)
        first = sorted({owners[case] for case in site.validation})
        order = first + [str(patient) for patient in rng.permutation(sorted(members.keys() - set(first)))]
        chosen = {order[(fold * len(first) + place) % len(order)] for place in range(len(first))}
        parts = [
            tuple(sorted(case for patient in group for case in members[patient]))
            for group in (members.keys() - chosen, chosen)
        ]
        sites[name] = site.model_copy(update={"train": parts[0], "validation": parts[1]})
    return partition.model_copy(update={"sites": sites})


def _assign(
    partition: Partition,
    root: Path,
    groups: Groups,
    foreground_volumes: Mapping[str, float],
    rng: np.random.Generator,
) -> tuple[Groups, dict[str, str]]:
    patients = [str(patient) for patient in rng.permutation(sorted(groups))]
    if isinstance(partition, ColumnPartition):
        sites = _by_column(partition, root, groups)
        return sites, {name: f"{partition.column} = {name}" for name in sites}
    if partition.sites > len(patients) // 2:
        raise ConfigError(
            f"simulation.partition.sites: for {counted(partition.sites, 'site')} at least {2 * partition.sites} "
            "patients are needed (for each one to train on and one to validate on), and the data has "
            f"{len(patients)}; use fewer sites"
        )
    if isinstance(partition, IidPartition | ScannerPartition):
        shares = [list(part) for part in np.array_split(np.array(patients), partition.sites)]
        words = ["random share" if isinstance(partition, IidPartition) else ""] * partition.sites
    elif isinstance(partition, QuantityPartition):
        shares = _by_quantity(partition, patients, rng)
        words = [f"{len(share)} of {counted(len(patients), 'patient')}" for share in shares]
    else:
        volumes = {patient: sum(foreground_volumes[case] for case in groups[patient]) for patient in patients}
        shares = _by_label(partition, patients, volumes, rng)
        words = ["share by labelled volume"] * partition.sites
    names = [f"site-{index + 1}" for index in range(partition.sites)]
    sites = {name: sorted(str(patient) for patient in share) for name, share in zip(names, shares, strict=True)}
    return sites, dict(zip(names, words, strict=True))


def _by_column(partition: ColumnPartition, root: Path, groups: Groups) -> Groups:
    try:
        values = read_column(root / partition.file, partition.case_column, partition.column)
    except DataError as error:
        raise ConfigError(str(error)) from None
    sites: Groups = {}
    for patient, cases in groups.items():
        found = {_slug(values.get(case, ("", 0))[0]) for case in cases}
        if found == {""} or "" in found:
            raise ConfigError(f"{root / partition.file}: column {partition.column} has no value for case {cases[0]}")
        if len(found) > 1:
            raise ConfigError(
                f"{root / partition.file}: patient {patient} has scans in several sites ({', '.join(sorted(found))})"
            )
        sites.setdefault(found.pop(), []).append(patient)
    return dict(sorted(sites.items()))


def _by_quantity(partition: QuantityPartition, patients: list[str], rng: np.random.Generator) -> list[list[str]]:
    """Draw site sizes: the minimum plus a Dirichlet share of the rest, rounded by largest remainders."""
    free = len(patients) - partition.minimum * partition.sites
    if free < 0:
        raise ConfigError(
            f"simulation.partition.minimum: {counted(partition.sites, 'site')} of at least {partition.minimum} "
            f"patients: {partition.sites * partition.minimum} are needed, and the data has {len(patients)}; lower one"
        )
    sizes = partition.minimum + _round_shares(free, rng.dirichlet([partition.alpha] * partition.sites))
    return [list(share) for share in np.split(np.array(patients), np.cumsum(sizes)[:-1])]


def _by_label(
    partition: LabelPartition, patients: list[str], volumes: Mapping[str, float], rng: np.random.Generator
) -> list[list[str]]:
    """Bin patients by labelled volume, then distribute each bin over the sites by its own Dirichlet draw.

    After Hsu et al. 2019 (arXiv 1909.06335), with bins of foreground volume in place of classes. Sites below the
    minimum then take patients, one by one, from the largest site.
    """
    if partition.minimum * partition.sites > len(patients):
        raise ConfigError(
            f"simulation.partition.minimum: {counted(partition.sites, 'site')} of at least {partition.minimum} "
            f"patients: {partition.sites * partition.minimum} are needed, and the data has {len(patients)}; lower one"
        )
    ordered = sorted(patients, key=lambda patient: (volumes[patient], patient))
    shares: list[list[str]] = [[] for _ in range(partition.sites)]
    for members in np.array_split(np.array(ordered), partition.bins):
        sizes = _round_shares(len(members), rng.dirichlet([partition.alpha] * partition.sites))
        parts = np.split(rng.permutation(members), np.cumsum(sizes)[:-1])
        for share, part in zip(shares, parts, strict=True):
            share.extend(str(patient) for patient in part)
    while min(map(len, shares)) < partition.minimum:
        min(shares, key=len).append(max(shares, key=len).pop())
    return shares


def _round_shares(total: int, fractions: np.ndarray) -> np.ndarray:
    exact = fractions * total
    sizes: np.ndarray = np.floor(exact).astype(int)
    order = np.argsort(-(exact - sizes), kind="stable")
    sizes[order[: total - sizes.sum()]] += 1
    return sizes


def _split(name: str, members: list[str], fraction: float, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    if len(members) < 2:
        raise ConfigError(
            f"site {name} has {counted(len(members), 'patient')} and needs two, to train on and to validate on; "
            "use fewer sites, a larger minimum, or another column"
        )
    shuffled = [str(patient) for patient in rng.permutation(sorted(members))]
    count = min(max(1, int(fraction * len(shuffled))), len(shuffled) - 1)
    return shuffled[count:], shuffled[:count]


def _shifts(partition: Partition, names: list[str], rng: np.random.Generator) -> dict[str, ScannerShift | None]:
    if isinstance(partition, ScannerPartition) and partition.shifts is not None:
        return dict(zip(names, partition.shifts, strict=True))
    if isinstance(partition, LabelPartition | ScannerPartition) and partition.strength is not None:
        strength = partition.strength
        return {name: _draw_shift(strength, rng) for name in names}
    return dict.fromkeys(names)


def _draw_shift(strength: float, rng: np.random.Generator) -> ScannerShift:
    return ScannerShift(
        gamma=round(float(np.exp(strength * rng.uniform(-0.5, 0.5))), 3),
        bias_field=round(float(min(strength * rng.uniform(0.0, 0.5), 0.9)), 3),
        noise=round(float(strength * rng.uniform(0.0, 0.05)), 4),
        resolution_mm=round(float(1.0 + strength * rng.uniform(0.0, 1.5)), 2),
    )


def _describe_shift(shift: ScannerShift | None) -> str:
    if shift is None:
        return ""
    neutral = ScannerShift()
    parts = [
        f"{name.replace('_', ' ')} {value:g}"
        for name, value in shift.model_dump().items()
        if value is not None and value != getattr(neutral, name)
    ]
    return "scanner: " + (", ".join(parts) or "unchanged")


def _slug(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-")
