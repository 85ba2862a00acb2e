"""Ranges in which the geometry of a scan of a patient can be true."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from common.plan.base import Frozen, PositiveFloat, Real, Switch

Length = Annotated[PositiveFloat, Field(le=1e6)]


class GeometryRanges(Frozen):
    """What a scan's header may say; outside of it, the scan is refused.

    Attributes
    ----------
    voxel_mm
        Smallest and largest edge of a voxel, slice distance included.
    extent_mm
        Longest edge of a volume.
    contradiction_degrees
        Largest angle between the orientations of qform and sform that is not worth a warning.
    accept_contradictions
        Predict and evaluate scans whose qform and sform disagree about sides or voxel size, by their sform.
    """

    voxel_mm: tuple[Length, Length] = (0.05, 20.0)
    extent_mm: Length = 2500.0
    contradiction_degrees: Annotated[Real, Field(ge=0, le=180)] = 5.0
    accept_contradictions: Switch = False

    @model_validator(mode="after")
    def _smallest_first(self) -> Self:
        if self.voxel_mm[0] >= self.voxel_mm[1]:
            raise ValueError("voxel_mm must name the smallest edge first, then the largest")
        return self


USUAL_RANGES = GeometryRanges()
