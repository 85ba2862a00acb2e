"""Data sets by keyword."""

from __future__ import annotations

from typing import Any

from pydicom.dataset import Dataset


def with_elements(target: Dataset, **values: Any) -> Dataset:
    """Set elements of a data set by their keywords, and return it."""
    for keyword, value in values.items():
        setattr(target, keyword, value)
    return target
