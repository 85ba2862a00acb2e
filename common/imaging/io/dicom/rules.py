"""What a hospital decides about reading DICOM."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from common.imaging.io.dicom.choice.rules import SeriesRule, as_tuple
from common.plan.base import Frozen, PositiveInt


class DicomRules(Frozen):
    """The hospital's choices.

    Attributes
    ----------
    min_slices
        A series with fewer slices is left out: it is no volume.
    gantry_tilt
        ``refuse`` series of a tilted gantry, or ``resample`` them to upright ones.
    series
        Rules that choose the series to use, or one rule; all are used if there is none.
    overlap
        ``refuse`` labels of which two have the same voxel, or give it to the ``later`` one: that of the larger value.
    """

    min_slices: Annotated[PositiveInt, Field(ge=2)] = 5
    gantry_tilt: Literal["refuse", "resample"] = "refuse"
    series: Annotated[tuple[SeriesRule, ...], Field(max_length=50), BeforeValidator(as_tuple)] = ()
    overlap: Literal["refuse", "later"] = "refuse"


USUAL_RULES = DicomRules()
