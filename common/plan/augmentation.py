"""Augmentation settings, separate from their implementation so that reading them does not import torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from common.plan.base import Fraction, Frozen, NonNegativeFloat, PositiveFloat, Real

_Factor = Annotated[Real, Field(ge=0.01, le=100)]
_Sigma = Annotated[PositiveFloat, Field(le=100)]
_Share = Annotated[Real, Field(ge=0.01, le=1)]


class AugmentationPlan(Frozen):
    """Probabilities and ranges of the random changes made to a patch; each range is drawn from uniformly.

    Intensities are assumed to be normalised: noise is in units of the volume's standard deviation.

    Attributes
    ----------
    mirror
        Probability of flipping, for each axis along which the plan allows it.
    rotation
        Probability of rotating.
    rotation_degrees
        Largest angle about each axis. If slices are more than three times as thick as pixels are wide, patches rotate
        only within the slices.
    scaling
        Probability of scaling.
    scale
        Range of the factor; above 1 enlarges.
    gamma
        Probability of raising intensities, scaled to 0 to 1, to a power.
    gamma_exponent
        Range of the exponent.
    noise
        Probability of adding Gaussian noise.
    noise_std
        Range of its standard deviation.
    blur
        Probability of a Gaussian blur.
    blur_sigma
        Range of its standard deviation, in voxels of the finest axis.
    low_resolution
        Probability of down-sampling and up-sampling again.
    low_resolution_factor
        Range of the lower resolution as a fraction of the full one.
    """

    mirror: Fraction = 0.5
    rotation: Fraction = 0.2
    rotation_degrees: Annotated[Real, Field(ge=0, le=180)] = 20.0
    scaling: Fraction = 0.2
    scale: tuple[_Factor, _Factor] = (0.8, 1.25)
    gamma: Fraction = 0.2
    gamma_exponent: tuple[_Factor, _Factor] = (0.7, 1.5)
    noise: Fraction = 0.15
    noise_std: tuple[NonNegativeFloat, NonNegativeFloat] = (0.0, 0.2)
    blur: Fraction = 0.1
    blur_sigma: tuple[_Sigma, _Sigma] = (0.5, 1.0)
    low_resolution: Fraction = 0.1
    low_resolution_factor: tuple[_Share, _Share] = (0.5, 1.0)

    @model_validator(mode="after")
    def _check_ranges(self) -> AugmentationPlan:
        for name in ("scale", "gamma_exponent", "noise_std", "blur_sigma", "low_resolution_factor"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the first value ({low}) must not exceed the second ({high})")
        return self
