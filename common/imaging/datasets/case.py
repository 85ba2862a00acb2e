"""One case of a dataset, and every check that needs only its files."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.formatting import counted, visible
from common.imaging.datasets.masks import read_masks
from common.imaging.geometry import Grid
from common.imaging.io.nifti import grid_problem, read_label, read_volume
from common.imaging.plausibility import range_problem
from common.imaging.ranges import USUAL_RANGES, GeometryRanges
from common.imaging.volume import Volume
from common.system.memory import MemoryLimitError

if TYPE_CHECKING:
    from common.imaging.io.dicom.labels.objects import LabelObject, Overlap, Structure
    from common.imaging.io.dicom.slices import Series


@dataclass(frozen=True)
class Reading:
    """How a site reads its files.

    Attributes
    ----------
    ranges
        What their geometry may be.
    patient_rule
        Finds the patient in the name of a case, where there is no ``patients.csv`` (``name_rule``).
    label_values
        Stored value and value after reading, of each label that changes.
    channel_order
        Stored channels in the order wanted; empty for all as stored.
    structures
        Labels as the segments of DICOM are compared with them.
    overlap
        What becomes of voxels of DICOM with two labels, as in ``read_label_map``.
    """

    ranges: GeometryRanges = USUAL_RANGES
    patient_rule: re.Pattern[str] | None = None
    label_values: tuple[tuple[int, int], ...] = ()
    channel_order: tuple[int, ...] = ()
    structures: tuple[Structure, ...] = ()
    overlap: Overlap = "refuse"

    @property
    def changes(self) -> dict[str, Any]:
        """What it changes in the arrays, for the keys of caches; empty if nothing."""
        found = {"label_values": self.label_values, "channel_order": self.channel_order}
        return {name: value for name, value in found.items() if value}


AS_STORED = Reading()


@dataclass(frozen=True)
class Case:
    """One scan's image files (one per channel, or one file with all channels) and label map.

    Attributes
    ----------
    patient
        Patient from the folder's ``patients.csv`` or the site's rule, or the first of the cases with one PatientID of
        DICOM; None means that the case is its own patient.
    reading
        How its files are read.
    series
        The DICOM series that is its image; ``images`` then holds its folder, or a file of it, for messages.
    objects
        DICOM files with its labels; ``label`` is then the first of them, for messages.
    masks
        Value and file of each structure, where each has a mask of its own; ``label`` is then the first, for messages.
    patient_id
        PatientID of DICOM, where ``patient`` follows from it: for the hospital's ledger alone, which hashes it. It has
        no place in messages, nor in a file.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None
    patient: str | None = None
    reading: Reading = AS_STORED
    series: Series | None = None
    objects: tuple[LabelObject, ...] = ()
    masks: tuple[tuple[int, Path], ...] = ()
    patient_id: str | None = field(default=None, repr=False)

    @property
    def image_files(self) -> tuple[Path, ...]:
        """All files of its image, those of a series in order of its slices."""
        if self.series is None:
            return self.images
        return tuple(dict.fromkeys(one.path for one in self.series.slices))

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of its image and label map."""
        return (*self.image_files, *self.label_files)

    @property
    def label_files(self) -> tuple[Path, ...]:
        """All files of its label map."""
        if self.objects:
            return tuple(one.path for one in self.objects)
        if self.masks:
            return tuple(path for _, path in self.masks)
        return () if self.label is None else (self.label,)

    @property
    def changes(self) -> dict[str, Any]:
        """What decides, beside the content of its files, what is read from them; for the keys of caches."""
        found = self.reading.changes
        if self.series is not None:
            shift = self.series.shift
            found["series"] = (self.series.part, shift.columns, shift.rows)
        if self.objects:
            known = [(one.value, one.name, one.code, one.aliases) for one in self.reading.structures]
            found["structures"] = (known, self.reading.overlap)
        if self.masks:
            found["masks"] = tuple(value for value, _ in self.masks)
        return found

    @property
    def owner(self) -> str:
        """Identifier of the patient: equal for two cases of a dataset only if they are scans of one patient."""
        return self.name if self.patient is None else self.patient


@dataclass(frozen=True)
class Problem:
    """A problem with one case or, if ``case`` is None, with the dataset.

    The data is usable despite a ``warning``, but not with an ``error``.
    """

    case: str | None
    path: Path
    text: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        """Return file and text as one line, with control characters of names visible."""
        return visible(f"{self.path}: {self.text}")


def load_case(
    case: Case, labels: Collection[int] | None, channels: int | None = None
) -> tuple[Volume, NDArray[np.uint8] | None]:
    """Read and validate a case.

    Parameters
    ----------
    case
        A case from :func:`find_dataset`.
    labels
        Allowed foreground values; None (or empty) allows all.
    channels
        Required number of channels; None allows any number.

    Returns
    -------
    tuple[Volume, NDArray[np.uint8] | None]
        The image, and its label map, uint8 (x, y, z) on ``Volume.grid``; None for a case without one.

    Raises
    ------
    DataError
        If a file cannot be read or used; reports the first problem found.
    """
    with errors_of(case.images[0]):
        volume = read_image(case)
        problems = image_problems(case, volume, channels)
        label = None
        if case.label is not None:
            label, grid = read_case_label(case, case.label)
            problems += label_problems(case, volume.grid, grid, label_counts(label), labels)
    if problems:
        raise DataError(problems[0].path, problems[0].text)
    return volume, label


def read_image(case: Case) -> Volume:
    """Read a case's image with its channels in the wanted order.

    Raises
    ------
    DataError
        As for ``read_volume`` or ``read_series``, and if a wanted channel is missing.
    """
    order = case.reading.channel_order
    if order and len(case.images) > max(order):
        return read_volume([case.images[channel] for channel in order])
    if case.series is None:
        volume = read_volume(case.images)
    else:
        # Late: importing pydicom takes long.
        from common.imaging.io.dicom.volume import read_series

        volume = read_series(case.series)
    if not order:
        return volume
    if max(order) >= len(volume.array):
        raise DataError(
            case.images[0], f"has {counted(len(volume.array), 'channel')}, and channels_map needs number {max(order)}"
        )
    return replace(volume, array=volume.array[list(order)])


def read_case_label(
    case: Case, path: Path, tell: Callable[[str], None] | None = None
) -> tuple[NDArray[np.uint8], Grid]:
    """Read a case's label map, from ``path`` if it is NIfTI, with the values that are wanted.

    ``tell`` is called with what is odd about labels in DICOM, and no error.

    Raises
    ------
    DataError
        As for ``read_label``, ``read_masks`` or ``read_label_map``.
    """
    if case.objects and case.series is not None:
        # Late: importing pydicom takes long.
        from common.imaging.io.dicom.labels.label_map import read_label_map

        reading = case.reading
        return read_label_map(case.series, case.objects, reading.structures, reading.overlap, tell)
    label, grid = read_masks(case.masks) if case.masks else read_label(path)
    if case.reading.label_values:
        table = np.arange(256, dtype=np.uint8)
        for stored, value in case.reading.label_values:
            table[stored] = value
        label = table[label]
    return label, grid


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Convert whatever goes wrong with one scan to an error of that scan, so that the others can go on.

    Raises
    ------
    DataError
        Names the file. Errors of the configuration, of results that cannot be written and of the program stay as they
        are.
    """
    try:
        yield
    except MemoryLimitError as error:
        raise DataError(path, str(error)) from error
    except MemoryError as error:
        raise DataError(path, "does not fit into memory; crop or resample it, or use a machine with more") from error
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror or error})") from error
    except (ValueError, ArithmeticError) as error:
        raise DataError(path, f"cannot be processed ({error})") from error
    except RuntimeError as error:
        # PyTorch reports in this way that an allocation failed, on CPUs and GPUs.
        if "memory" not in str(error):
            raise
        raise DataError(path, "does not fit into memory; crop or resample it, or use a machine with more") from error


