"""Building blocks of plans and configuration: strict numbers and names, and the base of all models.

Every number in a federation file, a site file, a kit, a plan or a bundle has one of these types or a narrower range of
one. None of them accepts text, a boolean, infinity or NaN, and each has a least and a largest value, so that no file
can ask for what no computer has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

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
LabelValue = Annotated[Whole, Field(ge=1, le=65535), BeforeValidator(_label_value)]
"""A value of label maps, foreground only."""
ValueFirst = BeforeValidator(_value_first)
"""Says so where name and value of labels are swapped."""
Labels = Annotated[dict[LabelValue, Name], Field(min_length=1), ValueFirst]
"""Value in the label maps -> name, foreground only."""


class Frozen(BaseModel):
    """Base of all plan and configuration models: immutable; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _check_code_text(text: str) -> str:
    """Refuse what DICOM would store in another way than it is written, or as several values."""
    if not text.isprintable() or "\\" in text:
        raise ValueError("must be printable characters without backslashes")
    if text != text.strip():
        raise ValueError("must not begin or end with spaces")
    return text


def _check_ascii(text: str) -> str:
    if not text.isascii():
        raise ValueError("must be ASCII")
    return text


def _text_of_digits(value: object) -> object:
    """Read the values of codes, of which most look like numbers."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else value


_Short = Annotated[
    str, Field(min_length=1, max_length=16), AfterValidator(_check_code_text), AfterValidator(_check_ascii)
]


class Code(Frozen):
    """What a label means, as DICOM codes it; a file may also write ``[scheme, value, meaning]``.

    Attributes
    ----------
    scheme
        Coding scheme designator: ``SCT`` for SNOMED CT.
    value
        Code value within the scheme.
    meaning
        Words for people; two codes with the same scheme and value mean the same whatever their words.
    """

    scheme: _Short
    value: Annotated[_Short, BeforeValidator(_text_of_digits)]
    meaning: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_check_code_text)]

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, content: Any) -> Any:
        if isinstance(content, dict | Code):
            return content
        if not isinstance(content, list | tuple) or len(content) != 3:
            raise ValueError("must be [scheme, value, meaning], such as [SCT, 10200004, Liver]")
        return dict(zip(("scheme", "value", "meaning"), content, strict=True))

    def __str__(self) -> str:
        """Return scheme, value and meaning."""
        return f"{self.scheme} {self.value} {self.meaning}"

    @property
    def key(self) -> tuple[str, str]:
        """Scheme and value: equal for codes of the same meaning."""
        return self.scheme, self.value


def check_codes_differ(codes: Mapping[int, Code]) -> dict[int, Code]:
    """Return the codes of labels if no two labels have the same one.

    Raises
    ------
    ValueError
        Names two labels that have.
    """
    first: dict[tuple[str, str], int] = {}
    for value, code in codes.items():
        if (other := first.setdefault(code.key, value)) != value:
            raise ValueError(f"labels {other} and {value} have the same code, {code.scheme} {code.value}")
    return dict(codes)


LabelCodes = Annotated[dict[LabelValue, Code], AfterValidator(check_codes_differ)]
"""Value in the label maps -> code, for labels that have one."""


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
