"""Values of DICOM elements, of which any may be missing, of another type or damaged.

Numbers and codes are decoded here from their bytes: for the dozens of elements of each file, pydicom's conversions take
longer than reading its pixels. Everything else, and text in any character set, is left to pydicom.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from functools import cache

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from common.imaging.io.dicom.slices import RefusedError

_ASCII = frozenset({"CS", "DA", "DS", "DT", "IS", "TM", "UI"})
ANY_LETTERS = frozenset({"LO", "SH"})
"""Types of text that may be in any character set."""

_BINARY = {"FD": "d", "FL": "f", "SL": "i", "SS": "h", "UL": "I", "US": "H", "US or SS": "H"}
_BLANK = "\0 "


def is_plain(value: bytes) -> bool:
    """Return whether text is the same in all character sets."""
    return value.isascii() and b"\x1b" not in value


@cache
def tag_of(keyword: str) -> BaseTag:
    """Return the tag of a keyword of the standard."""
    return Tag(keyword)


def stored(dataset: Dataset, keyword: str) -> bytes:
    """Return a value of text as its bytes, in whatever character set; empty if it is missing."""
    value = getattr(dataset.get_item(tag_of(keyword)), "value", None)
    return value if isinstance(value, bytes) else b""


def text(dataset: Dataset, keyword: str) -> str:
    """Return a value as text, several values with backslashes between them; empty if it is missing.

    Raises
    ------
    RefusedError
        The value cannot be read.
    """
    return "\\".join(part.strip(_BLANK) if isinstance(part, str) else str(part) for part in _parts(dataset, keyword))


def numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return ``count`` finite numbers; None if the element is missing or empty.

    Raises
    ------
    RefusedError
        The value is something else.
    """
    parts = _parts(dataset, keyword)
    if not parts:
        return None
    try:
        found = tuple(float(part.strip(_BLANK) if isinstance(part, str) else part) for part in parts)
    except (ValueError, OverflowError):
        raise RefusedError(f"has a {keyword} that is no number") from None
    if len(found) != count or not all(map(math.isfinite, found)):
        raise RefusedError(f"has a {keyword} that is not {count} finite numbers")
    return found


def number(dataset: Dataset, keyword: str) -> float | None:
    """Return one finite number; None if the element is missing or empty.

    Raises
    ------
    RefusedError
        The value is something else.
    """
    found = numbers(dataset, keyword, 1)
    return None if found is None else found[0]


def whole(dataset: Dataset, keyword: str) -> int | None:
    """Return one whole number; None if the element is missing or empty.

    Raises
    ------
    RefusedError
        The value is something else.
    """
    found = number(dataset, keyword)
    if found is not None and not found.is_integer():
        raise RefusedError(f"has a {keyword} that is no whole number")
    return None if found is None else int(found)


def _parts(dataset: Dataset, keyword: str) -> list[str | float]:
    """Return the values of an element, none if it is missing or empty."""
    tag = tag_of(keyword)
    element = dataset.get_item(tag)
    if element is None:
        return []
    if not isinstance(element, RawDataElement):
        return _converted(dataset, keyword)
    kind = element.VR or dictionary_VR(tag)
    value = element.value or b""
    if kind in _ASCII or (kind in ANY_LETTERS and is_plain(value)):
        found = value.decode("ascii", "backslashreplace")
        return [*found.split("\\")] if found.strip(_BLANK) else []
    if kind not in _BINARY:
        return _converted(dataset, keyword)
    order = "<" if element.is_little_endian else ">"
    try:
        return [*(part for (part,) in struct.iter_unpack(order + _BINARY[kind], value))]
    except struct.error:
        raise RefusedError(f"has a {keyword} that cannot be read") from None


def _converted(dataset: Dataset, keyword: str) -> list[str | float]:
    """Return the values as pydicom converts them."""
    try:
        value = dataset.get(keyword)
    except Exception:  # whatever a damaged value makes of pydicom's conversions
        raise RefusedError(f"has a {keyword} that cannot be read") from None
    if value is None:
        return []
    if isinstance(value, bytes):
        value = value.decode("ascii", "backslashreplace")
    several = isinstance(value, Iterable) and not isinstance(value, str)
    found = [part if isinstance(part, int | float) else str(part) for part in (value if several else [value])]
    return found if any(str(part).strip(_BLANK) for part in found) else []
