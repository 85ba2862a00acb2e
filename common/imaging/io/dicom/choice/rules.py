"""The hospital's rules; plain values, without pydicom."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from common.patterns import matches
from common.plan.base import Frozen, Switch

LONGEST_COMPARED = 1024
"""Characters of a value that a pattern is compared with; a longer one fits none."""


def _printable(pattern: str) -> str:
    if not pattern.isprintable() or not pattern.strip():
        raise ValueError("must be a pattern of printable characters, such as T1*")
    return pattern


def as_tuple(value: object) -> object:
    """Let one of something stand for a list of one."""
    return value if isinstance(value, list | tuple) else (value,)


Pattern = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_printable)]
Patterns = Annotated[tuple[Pattern, ...], Field(min_length=1, max_length=50), BeforeValidator(as_tuple)]


class SeriesRule(Frozen):
    """One rule: a series that fits all of its criteria is used, if it is the one to choose among those.

    Patterns are for whole values: ``*`` stands for anything, ``?`` for one character; capitals do not matter. Of
    several patterns one must fit.

    Attributes
    ----------
    modality, description, body_part
        Patterns of Modality, SeriesDescription and BodyPartExamined.
    contrast
        Whether a contrast agent must be stated, or must not.
    choose
        Which of those that fit: ``all``; the ``newest``; that of ``most_slices``; or the ``only`` one, where several
        are an error.
    per
        Among which: those of a ``study``, or of a ``patient``.
    """

    modality: Patterns | None = None
    description: Patterns | None = None
    body_part: Patterns | None = None
    contrast: Switch | None = None
    choose: Literal["all", "newest", "most_slices", "only"] = "all"
    per: Literal["study", "patient"] = "study"


def fits(patterns: tuple[str, ...], value: str) -> bool:
    """Return whether one of the patterns fits a value."""
    folded = value.strip().casefold()
    return len(folded) <= LONGEST_COMPARED and any(matches(pattern.casefold(), folded) for pattern in patterns)
