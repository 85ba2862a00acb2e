"""Scanner differences of a simulated site, as configured in the federation file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from common.plan.base import Fraction, Frozen, Intensity, PositiveFloat


class ScannerShift(Frozen):
    """Differences of one site's scanner; the defaults change nothing.

    Steps are applied in the order of image acquisition: resolution, contrast (gamma), coil shading (bias field), noise,
    and finally the units in which the scanner stores its values (scale and offset).

    Attributes
    ----------
    gamma
        Exponent applied to intensities scaled to 0 to 1; above 1 darkens mid-tones.
    bias_field
        Amplitude of a smooth multiplicative field; 0.3 means 0.7 to 1.3 times the signal.
    noise
        Standard deviation of Gaussian noise as a fraction of the volume's intensity range.
    resolution_mm
        Full width at half maximum to which the image is blurred, on axes sampled more finely; None for no blur.
    scale, offset
        Stored = scale * intensity + offset.
    """

    gamma: Annotated[PositiveFloat, Field(le=10)] = 1.0
    bias_field: Annotated[Fraction, Field(lt=1)] = 0.0
    noise: Fraction = 0.0
    resolution_mm: Annotated[PositiveFloat, Field(le=1000)] | None = None
    scale: PositiveFloat = 1.0
    offset: Intensity = 0.0
