"""Finding series in a folder: any mix of files in any subfolders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError
from common.imaging.io.dicom.choice.apply import mark_chosen
from common.imaging.io.dicom.header import Instance, looks_like_dicom, read_header
from common.imaging.io.dicom.pixel_form import LABEL_KINDS
from common.imaging.io.dicom.rules import DicomRules
from common.imaging.io.dicom.series import group_series
from common.imaging.io.dicom.slices import Series


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes
    ----------
    series
        Volumes and refused series, those included that the rules do not choose; sorted by folder and number.
    damaged
        DICOM files that could not be assigned to a series.
    others
        Files that are not DICOM, or a DICOMDIR.
    labels
        Segmentation objects and structure sets, which are in ``series`` as well, left out.
    """

    series: tuple[Series, ...]
    damaged: tuple[DataError, ...]
    others: tuple[Path, ...]
    labels: tuple[Instance, ...]


def holds_dicom(root: Path) -> bool:
    """Return whether a path is a DICOM file, or a folder with one anywhere inside."""
    return any(looks_like_dicom(path) for path in _files(root))


def count_dicom(root: Path) -> int:
    """Return the number of DICOM files anywhere inside a folder.

    Raises
    ------
    DataError
        A folder cannot be read.
    """
    return sum(looks_like_dicom(path) for path in _files(root))


def find_series(root: Path, rules: DicomRules) -> Found:
    """Read the headers of all files under a folder, or of one file, and group them into series.

    Raises
    ------
    DataError
        A folder cannot be read.
    """
    instances: list[Instance] = []
    damaged: list[DataError] = []
    others: list[Path] = []
    for path in _files(root):
        try:
            instance = read_header(path) if looks_like_dicom(path) else None
        except DataError as error:
            damaged.append(error)
            continue
        if instance is None:
            others.append(path)
        else:
            instances.append(instance)
    series = mark_chosen(group_series(instances, rules), rules.series)
    labels = tuple(one for one in instances if one.kind in LABEL_KINDS)
    return Found(tuple(series), tuple(damaged), tuple(others), labels)


def _files(root: Path) -> Iterator[Path]:
    """List what is no folder, in order of names; links are followed, and each folder is entered once."""
    if not root.is_dir():
        yield root
        return
    entered: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_unreadable):
        subfolders.sort()
        state = Path(folder).stat()
        if (state.st_dev, state.st_ino) in entered:
            subfolders.clear()
            continue
        entered.add((state.st_dev, state.st_ino))
        yield from (Path(folder, name) for name in sorted(names))


def _unreadable(error: OSError) -> None:
    """Raise instead of leaving a folder out without a word."""
    raise DataError(Path(error.filename), f"cannot be read ({error.strerror})") from error
