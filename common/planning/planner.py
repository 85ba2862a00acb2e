"""Derives the plan from a dataset's fingerprint.

The rules follow nnU-Net (Isensee et al., Nature Methods 2021) unless stated otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
from pydantic import ValidationError

from common.config.federation import ModelConfig
from common.errors import ConfigError
from common.formatting import counted
from common.imaging.resampling import thick_axes
from common.plan.base import Axes3, Kernel, Spacing, Stride
from common.plan.describe_errors import describe_validation_error
from common.plan.plan import IntensityPlan, ModelPlan, Plan, PreprocessingPlan

LARGEST_PATCH = 96**3
"""Largest automatically chosen patch, in voxels: training with two of them fits into a few GB of memory."""
SMALLEST_STAGE = 4
"""Fewest voxels that an axis may have after down-sampling."""
THICK = 3.0
"""An axis whose voxels are longer than this many of the finest is thick."""


USUAL_NETWORK = ModelConfig()


class Measured(Protocol):
    """What a plan follows from: the fingerprint of data in one place, or the sums that sites share."""

    @property
    def channels(self) -> int:
        """Number of channels of every case."""

    @property
    def cases(self) -> int:
        """Number of cases."""

    def spacing_percentile(self, percent: float) -> Spacing:
        """Return a percentile of the voxel sizes along each axis, in mm."""

    def median_shape(self, spacing: Spacing) -> Axes3:
        """Return the median shape in voxels after resampling to a spacing in mm."""

    def ct_window(self, channel: int) -> IntensityPlan:
        """Return the window and normalisation of a channel of CT."""


def make_plan(
    fingerprint: Measured,
    channels: Sequence[str],
    labels: Mapping[int, str],
    modality: Literal["CT", "MR"] = "MR",
    network: ModelConfig = USUAL_NETWORK,
    *,
    spacing: Spacing | None = None,
    largest_patch: int = LARGEST_PATCH,
) -> Plan:
    """Derive spacing, intensity normalisation, patch size and network from a fingerprint.

    Parameters
    ----------
    fingerprint
        Fingerprint of the whole dataset.
    channels
        Names of the input channels.
    labels
        Value -> name of the foreground labels, 1, 2, 3, ...
    modality
        ``CT`` clips to a window and normalises by statistics of the whole dataset's foreground, because Hounsfield
        units are comparable across scanners; ``MR`` normalises each volume separately.
    network
        The network and patches that are asked for; what is ``auto`` follows from the fingerprint.
    spacing
        Target spacing in mm; None means :func:`target_spacing`.
    largest_patch
        Largest number of voxels of an automatically chosen patch.

    Raises
    ------
    ConfigError
        If the fingerprint has another number of channels or leaves something open, the patch size does not fit the
        network, or what is asked of the network contradicts itself.
    """
    if len(channels) != fingerprint.channels:
        raise ConfigError(
            f"channels: {counted(len(channels), 'name')} ({', '.join(channels)}), but the scans have "
            f"{counted(fingerprint.channels, 'channel')}: name each of them"
        )
    target = spacing or target_spacing(fingerprint)
    stages = len(network.channels)
    patch_size = network.patch_size
    if isinstance(patch_size, str):
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
            intensity=tuple(
                IntensityPlan() if modality == "MR" else fingerprint.ct_window(channel)
                for channel in range(len(channels))
            ),
        ),
        model=plan_network(network, len(channels), len(labels), strides, kernels),
        patch_size=patch_size,
        mirror_axes=network.mirror_axes,
    )


def plan_network(
    network: ModelConfig, channels: int, labels: int, strides: Sequence[Stride], kernels: Sequence[Kernel]
) -> ModelPlan:
    """Return the network that a federation file asks for.

    Parameters
    ----------
    network
        What the file says.
    channels, labels
        Number of input channels, and of foreground labels.
    strides, kernels
        Of each stage, where the file says ``auto``.

    Raises
    ------
    ConfigError
        If the settings contradict each other.
    """
    try:
        return ModelPlan(
            in_channels=channels,
            classes=labels + 1,
            channels=network.channels,
            strides=tuple(strides) if isinstance(network.strides, str) else network.strides,
            kernels=tuple(kernels) if isinstance(network.kernels, str) else network.kernels,
            blocks=network.blocks if isinstance(network.blocks, tuple) else (network.blocks,) * len(network.channels),
            decoder_blocks=network.decoder_blocks,
            residual=network.residual,
            groups=network.groups,
            deep_supervision=network.deep_supervision,
        )
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, ModelPlan, "model")) from None


def target_spacing(fingerprint: Measured) -> Spacing:
    """Return the spacing in mm that a dataset is resampled to: the median along each axis.

    If the median of an axis is more than three times that of the finest, its 10th percentile is used instead, but
    nothing finer than the coarser of the other axes. This preserves the detail of the volumes with thinner slices.
    """
    x, y, z = fingerprint.spacing_percentile(50)
    target = [x, y, z]
    for axis in thick_axes((x, y, z), THICK):
        others = max(target[other] for other in range(3) if other != axis)
        target[axis] = min(target[axis], max(fingerprint.spacing_percentile(10)[axis], others))
    return (target[0], target[1], target[2])


def choose_patch_size(shape: Axes3, spacing: Spacing, stages: int, largest: int) -> Axes3:
    """Choose a patch that covers a whole volume if possible and fits the network.

    Parameters
    ----------
    shape
        Median shape of the volumes at the target spacing.
    spacing
        Target spacing in mm.
    stages
        Number of stages of the network.
    largest
        Largest number of voxels; the longest side in mm is shortened until the patch fits.

    Returns
    -------
    Axes3
        Voxels along x, y, z, multiples of the network's down-sampling factors.
    """
    size = list(shape)
    while True:
        divisors = _divisors((size[0], size[1], size[2]), spacing, stages)
        x, y, z = (-(-n // divisor) * divisor for n, divisor in zip(size, divisors, strict=True))
        # Rounding a size up may allow deeper down-sampling, whose divisors it must satisfy too.
        fits = all(n % d == 0 for n, d in zip((x, y, z), _divisors((x, y, z), spacing, stages), strict=True))
        if fits and x * y * z <= largest:
            return (x, y, z)
        longest = max((axis for axis in range(3) if size[axis] > 1), key=lambda axis: size[axis] * spacing[axis])
        size[longest] -= 1


def _divisors(size: Axes3, spacing: Spacing, stages: int) -> Axes3:
    x, y, z = np.prod(plan_stages(size, spacing, stages)[0], axis=0)
    return (int(x), int(y), int(z))


def plan_stages(size: Axes3, spacing: Spacing, stages: int) -> tuple[tuple[Stride, ...], tuple[Kernel, ...]]:
    """Derive the strides and kernels of each stage, finest first.

    An axis is down-sampled only while its spacing is at most twice that of the finest axis that can still be
    down-sampled. Its kernel is 1 until its spacing is at most twice the finest of all axes. No axis is reduced below
    ``SMALLEST_STAGE`` voxels.
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
