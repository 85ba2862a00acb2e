"""What one site shares about its data, and the same of all sites together.

Its distributions are sums over cases, so those of several sites add up to that of their pooled data: counts, sums and
sums of squares exactly, percentiles to within a cell where no cell is suppressed. No case's own number is in it, and no
extreme value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from common.errors import ConfigError, DataError
from common.formatting import counted
from common.imaging.datasets.case import Case
from common.imaging.threads import CountProgress
from common.plan.base import Axes3, Frozen, MinimumCell, Spacing, Switch, Whole
from common.plan.describe_errors import describe_validation_error
from common.plan.plan import IntensityPlan
from common.planning.fingerprint import SAMPLES_PER_CASE, Measurements, measure_cases
from common.planning.histogram import EXTENT, HOUNSFIELD, SPACING, Distribution, Scale, add, distribution

Axes = tuple[Distribution, Distribution, Distribution]
MOST_CHANNELS, MOST_LABELS = 64, 1024


class SharedFingerprint(Frozen):
    """Sums over the cases of one site, or of several.

    Attributes
    ----------
    cases
        Number of labelled cases.
    channels
        Number of channels of every case.
    minimum_cell
        Fewest patients in a cell that is shown; the smallest of all sites.
    spacing_mm
        Voxel sizes along x, y, z in RAS+.
    extent_mm
        Edges of the nonzero bounding box along x, y, z.
    labels_found
        Whether at least ``minimum_cell`` patients of one site have each label, in the order of the federation's labels.
    intensities_hu
        For CT whose window is open, intensities within the labels, one entry per channel: ``SAMPLES_PER_CASE`` voxels
        of each case. Empty otherwise: MR volumes, for example, are normalised each by its own values.
    """

    cases: Annotated[Whole, Field(ge=1, le=10**9)]
    channels: Annotated[Whole, Field(ge=1, le=MOST_CHANNELS)]
    minimum_cell: MinimumCell
    spacing_mm: Axes
    extent_mm: Axes
    labels_found: Annotated[tuple[Switch, ...], Field(min_length=1, max_length=MOST_LABELS)]
    intensities_hu: Annotated[tuple[Distribution, ...], Field(max_length=MOST_CHANNELS)] = ()

    @model_validator(mode="after")
    def _can_be_true(self) -> Self:
        if self.cases < self.minimum_cell:
            raise ValueError(f"{self.cases} cases are fewer than minimum_cell ({self.minimum_cell})")
        if self.intensities_hu and len(self.intensities_hu) != self.channels:
            entries = counted(len(self.intensities_hu), "entry", "entries")
            raise ValueError(f"intensities_hu has {entries} for {counted(self.channels, 'channel')}")
        for name, item, scale in self.parts():
            try:
                item.check(scale, self.minimum_cell)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            if scale is not HOUNSFIELD and item.count != self.cases:
                raise ValueError(f"{name}: counts {item.count} cases, and there are {self.cases}")
            if scale is HOUNSFIELD and not self._is_whole_cases(item.count):
                raise ValueError(
                    f"{name}: counts {item.count} voxels, {SAMPLES_PER_CASE} of each of {self.cases} cases"
                )
        return self

    def parts(self) -> list[tuple[str, Distribution, Scale]]:
        """List every distribution with its name and scale."""
        return [
            *((f"spacing_mm along {axis}", item, SPACING) for axis, item in zip("xyz", self.spacing_mm, strict=True)),
            *((f"extent_mm along {axis}", item, EXTENT) for axis, item in zip("xyz", self.extent_mm, strict=True)),
            *((f"intensity_hu of channel {n}", item, HOUNSFIELD) for n, item in enumerate(self.intensities_hu, 1)),
        ]

    def spacing_percentile(self, percent: float) -> Spacing:
        """Return a percentile of the voxel sizes along each axis, in mm.

        Raises
        ------
        ConfigError
            Too many cases are in suppressed cells, and their sums are withheld.
        """
        x, y, z = (_percentile(item, percent, SPACING, "preprocessing.spacing") for item in self.spacing_mm)
        return (x, y, z)

    def median_shape(self, spacing: Spacing) -> Axes3:
        """Return the median shape in voxels after resampling to a spacing in mm; errors as above."""
        x, y, z = (
            max(1, round(_percentile(item, 50, EXTENT, "model.patch_size") / mm))
            for item, mm in zip(self.extent_mm, spacing, strict=True)
        )
        return (x, y, z)

    def ct_window(self, channel: int) -> IntensityPlan:
        """Return the window and normalisation of a channel; errors as above."""
        key = "preprocessing.intensity"
        if not self.intensities_hu:
            raise ConfigError(f"{key}: the fingerprints hold no intensities; make them anew")
        item = self.intensities_hu[channel]
        lower, upper = (_percentile(item, percent, HOUNSFIELD, key) for percent in (0.5, 99.5))
        if item.total is None or not lower < upper:
            raise ConfigError(f"{key}: cannot be chosen from what the sites may show; give the window, mean and std")
        return IntensityPlan(
            clip="window",
            lower=lower,
            upper=upper,
            normalise="given",
            mean=item.mean(HOUNSFIELD),
            std=max(item.std(HOUNSFIELD), 1e-6),
        )

    @property
    def missing_labels(self) -> tuple[int, ...]:
        """Labels that at no site enough patients have."""
        return tuple(label for label, is_found in enumerate(self.labels_found, start=1) if not is_found)

    def _is_whole_cases(self, voxels: int) -> bool:
        cases, rest = divmod(voxels, SAMPLES_PER_CASE)
        return rest == 0 and (cases == 0 or self.minimum_cell <= cases <= self.cases)


def fingerprint_to_share(
    cases: Sequence[Case],
    labels: int,
    minimum_cell: int,
    with_intensities: bool,
    workers: int = 1,
    progress: CountProgress | None = None,
) -> SharedFingerprint:
    """Measure a dataset, and sum up what is measured.

    Parameters
    ----------
    cases
        Labelled cases.
    labels
        Number of labels: their values are 1, 2, 3, ...
    minimum_cell
        Fewest patients in a cell that is shown.
    with_intensities
        Whether intensities within the labels are summed up too.
    workers, progress
        As in ``fingerprint_dataset``.

    Raises
    ------
    ConfigError
        There are fewer patients than ``minimum_cell``.
    DataError
        A case cannot be used.
    """
    owners = [case.owner for case in cases]
    if len(set(owners)) < minimum_cell:
        raise ConfigError(
            f"minimum_cell: {counted(len(set(owners)), 'patient')} with label maps are fewer than {minimum_cell}, so "
            "nothing may be shared: add patients, or ask the coordinator to write spacing, patch size and intensities "
            "into the federation file"
        )
    found = measure_cases(cases, range(1, labels + 1), workers, progress)

    def per_axis(values: Sequence[Spacing], scale: Scale) -> Axes:
        x, y, z = (
            distribution([np.array([value[axis]]) for value in values], owners, scale, minimum_cell)
            for axis in range(3)
        )
        return (x, y, z)

    def is_found(label: int) -> bool:
        having = {owner for item, owner in zip(found, owners, strict=True) if item.volumes_ml[label]}
        return len(having) >= minimum_cell

    extents = [_by_axis(item.shape, item.spacing) for item in found]
    channels = len(found[0].samples)
    if channels > MOST_CHANNELS:
        raise DataError(cases[0].images[0], f"has {channels} channels, and a fingerprint is of at most {MOST_CHANNELS}")
    drawn = _draw_samples(found, owners, minimum_cell) if with_intensities else []
    return SharedFingerprint(
        cases=len(cases),
        channels=channels,
        minimum_cell=minimum_cell,
        spacing_mm=per_axis([item.spacing for item in found], SPACING),
        extent_mm=per_axis(extents, EXTENT),
        labels_found=tuple(is_found(label) for label in range(labels)),
        intensities_hu=tuple(
            distribution(
                [samples[channel] for samples, _ in drawn], [owner for _, owner in drawn], HOUNSFIELD, minimum_cell
            )
            for channel in range(channels if with_intensities else 0)
        ),
    )


def _draw_samples(
    found: Sequence[Measurements], owners: Sequence[str], minimum_cell: int
) -> list[tuple[NDArray[np.float32], str]]:
    """Return ``SAMPLES_PER_CASE`` voxels of each case that has any (channel, voxel), with their patient.

    The number of voxels would tell how many patients have none. If those are fewer than ``minimum_cell``, voxels of the
    others stand in for theirs; if the others are, nothing is returned.
    """
    pairs = list(zip(found, owners, strict=True))
    drawn = [(_with_equal_weight(item.samples), owner) for item, owner in pairs if item.samples.shape[1]]
    lacking = [owner for item, owner in pairs if not item.samples.shape[1]]
    if len({owner for _, owner in drawn}) < minimum_cell:
        return []
    if len(set(lacking)) >= minimum_cell:
        return drawn
    wanted = np.random.default_rng(0).integers(len(drawn), size=(len(lacking), SAMPLES_PER_CASE))
    stand_ins = [
        (samples[:, np.flatnonzero(row == number)], owner)
        for row in wanted
        for number, (samples, owner) in enumerate(drawn)
    ]
    return drawn + stand_ins


def _with_equal_weight(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Draw ``SAMPLES_PER_CASE`` voxels with replacement, the same at every call: the seed follows from them."""
    seed = int.from_bytes(hashlib.sha256(samples.tobytes()).digest()[:8])
    return samples[:, np.random.default_rng(seed).integers(samples.shape[1], size=SAMPLES_PER_CASE)]


