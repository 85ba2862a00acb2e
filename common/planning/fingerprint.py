"""What a dataset is like, and the plan that follows from it.

The rules follow nnU-Net (Isensee et al., Nature Methods 2021) where they are not said to differ. A fingerprint tells
much about the patients behind it: it stays where the data are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, DataError
from common.imaging.cache.case_cache import sample_voxels
from common.imaging.cache.entry_file import Entry, FileDigests, digest_json, read_entry, write_entry
from common.imaging.datasets.dataset import Case, load_case
from common.imaging.preprocessing import nonzero_box
from common.imaging.resampling import thick_axes
from common.imaging.threads import Progress, map_in_threads
from common.plan.plan import Axes3, Frozen, IntensityPlan, Kernel, ModelPlan, Plan, PreprocessingPlan, Spacing, Stride

SAMPLES_PER_CASE = 2_000
"""Foreground voxels of each case that enter the intensity statistics, so that every patient weighs about the same."""

LARGEST_PATCH = 96**3
"""Voxels of the largest patch chosen without being told: two fit a few GB of memory while training."""

SMALLEST_STAGE = 4
"""Voxels below which no axis is down-sampled."""

_REVISION = 2
_THICK = 3.0


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
    """What was measured; sequences have one entry per case, in the order of the cases.

    shapes: voxels of the box that is not zero, along x, y, z in RAS+.
    spacings: in mm.
    intensities: one entry per channel.
    medians: of the stored intensities within the foreground, channel by channel; empty for a case without any.
    label_volumes_ml: for each label its volume in every case, in millilitres; 0 where the case lacks it.
    """

    shapes: tuple[Axes3, ...]
    spacings: tuple[Spacing, ...]
    intensities: tuple[ChannelIntensities, ...]
    medians: tuple[tuple[float, ...], ...]
    label_volumes_ml: dict[int, tuple[float, ...]]

    @property
    def median_spacing(self) -> Spacing:
        """Median over cases along each axis, in mm."""
        x, y, z = np.median(self.spacings, axis=0)
        return (float(x), float(y), float(z))

    @property
    def missing_labels(self) -> tuple[int, ...]:
        """Labels that no case has."""
        return tuple(label for label, volumes in sorted(self.label_volumes_ml.items()) if not any(volumes))

    def median_shape(self, spacing: Spacing) -> Axes3:
        """Median over cases of the voxels along each axis, once all are resampled to a spacing in mm."""
        x, y, z = np.median(np.array(self.shapes) * np.array(self.spacings) / np.array(spacing), axis=0)
        return (max(1, round(float(x))), max(1, round(float(y))), max(1, round(float(z))))


def fingerprint_dataset(
    cases: Sequence[Case],
    labels: Collection[int],
    workers: int = 1,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> Fingerprint:
    """Measures a dataset.

    Args:
        cases: at least one; those without a label map count for shapes and spacings only.
        labels: values of the foreground labels.
        workers: threads.
        progress: called with cases done and cases in all.
        folder: cache folder in which each case's measurements are kept for the next time; None keeps nothing.

    Raises:
        DataError: a case cannot be used, cases differ in their number of channels, or no case has any foreground.
        OutputError: the cache folder cannot be written.
    """
    if not cases:
        raise ValueError("a fingerprint needs at least one case")
    digests = FileDigests(folder)
    values = tuple(sorted(labels))
    try:
        entries = map_in_threads(lambda case: _measure_once(case, values, digests, folder), cases, workers, progress)
    finally:
        digests.save()
    channels = len(entries[0].arrays["samples"])
    for case, entry in zip(cases, entries, strict=True):
        if len(entry.arrays["samples"]) != channels:
            found = len(entry.arrays["samples"])
            raise DataError(case.images[0], f"has {found} channels, {cases[0].images[0].name} has {channels}")
    samples = np.concatenate([entry.arrays["samples"] for entry in entries], axis=1)
    if samples.shape[1] == 0:
        raise DataError(cases[0].images[0].parent, "no case has any voxel of the foreground labels: check the labels")
    return Fingerprint(
        shapes=tuple(tuple(entry.metadata["shape"]) for entry in entries),
        spacings=tuple(tuple(entry.metadata["spacing"]) for entry in entries),
        intensities=tuple(_describe(channel) for channel in samples),
        medians=tuple(_medians(entry.arrays["samples"]) for entry in entries),
        label_volumes_ml={v: tuple(entry.metadata["volumes_ml"][str(v)] for entry in entries) for v in values},
    )


def _measure_once(case: Case, labels: tuple[int, ...], digests: FileDigests, folder: Path | None) -> Entry:
    files = [digests.digest(path) for path in (*case.images, *([case.label] if case.label else []))]
    key = digest_json({"fingerprint": _REVISION, "files": files, "labels": labels, "labelled": case.label is not None})
    entry = read_entry(folder, key) if folder else None
    if entry is None:
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


def make_plan(
    fingerprint: Fingerprint,
    channels: Sequence[str],
    labels: Mapping[int, str],
    modality: Literal["CT", "MR"] = "MR",
    *,
    network_channels: Sequence[int] = (16, 32, 64, 128),
    blocks: Sequence[int] | None = None,
    residual: bool = False,
    deep_supervision: bool = False,
    groups: int = 8,
    spacing: Spacing | None = None,
    patch_size: Axes3 | None = None,
    largest_patch: int = LARGEST_PATCH,
    mirror_axes: Sequence[Literal[0, 1, 2]] = (),
) -> Plan:
    """Derives spacing, intensities, patch and network from a fingerprint.

    Args:
        fingerprint: of all data that the plan is for.
        channels: names of the input channels.
        labels: value -> name of the foreground labels, 1, 2, 3, ...
        modality: ``CT`` clips to a window and normalises by statistics of the whole dataset's foreground, because
            Hounsfield units mean the same everywhere; ``MR`` treats each volume by itself.
        network_channels: channels of each stage.
        blocks: blocks of each encoder stage; None for two each.
        residual: whether these are residual blocks.
        deep_supervision: whether coarser outputs are trained too.
        groups: of every GroupNorm.
        spacing: target in mm; None for :func:`target_spacing`.
        patch_size: voxels; None for :func:`choose_patch_size`.
        largest_patch: voxels of a patch that is chosen here.
        mirror_axes: axes along which the anatomy may be flipped.

    Raises:
        ConfigError: the fingerprint has another number of channels, or the patch size does not fit the network.
    """
    if len(channels) != len(fingerprint.intensities):
        raise ConfigError(
            f"channels: {len(channels)} names ({', '.join(channels)}), but the scans have "
            f"{len(fingerprint.intensities)} channels: name each of them"
        )
    target = spacing or target_spacing(fingerprint.spacings)
    stages = len(network_channels)
    if patch_size is None:
        patch_size = choose_patch_size(fingerprint.median_shape(target), target, stages, largest_patch)
    strides, kernels = plan_stages(patch_size, target, stages)
    if any(size % divisor for size, divisor in zip(patch_size, _divisors(patch_size, target, stages), strict=True)):
        fitting = choose_patch_size(patch_size, target, stages, 8 * int(np.prod(patch_size)))
        raise ConfigError(f"patch_size: {patch_size} does not fit {stages} stages; take {fitting}, for example")
    return Plan(
        channels=tuple(channels),
        labels=dict(labels),
        preprocessing=PreprocessingPlan(
            spacing=target,
            intensity=tuple(_plan_intensity(channel, modality) for channel in fingerprint.intensities),
        ),
        model=ModelPlan(
            in_channels=len(channels),
            classes=len(labels) + 1,
            channels=tuple(network_channels),
            strides=strides,
            kernels=kernels,
            blocks=tuple(blocks) if blocks is not None else (2,) * stages,
            residual=residual,
            deep_supervision=deep_supervision,
            groups=groups,
        ),
        patch_size=patch_size,
        mirror_axes=tuple(mirror_axes),
    )


def _plan_intensity(channel: ChannelIntensities, modality: Literal["CT", "MR"]) -> IntensityPlan:
    if modality == "MR":
        return IntensityPlan()
    return IntensityPlan(
        clip="window",
        lower=channel.percentile_00_5,
        upper=channel.percentile_99_5,
        normalise="given",
        mean=channel.mean,
        std=max(channel.std, 1e-6),
    )


def target_spacing(spacings: Sequence[Spacing]) -> Spacing:
    """The spacing in mm that a dataset is resampled to: the median along each axis.

    Where the median of an axis is more than three times that of the finest, its 10th percentile is taken instead, but
    nothing finer than the next coarser axis: a few thick volumes then do not take the detail from all others.
    """
    median = np.median(spacings, axis=0)
    x, y, z = (float(value) for value in median)
    target = [x, y, z]
    for axis in thick_axes((x, y, z), _THICK):
        others = max(target[other] for other in range(3) if other != axis)
        target[axis] = min(target[axis], max(float(np.percentile(spacings, 10, axis=0)[axis]), others))
    return (target[0], target[1], target[2])


def choose_patch_size(shape: Axes3, spacing: Spacing, stages: int, largest: int) -> Axes3:
    """A patch that holds a whole volume if it may, and fits the network.

    Args:
        shape: median shape of the volumes at the target spacing.
        spacing: the target in mm.
        stages: of the network.
        largest: voxels that the patch may have; the longest side in mm is shortened until it fits.

    Returns:
        Voxels along x, y, z: multiples of what the network down-samples by.
    """
    size = list(shape)
    while True:
        divisors = _divisors((size[0], size[1], size[2]), spacing, stages)
        x, y, z = (-(-n // divisor) * divisor for n, divisor in zip(size, divisors, strict=True))
        # A size that was rounded up may allow deeper down-sampling, to which it then has to fit too.
        fits = all(n % d == 0 for n, d in zip((x, y, z), _divisors((x, y, z), spacing, stages), strict=True))
        if fits and x * y * z <= largest:
            return (x, y, z)
        longest = max((axis for axis in range(3) if size[axis] > 1), key=lambda axis: size[axis] * spacing[axis])
        size[longest] -= 1


def _divisors(size: Axes3, spacing: Spacing, stages: int) -> Axes3:
    x, y, z = np.prod(plan_stages(size, spacing, stages)[0], axis=0)
    return (int(x), int(y), int(z))


def plan_stages(size: Axes3, spacing: Spacing, stages: int) -> tuple[tuple[Stride, ...], tuple[Kernel, ...]]:
    """Strides and kernels of each stage, finest first.

    An axis more than twice as coarse as the finest that can still be down-sampled waits until that has caught up, and
    has kernel 1 until it is no more than twice as coarse as any; no axis gets less than ``SMALLEST_STAGE`` voxels.
    """
    voxels, current = list(size), list(spacing)
    strides: list[Stride] = []
    kernels: list[Kernel] = []
    kernel: list[Literal[1, 3, 5]] = [1, 1, 1]
    for stage in range(stages):
        stride: list[Literal[1, 2, 4]] = [1, 1, 1]
        if stage > 0:
            roomy = [axis for axis in range(3) if voxels[axis] // 2 >= SMALLEST_STAGE]
            finest = min((current[axis] for axis in roomy), default=0.0)
            for axis in roomy:
                if current[axis] <= 2 * finest:
                    stride[axis] = 2
            voxels = [n // s for n, s in zip(voxels, stride, strict=True)]
            current = [mm * s for mm, s in zip(current, stride, strict=True)]
        kernel = [3 if before == 3 or mm <= 2 * min(current) else 1 for before, mm in zip(kernel, current, strict=True)]
        strides.append((stride[0], stride[1], stride[2]))
        kernels.append((kernel[0], kernel[1], kernel[2]))
    return tuple(strides), tuple(kernels)
