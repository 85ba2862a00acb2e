"""The plan of a federation: all settings that must be equal at all sites, resolved to numbers.

A plan holds no value measured at a single site: it follows from the federation file, whose ``auto`` follows from the
fingerprint of the whole dataset in simulation, and over a network from sums over the data of all sites. It is written
to ``plan.json`` and into every model bundle.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.formatting import counted
from common.plan.base import (
    MOST_STAGES,
    Axes3,
    Axis,
    BatchSize,
    Blocks,
    Frozen,
    Intensity,
    Kernel,
    LabelCodes,
    Labels,
    Name,
    PatchSize,
    Real,
    SplineOrder,
    Stride,
    Switch,
    TargetSpacing,
    Whole,
    Width,
    check_patch_voxels,
)
from common.plan.privacy import PrivacyPlan


class IntensityPlan(Frozen):
    """How one channel's intensities are clipped and normalised.

    Attributes
    ----------
    clip
        ``window`` clips to ``lower`` and ``upper`` in stored units (Hounsfield for CT); ``percentile`` clips to these
        percentiles (0 to 100) of the volume's own voxels; ``none`` does not clip.
    normalise
        ``volume`` subtracts the volume's own mean and divides by its own standard deviation; ``given`` uses ``mean``
        and ``std``; ``none`` leaves intensities as they are.
    """

    clip: Literal["window", "percentile", "none"] = "percentile"
    lower: Intensity = 0.5
    upper: Intensity = 99.5
    normalise: Literal["volume", "given", "none"] = "volume"
    mean: Intensity = 0.0
    std: Annotated[Intensity, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _check_bounds(self) -> IntensityPlan:
        if self.clip != "none" and not self.lower < self.upper:
            raise ValueError(f"lower ({self.lower}) must be less than upper ({self.upper})")
        if self.clip == "percentile" and not (self.lower >= 0 and self.upper <= 100):
            raise ValueError("percentiles lie between 0 and 100; for stored units use clip: window")
        return self


class PreprocessingPlan(Frozen):
    """How a volume on disk becomes the network's input.

    Attributes
    ----------
    spacing
        Target spacing in mm along x, y, z in RAS+; None keeps every volume's own.
    intensity
        One entry per channel.
    image_order
        3 (cubic B-spline) or 1 (linear).
    label_mode
        ``nearest``, or ``linear``: each label's mask is resampled linearly and the largest wins.
    anisotropy
        An axis whose spacing exceeds this multiple of the finest is resampled by nearest neighbour (a spline across
        thick slices invents tissue).
    crop
        ``nonzero`` crops to the box in which any channel differs from zero (before normalisation).
    """

    spacing: TargetSpacing | None = None
    intensity: Annotated[tuple[IntensityPlan, ...], Field(min_length=1)] = (IntensityPlan(),)
    image_order: SplineOrder = 3
    label_mode: Literal["nearest", "linear"] = "linear"
    anisotropy: Annotated[Real, Field(gt=1, le=1000)] = 3.0
    crop: Literal["nonzero", "none"] = "nonzero"


class ModelPlan(Frozen):
    """A GroupNorm 3D U-Net; every sequence has one entry per stage, finest first.

    Attributes
    ----------
    classes
        Outputs of the network, background included.
    strides
        Down-sampling on entry to each stage; the first is usually (1, 1, 1).
    blocks
        Convolutions (plain) or residual blocks per encoder stage; decoder stages have ``decoder_blocks``.
    groups
        Groups of every GroupNorm; must divide all channel counts.
    """

    in_channels: Annotated[Whole, Field(ge=1, le=64)] = 1
    classes: Annotated[Whole, Field(ge=2, le=1024)] = 2
    channels: Annotated[tuple[Width, ...], Field(max_length=MOST_STAGES)] = (16, 32, 64, 128)
    strides: tuple[Stride, ...] = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    kernels: tuple[Kernel, ...] = ((3, 3, 3),) * 4
    blocks: tuple[Blocks, ...] = (2, 2, 2, 2)
    decoder_blocks: Blocks = 2
    residual: Switch = False
    groups: Width = 8
    deep_supervision: Switch = False

    @model_validator(mode="after")
    def _check_stages(self) -> ModelPlan:
        stages = len(self.channels)
        if stages < 2:
            raise ValueError("a U-Net needs at least two stages: give at least two channel counts")
        for name in ("strides", "kernels", "blocks"):
            if len(getattr(self, name)) != stages:
                raise ValueError(
                    f"{name} has {counted(len(getattr(self, name)), 'entry', 'entries')}, channels has {stages}"
                )
        for count in self.channels:
            if count % self.groups:
                raise ValueError(f"groups ({self.groups}) does not divide {counted(count, 'channel')}")
        return self

    @property
    def divisors(self) -> Axes3:
        """Total down-sampling along x, y, z: patch sizes must be multiples of it."""
        total = [1, 1, 1]
        for stride in self.strides:
            total = [t * s for t, s in zip(total, stride, strict=True)]
        return (total[0], total[1], total[2])


class Plan(Frozen):
    """Everything needed to train at a site and to predict.

    Attributes
    ----------
    channels
        Names of the input channels (modalities), in order.
    labels
        Value in the label map -> name, for foreground labels only; values run from 1 without gaps.
    label_codes
        What labels mean in coding schemes, for labels that have a code.
    patch_size
        Voxels along x, y, z at the target spacing.
    mirror_axes
        Spatial axes (0 is x, left-right in RAS+) along which the anatomy may be flipped.
    batch_size
        Patches per step, if the federation file says ``auto``; None if it gives the number.
    privacy
        Noise of a differentially private federation; None without privacy.
    """

    channels: Annotated[tuple[Name, ...], Field(min_length=1)]
    labels: Labels
    label_codes: LabelCodes = Field(default_factory=dict)
    preprocessing: PreprocessingPlan
    model: ModelPlan
    patch_size: PatchSize
    mirror_axes: tuple[Axis, ...] = ()
    batch_size: BatchSize | None = None
    privacy: PrivacyPlan | None = None

    @model_validator(mode="after")
    def _check_parts_agree(self) -> Plan:
        if sorted(self.labels) != list(range(1, len(self.labels) + 1)):
            raise ValueError(f"labels must be 1, 2, 3, ... without gaps, not {sorted(self.labels)}")
        if strangers := sorted(set(self.label_codes) - set(self.labels)):
            raise ValueError(f"label_codes has label {strangers[0]}, which labels has not")
        if self.model.classes != len(self.labels) + 1:
            raise ValueError(
                f"model.classes is {self.model.classes} for {counted(len(self.labels), 'label')} and the background"
            )
        if self.model.in_channels != len(self.channels):
            raise ValueError(
                f"model.in_channels is {self.model.in_channels} for {counted(len(self.channels), 'channel')}"
            )
        if len(self.preprocessing.intensity) != len(self.channels):
            raise ValueError("preprocessing.intensity needs one entry per channel")
        check_patch_voxels(self.patch_size)
        for size, divisor in zip(self.patch_size, self.model.divisors, strict=True):
            if size % divisor:
                raise ValueError(f"patch_size {self.patch_size} must be a multiple of {self.model.divisors}")
        return self
