"""Cache of preprocessed cases on the local disk.

The name of an entry depends on the content of the case's files and on all settings. Images stay float32, so that
training, validation and prediction see exactly the same numbers; memory-mapping avoids the cost in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.imaging.cache.entry_file import (
    Entry,
    FileDigests,
    digest_json,
    read_entry,
    write_entry,
)
from common.imaging.datasets.case import Case, errors_of, load_case
from common.imaging.preprocessing import preprocess_image, preprocess_label
from common.imaging.scanner_shift import apply_scanner_shift
from common.imaging.threads import CountProgress, map_in_threads
from common.plan.base import Spacing
from common.plan.plan import PreprocessingPlan
from common.plan.scanner_shift import ScannerShift

FOREGROUND_SAMPLES = 10_000
"""Voxel positions kept for each label of a case."""

# Increment when the same files and settings produce different arrays.
_REVISION = 1


@dataclass(frozen=True, eq=False)
class CachedCase:
    """A case ready for training.

    Attributes
    ----------
    name
        The case's name in its dataset.
    image
        (channels, x, y, z) float32, read-only, memory-mapped if the cache is on disk.
    label
        (x, y, z) uint8, read-only, memory-mapped if the cache is on disk.
    spacing
        Voxel spacing of both in mm.
    foreground
        Voxel positions (n, 3) int32 of each label: all of them or a random ``FOREGROUND_SAMPLES``; empty for labels
        that the case lacks.
    patient
        As in ``Case``.
    """

    name: str
    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    spacing: Spacing
    foreground: dict[int, NDArray[np.int32]]
    patient: str | None = None

    @property
    def owner(self) -> str:
        """The patient, as in ``Case``."""
        return self.name if self.patient is None else self.patient


class CaseCache:
    """Preprocessed cases by content. Safe for threads and for several processes on one folder.

    Parameters
    ----------
    folder
        Folder of the entries; created when first needed. None keeps arrays in memory instead.
    plan
        How cases are preprocessed.
    labels
        Values of the foreground labels.
    """

    def __init__(self, folder: Path | None, plan: PreprocessingPlan, labels: Collection[int]) -> None:
        self._folder = folder
        self._plan = plan
        self._labels = tuple(sorted(labels))
        self._digests = FileDigests(folder)
        self._in_memory: dict[str, Entry] = {}

    def get(self, case: Case, shift: ScannerShift | None = None, shift_seed: int = 0) -> CachedCase:
        """Open a case; preprocess it first if it has no intact entry.

        Parameters
        ----------
        case
            A case with a label map.
        shift
            Scanner difference to apply to the image before preprocessing.
        shift_seed
            Seed of the site; the case's noise and bias field depend on it and on the case's content.

        Raises
        ------
        DataError
            If the case cannot be read or does not fit the plan.
        OutputError
            If the cache folder cannot be written.
        """
        cached = self._get(case, shift, shift_seed)
        self._digests.save()
        return cached

    def prepare(
        self,
        cases: Sequence[Case],
        workers: int = 1,
        progress: CountProgress | None = None,
        shift: ScannerShift | None = None,
        shift_seed: int = 0,
    ) -> list[CachedCase]:
        """Open many cases as :meth:`get` does, several at a time.

        Parameters
        ----------
        cases
            Cases with label maps.
        workers
            Number of threads.
        progress
            Called with (cases done, total cases).
        shift
            As for :meth:`get`.
        shift_seed
            As for :meth:`get`.

        Returns
        -------
        list[CachedCase]
            One for each case, in the same order.

        Raises
        ------
        DataError
            If a case cannot be read or does not fit the plan.
        OutputError
            If the cache folder cannot be written.
        """
        try:
            return map_in_threads(lambda case: self._get(case, shift, shift_seed), cases, workers, progress)
        finally:
            self._digests.save()

    def _get(self, case: Case, shift: ScannerShift | None, shift_seed: int) -> CachedCase:
        if case.label is None:
            raise DataError(case.images[0], "has no label map, and training needs one")
        images = [self._digests.digest(path) for path in case.image_files]
        labels = [self._digests.digest(path) for path in case.label_files]
        settings: dict[str, Any] = {
            "revision": _REVISION,
            "images": images,
            "label": labels[0] if len(labels) == 1 else labels,
            "labels": self._labels,
            "plan": self._plan.model_dump(mode="json"),
        }
        if case.changes:
            settings["reading"] = case.changes
        if shift is not None:
            settings |= {"shift": shift.model_dump(mode="json"), "shift_seed": shift_seed}
        key = digest_json(settings)
        entry = self._in_memory.get(key) if self._folder is None else read_entry(self._folder, key)
        if entry is None:
            noise_seed = int(digest_json([shift_seed, images])[:8], 16)
            entry = self._store(key, self._make(case, key, shift, noise_seed))
        return _open(case, entry)

    def _store(self, key: str, entry: Entry) -> Entry:
        if self._folder is None:
            self._in_memory[key] = entry
            return entry
        write_entry(self._folder, key, entry)
        # Reopen the written entry, to free the arrays' memory and to detect a bad write now.
        stored = read_entry(self._folder, key)
        return entry if stored is None else stored

    def _make(self, case: Case, key: str, shift: ScannerShift | None, noise_seed: int) -> Entry:
        with errors_of(case.images[0]):
            return self._preprocess(case, key, shift, noise_seed)

    def _preprocess(self, case: Case, key: str, shift: ScannerShift | None, noise_seed: int) -> Entry:
        volume, label = load_case(case, self._labels, channels=len(self._plan.intensity))
        if label is None:
            raise DataError(case.images[0], "has no label map, and training needs one")
        if shift is not None:
            shifted = apply_scanner_shift(volume.array, volume.grid.spacing, shift, noise_seed)
            volume = type(volume)(shifted, volume.grid, volume.source)
        preprocessed = preprocess_image(volume, self._plan)
        resampled = preprocess_label(label, preprocessed.geometry, self._plan)
        arrays: dict[str, NDArray[Any]] = {"image": preprocessed.image, "label": resampled}
        for value in self._labels:
            arrays[f"foreground_{value}"] = sample_voxels(resampled == value, FOREGROUND_SAMPLES, (int(key, 16), value))
        for array in arrays.values():
            array.setflags(write=False)
        return Entry({"spacing": preprocessed.geometry.spacing, "labels": self._labels}, arrays)


def sample_voxels(mask: NDArray[np.bool_], count: int, seed: tuple[int, ...]) -> NDArray[np.int32]:
    """Return positions (n, 3) of a mask's voxels (x, y, z) in array order: all, or a random ``count`` of them."""
    voxels = np.flatnonzero(mask)
    if len(voxels) > count:
        voxels = np.sort(np.random.default_rng(seed).choice(voxels, count, replace=False))
    return np.stack(np.unravel_index(voxels, mask.shape), axis=1).astype(np.int32)


def _open(case: Case, entry: Entry) -> CachedCase:
    x, y, z = entry.metadata["spacing"]
    foreground = {int(value): entry.arrays[f"foreground_{value}"] for value in entry.metadata["labels"]}
    return CachedCase(case.name, entry.arrays["image"], entry.arrays["label"], (x, y, z), foreground, case.patient)