def image_problems(case: Case, volume: Volume, channels: int | None = None) -> list[Problem]:
    """Find impossible sizes, NaN or infinite voxels, constant channels, and a wrong number of channels."""
    problems = []
    count = volume.array.shape[0]
    if text := range_problem(volume.grid, case.reading.ranges):
        problems.append(Problem(case.name, case.images[0], text))
    if channels is not None and count != channels:
        problems.append(Problem(case.name, case.images[0], f"has {counted(count, 'channel')}, expected {channels}"))
    for channel, values in enumerate(volume.array):
        path = case.images[channel if len(case.images) > 1 else 0]
        which = f" in channel {channel}" if count > 1 and len(case.images) == 1 else ""
        with np.errstate(invalid="ignore"):
            lowest, highest = float(values.min()), float(values.max())
        # Minimum and maximum propagate any NaN or infinity, without allocating a mask.
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            bad = values.size - int(np.count_nonzero(np.isfinite(values)))
            are = "voxel that is" if bad == 1 else "voxels that are"
            problems.append(Problem(case.name, path, f"holds {bad:,} {are} NaN or infinite{which}"))
        elif lowest == highest:
            problems.append(Problem(case.name, path, f"is empty: every voxel is {lowest:g}{which}"))
    return problems


def label_problems(
    case: Case, image_grid: Grid, label_grid: Grid, counts: NDArray[np.int64], labels: Collection[int] | None
) -> list[Problem]:
    """Find a label map whose grid (RAS+) differs from its image's, and undeclared label values.

    Parameters
    ----------
    counts
        Number of voxels of each value, from :func:`label_counts`.
    labels
        Declared foreground values; None or empty allows all.
    """
    if case.label is None:
        return []
    problems = []
    text = grid_problem(image_grid, label_grid, case.images[0])
    if text:
        problems.append(Problem(case.name, case.label, text))
    undeclared = [int(value) for value in np.flatnonzero(counts) if value > 0 and value not in (labels or range(256))]
    if undeclared:
        found = ", ".join(str(value) for value in undeclared[:10]) + (", ..." if len(undeclared) > 10 else "")
        declared = ", ".join(str(value) for value in sorted(labels or ()))
        text = f"holds label values that are not declared: {found} (declared: {declared})"
        problems.append(Problem(case.name, case.label, text))
    return problems


def label_counts(label: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count the voxels of each of the 256 values; int64 (256,)."""
    counts = np.zeros(256, dtype=np.int64)
    # bincount widens its input to eight bytes per voxel; slabs keep that small.
    for slab in np.array_split(label, max(1, label.size // 2**22)):
        counts += np.bincount(slab.ravel(), minlength=256)
    return counts
