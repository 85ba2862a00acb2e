"""Dataset fingerprints, following nnU-Net (Isensee et al., Nature Methods 2021).

A fingerprint reveals much about the patients, so it must stay where the data is. What a site may share instead is in
``shared_fingerprint``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.formatting import counted
from common.imaging.cache.case_cache import sample_voxels
from common.imaging.cache.entry_file import Entry, FileDigests, digest_json, read_entry, write_entry
from common.imaging.datasets.case import Case, errors_of, load_case
from common.imaging.preprocessing import nonzero_box
from common.imaging.threads import CountProgress, map_in_threads
from common.plan.base import Axes3, Frozen, Spacing
from common.plan.plan import IntensityPlan

SAMPLES_PER_CASE = 2_000
"""Largest number of foreground voxels that a case contributes, so that all cases have similar weight."""


_REVISION = 2


class ChannelIntensities(Frozen):
    """Stored intensities of one channel within the foreground of all cases."""

    mean: float
    std: float
    minimum: float
    percentile_00_5: float
    median: float
    percentile_99_5: float
    maximum: float


class Fingerprint(Frozen):
    """Measurements of a dataset; except for ``intensities``, sequences have one entry per case.

    Attributes
    ----------
    shapes
        Size in voxels of the nonzero bounding box, along x, y, z in RAS+.
    spacings
        Voxel spacings in mm.
    intensities
        One entry per channel.
    medians
        Median foreground intensity of each channel; empty for a case without foreground.
    label_volumes_ml
        Volume of each label in every case, in millilitres; 0 if the case lacks it.
    """

    shapes: tuple[Axes3, ...]
    spacings: tuple[Spacing, ...]
    intensities: tuple[ChannelIntensities, ...]
    medians: tuple[tuple[float, ...], ...]
    label_volumes_ml: dict[int, tuple[float, ...]]

    @property
    def missing_labels(self) -> tuple[int, ...]:
        """Labels that no case has."""
        return tuple(label for label, volumes in sorted(self.label_volumes_ml.items()) if not any(volumes))

    @property
    def cases(self) -> int:
        """Number of cases."""
        return len(self.shapes)

    @property
    def channels(self) -> int:
        """Number of channels of every case."""
        return len(self.intensities)

    def spacing_percentile(self, percent: float) -> Spacing:
        """Return a percentile of the voxel sizes along each axis, in mm."""
        x, y, z = np.percentile(self.spacings, percent, axis=0)
        return (float(x), float(y), float(z))

    def median_shape(self, spacing: Spacing) -> Axes3:
        """Return the median shape over cases after resampling to a spacing in mm."""
        x, y, z = np.median(np.array(self.shapes) * np.array(self.spacings) / np.array(spacing), axis=0)
        return (max(1, round(float(x))), max(1, round(float(y))), max(1, round(float(z))))

    def ct_window(self, channel: int) -> IntensityPlan:
        """Return the window and normalisation of a channel of CT."""
        found = self.intensities[channel]
        return IntensityPlan(
            clip="window",
            lower=found.percentile_00_5,
            upper=found.percentile_99_5,
            normalise="given",
            mean=found.mean,
            std=max(found.std, 1e-6),
        )


@dataclass(frozen=True, eq=False)
class Measurements:
    """What is measured of one case.

    Attributes
    ----------
    shape, spacing
        Of its nonzero bounding box, as in ``Fingerprint``.
    volumes_ml
        Volume of each label, in millilitres, in the order of the labels.
    samples
        Intensities of some of its foreground voxels, float32 (channel, voxel).
    """

    shape: Axes3
    spacing: Spacing
    volumes_ml: tuple[float, ...]
    samples: NDArray[np.float32]


def measure_cases(
    cases: Sequence[Case],
    labels: Collection[int],
    workers: int = 1,
    progress: CountProgress | None = None,
    folder: Path | None = None,
) -> list[Measurements]:
    """Measure every case of a dataset; parameters and errors are those of ``fingerprint_dataset``."""
    if not cases:
        raise ValueError("a fingerprint needs at least one case")
    digests = FileDigests(folder)
    values = tuple(sorted(labels))
    try:
        entries = map_in_threads(lambda case: _measure_once(case, values, digests, folder), cases, workers, progress)
    finally:
        digests.save()
    found = [
        Measurements(
            shape=tuple(entry.metadata["shape"]),
            spacing=tuple(entry.metadata["spacing"]),
            volumes_ml=tuple(entry.metadata["volumes_ml"][str(value)] for value in values),
            samples=entry.arrays["samples"],
        )
        for entry in entries
    ]
    channels = len(found[0].samples)
    for case, measured in zip(cases, found, strict=True):
        if len(measured.samples) != channels:
            other = cases[0].images[0].name
            raise DataError(case.images[0], f"has {counted(len(measured.samples), 'channel')}, {other} has {channels}")
    if not any(measured.samples.shape[1] for measured in found):
        raise DataError(cases[0].images[0].parent, "no case has any voxel of the foreground labels: check the labels")
    return found


def fingerprint_dataset(
    cases: Sequence[Case],
    labels: Collection[int],
    workers: int = 1,
    progress: CountProgress | None = None,
    folder: Path | None = None,
) -> Fingerprint:
    """Measure a dataset.

    Parameters
    ----------
    cases
        At least one; cases without a label map count for shapes and spacings only.
    labels
        Values of the foreground labels.
    workers
        Number of threads.
    progress
        Called with (cases done, total cases).
    folder
        Folder that caches each case's measurements; None disables caching.

    Raises
    ------
    DataError
        If a case cannot be used, cases differ in their number of channels, or no case has any foreground.
    OutputError
        If the cache folder cannot be written.
    """
    found = measure_cases(cases, labels, workers, progress, folder)
    samples = np.concatenate([measured.samples for measured in found], axis=1)
    return Fingerprint(
        shapes=tuple(measured.shape for measured in found),
        spacings=tuple(measured.spacing for measured in found),
        intensities=tuple(_describe(channel) for channel in samples),
        medians=tuple(_medians(measured.samples) for measured in found),
        label_volumes_ml={
            value: tuple(measured.volumes_ml[index] for measured in found) for index, value in enumerate(sorted(labels))
        },
    )


def _measure_once(case: Case, labels: tuple[int, ...], digests: FileDigests, folder: Path | None) -> Entry:
    files = [digests.digest(path) for path in case.files]
    settings = {"fingerprint": _REVISION, "files": files, "labels": labels, "labelled": case.label is not None}
    key = digest_json(settings | case.changes)
    entry = read_entry(folder, key) if folder else None
    if entry is None:
        with errors_of(case.images[0]):
            entry = _measure(case, labels, key)
        if folder:
            write_entry(folder, key, entry)
    return entry


def _measure(case: Case, labels: tuple[int, ...], key: str) -> Entry:
    volume, label = load_case(case, labels)
    start, stop = nonzero_box(volume.array)
    if label is None:
        label = np.zeros(volume.grid.shape, dtype=np.uint8)
    counts = np.bincount(label.ravel(), minlength=256)
    voxel_ml = float(np.prod(volume.grid.spacing)) / 1000
    x, y, z = sample_voxels(np.isin(label, labels), SAMPLES_PER_CASE, (int(key, 16),)).T
    metadata = {
        "shape": [b - a for a, b in zip(start, stop, strict=True)],
        "spacing": list(volume.grid.spacing),
        "volumes_ml": {str(value): float(counts[value]) * voxel_ml for value in labels},
    }
    return Entry(metadata, {"samples": np.ascontiguousarray(volume.array[:, x, y, z])})


def _medians(samples: NDArray[np.float32]) -> tuple[float, ...]:
    return tuple(float(np.median(channel)) for channel in samples) if samples.shape[1] else ()


def _describe(samples: NDArray[np.float32]) -> ChannelIntensities:
    lowest, low, median, high, highest = (float(p) for p in np.percentile(samples, (0, 0.5, 50, 99.5, 100)))
    return ChannelIntensities(
        mean=float(samples.mean(dtype=np.float64)),
        std=float(samples.std(dtype=np.float64)),
        minimum=lowest,
        percentile_00_5=low,
        median=median,
        percentile_99_5=high,
        maximum=highest,
    )
