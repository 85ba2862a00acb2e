"""Building blocks of plans and configuration: strict numbers and names, and the base of all models.

Every number in a federation file, a site file, a kit, a plan or a bundle has one of these types or a narrower range of
one. None of them accepts text, a boolean, infinity or NaN, and each has a least and a largest value, so that no file
can ask for what no computer has.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Axes3 = tuple[int, int, int]
"""Whole numbers along x, y, z."""
Spacing = tuple[float, float, float]
"""A spacing as measured, in mm along x, y, z."""

Whole = Annotated[int, Field(strict=True)]
"""A whole number; give it a range."""
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite number; give it a range."""
Switch = Annotated[bool, Field(strict=True)]
PositiveInt = Annotated[Whole, Field(ge=1, le=1_000_000)]
PositiveFloat = Annotated[Real, Field(gt=0, le=1e9)]
NonNegativeFloat = Annotated[Real, Field(ge=0, le=1e9)]
Fraction = Annotated[Real, Field(ge=0, le=1)]
OpenFraction = Annotated[Real, Field(gt=0, lt=1)]
Intensity = Annotated[Real, Field(ge=-1e12, le=1e12)]
"""A value as stored in a scan."""
MinimumCell = Annotated[Whole, Field(ge=2, le=1000)]
"""Fewest patients in a cell of a histogram that is shown: a cell of one patient would be that patient."""
TargetSpacing = tuple[
    Annotated[Real, Field(ge=0.01, le=1000)],
    Annotated[Real, Field(ge=0.01, le=1000)],
    Annotated[Real, Field(ge=0.01, le=1000)],
]
"""A spacing to resample to, in mm along x, y, z."""

MOST_STAGES = 10
MOST_PATCH_VOXELS = 2**27
LEAST_BATCH, MOST_PATCHES = 2, 4096
"""Fewest patches of an automatically chosen batch, and most of any."""
BatchSize = Annotated[PositiveInt, Field(le=MOST_PATCHES)]
Width = Annotated[Whole, Field(ge=1, le=4096)]
"""Channels of a network's layer."""
Blocks = Annotated[Whole, Field(ge=1, le=64)]
PatchEdge = Annotated[Whole, Field(ge=1, le=4096)]
PatchSize = tuple[PatchEdge, PatchEdge, PatchEdge]


def whole_number(value: object) -> object:
    """Refuse ``true`` and 1.0 for 1, which are equal to it in Python."""
    if isinstance(value, float) or value is True or value is False:
        raise ValueError("must be a whole number")
    return value


Axis = Annotated[Literal[0, 1, 2], BeforeValidator(whole_number)]
SplineOrder = Annotated[Literal[1, 3], BeforeValidator(whole_number)]
_KernelEdge = Annotated[Literal[1, 3, 5], BeforeValidator(whole_number)]
_StrideEdge = Annotated[Literal[1, 2, 4], BeforeValidator(whole_number)]
Kernel = tuple[_KernelEdge, _KernelEdge, _KernelEdge]
Stride = tuple[_StrideEdge, _StrideEdge, _StrideEdge]


def _check_name(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("must be a name of printable characters")
    return text


def _label_value(key: object) -> object:
    """Read the keys of JSON, which are always text."""
    return int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() and key[0] != "0" else key


def _value_first(labels: Any) -> Any:
    if isinstance(labels, dict) and labels:
        swapped = all(isinstance(key, str) and not key.isdecimal() for key in labels)
        if swapped and all(isinstance(value, int) for value in labels.values()):
            name, value = next(iter(labels.items()))
            raise ValueError(f"the value comes first: write {{{value}: {name}}}")
    return labels


Name = Annotated[str, Field(max_length=200), AfterValidator(_check_name)]
"""Name of a label or channel."""
Labels = Annotated[
    dict[Annotated[Whole, Field(ge=1, le=65535), BeforeValidator(_label_value)], Name],
    Field(min_length=1),
    BeforeValidator(_value_first),
]
"""Value in the label maps -> name, foreground only."""


class Frozen(BaseModel):
    """Base of all plan and configuration models: immutable; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def check_patch_voxels(size: tuple[int, int, int]) -> None:
    """Refuse a patch that no computer can train on.

    Raises
    ------
    ValueError
        It has more than ``MOST_PATCH_VOXELS``.
    """
    voxels = size[0] * size[1] * size[2]
    if voxels > MOST_PATCH_VOXELS:
        raise ValueError(f"patch_size {list(size)} has {voxels:,} voxels, more than {MOST_PATCH_VOXELS:,}; lower it")
