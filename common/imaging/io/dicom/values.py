"""Values of DICOM elements, of which any may be missing, of another type or damaged."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from pydicom.dataset import Dataset

from common.imaging.io.dicom.slices import RefusedError


def text(dataset: Dataset, keyword: str) -> str:
    """Return a value as text, several values with backslashes between them; empty if it is missing.

    Raises
    ------
    RefusedError
        The value cannot be read.
    """
    value = _value(dataset, keyword)
    if value is None:
        return ""
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return "\\".join(str(part).strip("\0 ") for part in value)
    return str(value).strip("\0 ")


def numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return ``count`` finite numbers; None if the element is missing or empty.

    Raises
    ------
    RefusedError
        The value is something else.
    """
    value = _value(dataset, keyword)
    if value is None:
        return None
    parts = list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [value]
    if not parts:
        return None
    try:
        found = tuple(float(part) for part in parts)
    except (TypeError, ValueError, OverflowError):
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


def _value(dataset: Dataset, keyword: str) -> Any:
    """Return a value as pydicom converts it; None if it is missing or empty."""
    try:
        value = dataset.get(keyword)
    except Exception:  # whatever a damaged value makes of pydicom's conversions
        raise RefusedError(f"has a {keyword} that cannot be read") from None
    if isinstance(value, bytes):
        value = value.decode("ascii", "backslashreplace")
    return None if isinstance(value, str) and not value.strip("\0 ") else value
