"""What one site shares about its data, and the same of all sites together.

Everything in it is a sum over cases, so those of several sites add up to that of their pooled data: counts, sums and
sums of squares exactly, percentiles to within a cell. No case's own number is in it, and no extreme value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from common.errors import ConfigError
from common.formatting import counted
from common.imaging.datasets.case import Case
from common.imaging.threads import CountProgress
from common.plan.base import Axes3, Frozen, MinimumCell, Spacing, Whole
from common.plan.plan import IntensityPlan
from common.planning.fingerprint import SAMPLES_PER_CASE, measure_cases
from common.planning.histogram import EXTENT, HOUNSFIELD, SPACING, VOLUME, Distribution, Scale, add, distribution

Axes = tuple[Distribution, Distribution, Distribution]


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
    label_volumes_ml
        Volume of each label, in the order of the federation's labels; 0 where a case lacks it.
    intensities_hu
        For CT whose window is open, intensities within the labels, one entry per channel; at most ``SAMPLES_PER_CASE``
        voxels of each case. Empty otherwise: MR volumes, for example, are normalised each by its own values.
    """

    cases: Annotated[Whole, Field(ge=1, le=10**9)]
    channels: Annotated[Whole, Field(ge=1, le=64)]
    minimum_cell: MinimumCell
    spacing_mm: Axes
    extent_mm: Axes
    label_volumes_ml: Annotated[tuple[Distribution, ...], Field(min_length=1, max_length=1024)]
    intensities_hu: Annotated[tuple[Distribution, ...], Field(max_length=64)] = ()

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
            if scale is HOUNSFIELD and not 0 < item.count <= self.cases * SAMPLES_PER_CASE:
                raise ValueError(f"{name}: counts {item.count} voxels of {self.cases} cases")
        return self

    def parts(self) -> list[tuple[str, Distribution, Scale]]:
        """List every distribution with its name and scale."""
        return [
            *((f"spacing_mm along {axis}", item, SPACING) for axis, item in zip("xyz", self.spacing_mm, strict=True)),
            *((f"extent_mm along {axis}", item, EXTENT) for axis, item in zip("xyz", self.extent_mm, strict=True)),
            *((f"volume_ml of label {n}", item, VOLUME) for n, item in enumerate(self.label_volumes_ml, start=1)),
            *((f"intensity_hu of channel {n}", item, HOUNSFIELD) for n, item in enumerate(self.intensities_hu, 1)),
        ]

    def spacing_percentile(self, percent: float) -> Spacing:
        """Return a percentile of the voxel sizes along each axis, in mm, to within a cell.

        Raises
        ------
        ConfigError
            Too many cases are in suppressed cells.
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
        """Labels that no case has."""
        return tuple(label for label, item in enumerate(self.label_volumes_ml, start=1) if item.total == 0)


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

    def summed(values: Sequence[Sequence[float]], scale: Scale) -> Distribution:
        return distribution([np.asarray(items, dtype=np.float64) for items in values], owners, scale, minimum_cell)

    def per_axis(values: Sequence[Spacing], scale: Scale) -> Axes:
        x, y, z = (summed([[value[axis]] for value in values], scale) for axis in range(3))
        return (x, y, z)

    extents = [_by_axis(item.shape, item.spacing) for item in found]
    channels = len(found[0].samples)
    return SharedFingerprint(
        cases=len(cases),
        channels=channels,
        minimum_cell=minimum_cell,
        spacing_mm=per_axis([item.spacing for item in found], SPACING),
        extent_mm=per_axis(extents, EXTENT),
        label_volumes_ml=tuple(summed([[item.volumes_ml[n]] for item in found], VOLUME) for n in range(labels)),
        intensities_hu=tuple(
            distribution([item.samples[channel] for item in found], owners, HOUNSFIELD, minimum_cell)
            for channel in range(channels if with_intensities else 0)
        ),
    )


def merge(fingerprints: Sequence[SharedFingerprint]) -> SharedFingerprint:
    """Add the fingerprints of several sites.

    Raises
    ------
    ConfigError
        They have different numbers of channels or labels, or only some have intensities.
    """
    for what in ("channels", "label_volumes_ml", "intensities_hu"):
        sizes = {value if isinstance(value := getattr(item, what), int) else len(value) for item in fingerprints}
        if len(sizes) > 1:
            raise ConfigError(f"{what}: the sites' fingerprints have different numbers of them; make all of them anew")

    def added(name: str) -> tuple[Distribution, ...]:
        return tuple(add(column) for column in zip(*(getattr(item, name) for item in fingerprints), strict=True))

    return SharedFingerprint.model_validate(
        {
            "cases": sum(item.cases for item in fingerprints),
            "channels": fingerprints[0].channels,
            "minimum_cell": min(item.minimum_cell for item in fingerprints),
            **{name: added(name) for name in ("spacing_mm", "extent_mm", "label_volumes_ml", "intensities_hu")},
        }
    )


def _by_axis(shape: Axes3, spacing: Spacing) -> Spacing:
    x, y, z = (voxels * mm for voxels, mm in zip(shape, spacing, strict=True))
    return (x, y, z)


def _percentile(item: Distribution, percent: float, scale: Scale, key: str) -> float:
    if not item.is_known:
        raise ConfigError(
            f"{key}: cannot be chosen: more than half of the cases are in cells of too few patients to be shown, and "
            "their sums are withheld; write it into the federation file"
        )
    return item.percentile(percent, scale)
