"""How the scanner of a simulated site differs, as the federation file says it."""

from __future__ import annotations

from pydantic import Field

from common.plan.base import Frozen


class ScannerShift(Frozen):
    """How one site's scanner differs; the defaults change nothing.

    The steps are applied in the order of a scan: resolution, contrast (gamma), coil shading (bias field), noise, and
    last the units in which the scanner stores its numbers (scale and offset).

    Attributes
    ----------
    gamma
        exponent applied to intensities brought to 0..1; above 1 darkens mid-tones.
    bias_field
        amplitude of a smooth multiplicative field, 0.3 means 0.7 to 1.3 times the signal.
    noise
        standard deviation of Gaussian noise as a fraction of the volume's intensity range.
    resolution_mm
        full width at half maximum to which the image is blurred, on axes sampled more finely; None for no blur.
    scale, offset
        stored = scale * intensity + offset.
    """

    gamma: float = Field(default=1.0, gt=0, le=10)
    bias_field: float = Field(default=0.0, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0, le=1)
    resolution_mm: float | None = Field(default=None, gt=0)
    scale: float = Field(default=1.0, gt=0)
    offset: float = Field(default=0.0, allow_inf_nan=False)