def merge(fingerprints: Sequence[SharedFingerprint]) -> SharedFingerprint:
    """Add the fingerprints of several sites.

    Raises
    ------
    ConfigError
        They have different numbers of channels or labels, only some have intensities, or their sum contradicts itself.
    """
    for what in ("channels", "labels_found", "intensities_hu"):
        sizes = {value if isinstance(value := getattr(item, what), int) else len(value) for item in fingerprints}
        if len(sizes) > 1:
            raise ConfigError(f"{what}: the sites' fingerprints have different numbers of them; make all of them anew")

    def added(name: str) -> tuple[Distribution, ...]:
        return tuple(add(column) for column in zip(*(getattr(item, name) for item in fingerprints), strict=True))

    try:
        return SharedFingerprint.model_validate(
            {
                "cases": sum(item.cases for item in fingerprints),
                "channels": fingerprints[0].channels,
                "minimum_cell": min(item.minimum_cell for item in fingerprints),
                "labels_found": tuple(map(any, zip(*(item.labels_found for item in fingerprints), strict=True))),
                **{name: added(name) for name in ("spacing_mm", "extent_mm", "intensities_hu")},
            }
        )
    except ValidationError as error:
        problem = describe_validation_error(error, SharedFingerprint, "the sum of all sites' fingerprints")
        raise ConfigError(f"{problem}; no site can have so many cases: ask each for its number") from None


def _by_axis(shape: Axes3, spacing: Spacing) -> Spacing:
    x, y, z = (voxels * mm for voxels, mm in zip(shape, spacing, strict=True))
    return (x, y, z)


def _percentile(item: Distribution, percent: float, scale: Scale, key: str) -> float:
    if not item.is_known(percent):
        raise ConfigError(
            f"{key}: cannot be chosen: too many of the cases are in cells of too few patients to be shown, and their "
            "sums are withheld; write it into the federation file"
        )
    return item.percentile(percent, scale)
