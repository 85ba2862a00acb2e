"""Check of a whole dataset before it joins a federation: its contents, and every problem with it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from client.data.dataset_report import CaseReport, DatasetReport
from client.data.series_report import report_series
from common.errors import DataError
from common.imaging.coarse_print import coarse_prints
from common.imaging.datasets.case import (
    Case,
    Problem,
    errors_of,
    image_problems,
    label_counts,
    label_problems,
    read_case_label,
    read_image,
)
from common.imaging.datasets.comparison import ANYTHING, OWN_TERMS, SiteTerms, Wanted, compare
from common.imaging.datasets.dataset import Dataset, scan_dataset
from common.imaging.datasets.patients_csv import PATIENTS_FILE
from common.imaging.geometry import Grid
from common.imaging.io.nifti import read_volume
from common.imaging.memory_order import in_c_order
from common.imaging.plausibility import header_contradictions, padding_problem
from common.imaging.preprocessing import require_room

if TYPE_CHECKING:
    from common.plan.plan import PreprocessingPlan


def check_dataset(
    root: Path,
    wanted: Wanted = ANYTHING,
    progress: Callable[[int, int], None] | None = None,
    terms: SiteTerms = OWN_TERMS,
) -> DatasetReport:
    """Read every case once and collect every problem.

    Parameters
    ----------
    root
        The dataset folder.
    wanted
        What the federation wants; without labels, those that the dataset itself declares are used.
    progress
        Called with cases read and cases in all.
    terms
        What the hospital's site file says about its data.

    Raises
    ------
    DataError
        There is nothing to check: the folder is missing, empty or in no known layout, or the rule for patients does
        not fit the name of a case.
    """
    dataset, problems = scan_dataset(root, terms.dicom, bids=terms.bids)
    dataset, differences = compare(dataset, wanted, terms)
    problems += differences
    declared = dict(wanted.labels if wanted.labels is not None else dataset.labels)
    if not dataset.has_labels:
        text = "holds images without label maps: good for predict, not for training"
        problems.append(Problem(None, dataset.root, text, "warning" if wanted.labels is None else "error"))
    found = []
    for done, case in enumerate(dataset.cases, start=1):
        found.append(_read_case(case, declared, len(wanted.channels or dataset.channels), wanted.preprocessing))
        problems += found[-1].problems
        if progress is not None:
            progress(done, len(dataset.cases))
    counts = sum((item.counts for item in found if item.counts is not None), np.zeros(256, dtype=np.int64))
    shown = declared or {int(value): f"label {value}" for value in np.flatnonzero(counts) if value > 0}
    problems += _twins(found)
    if any(item.counts is not None for item in found):
        problems += [
            Problem(None, dataset.root, f"label {value} ({name}) is declared, but no case has it", "warning")
            for value, name in declared.items()
            if counts[value] == 0
        ]
    broken = {problem.case for problem in problems if problem.severity == "error" and problem.case is not None}
    reports = {item.case.name: _report(item, shown, item.case.name not in broken) for item in found}
    reports |= {name: CaseReport(name, usable=False) for name in broken - set(reports)}
    cases = tuple(reports[name] for name in sorted(reports))
    owners = {case.patient for case in dataset.cases if case.patient is not None}
    return DatasetReport(
        root=dataset.root,
        layout=dataset.layout,
        channels=dataset.channels,
        labels=shown,
        cases=cases,
        problems=tuple(dict.fromkeys(problems)),
        patients=len(owners) or None,
        patients_by=_patients_by(dataset),
        series=report_series(dataset, broken),
    )


def _patients_by(dataset: Dataset) -> str:
    """Say what names the patients."""
    if any(case.patient_id for case in dataset.cases):
        return "PatientID"
    is_table = not dataset.layout.startswith("bids") or (dataset.root / PATIENTS_FILE).exists()
    return PATIENTS_FILE if is_table else "subject"


@dataclass(eq=False)
class _Found:
    """One case as read, without its voxels."""

    case: Case
    problems: list[Problem] = field(default_factory=list)
    grid: Grid | None = None
    orientation: str | None = None
    intensity: tuple[tuple[float, float], ...] = ()
    digest: bytes | None = None
    prints: tuple[str, ...] = ()
    counts: NDArray[np.int64] | None = None
    voxel_ml: float = 0.0


def _read_case(case: Case, labels: Collection[int], channels: int, preprocessing: PreprocessingPlan | None) -> _Found:
    found = _Found(case)
    try:
        with errors_of(case.images[0]):
            _read_case_image(found, channels, preprocessing)
    except DataError as error:
        found.problems += _unreadable(case, error)
    if case.label is not None:
        try:
            with errors_of(case.label):
                _read_case_label(found, case.label, labels)
        except DataError as error:
            found.problems.append(Problem(case.name, error.path, error.problem))
    return found


def _read_case_image(found: _Found, channels: int, preprocessing: PreprocessingPlan | None) -> None:
    case = found.case
    volume = read_image(case)
    found.grid, found.orientation = volume.grid, volume.source.orientation
    found.intensity = tuple((float(values.min()), float(values.max())) for values in volume.array)
    voxels = np.ascontiguousarray(in_c_order(volume.array))
    found.digest = hashlib.blake2b(voxels.data, digest_size=16).digest()
    found.prints = coarse_prints(volume.array)
    found.problems += image_problems(case, volume, channels)
    doubts = [item.text for item in header_contradictions(volume.source, case.reading.ranges)]
    if not volume.source.orientation_declared:
        doubts.append("does not say which side is left (qform and sform codes are 0), so left and right are guessed")
    for values, (lowest, highest) in zip(volume.array, found.intensity, strict=True):
        if math.isfinite(lowest) and math.isfinite(highest) and (text := padding_problem(values, lowest, highest)):
            doubts.append(text)
    found.problems += [Problem(case.name, case.images[0], text, "warning") for text in doubts]
    if preprocessing is not None:
        require_room(volume, preprocessing)


def _read_case_label(found: _Found, path: Path, labels: Collection[int]) -> None:
    odd: list[str] = []
    label, grid = read_case_label(found.case, path, odd.append)
    found.problems += [Problem(found.case.name, path, text, "warning") for text in odd]
    found.counts, found.voxel_ml = label_counts(label), grid.voxel_volume_ml
    # Without a readable image there is no grid to compare with, but the label values can still be checked.
    found.problems += label_problems(found.case, found.grid or grid, grid, found.counts, labels)
    if not found.counts[1:].any():
        found.problems.append(Problem(found.case.name, path, "is empty: it is all background", "warning"))


def _unreadable(case: Case, error: DataError) -> list[Problem]:
    """List the error, or those of the channel files that cannot be read on their own."""
    problems = []
    for path in case.images if len(case.images) > 1 else ():
        try:
            with errors_of(path):
                read_volume(path)
        except DataError as single:
            problems.append(Problem(case.name, single.path, single.problem))
    return problems or [Problem(case.name, error.path, error.problem)]


def _twins(found: Sequence[_Found]) -> list[Problem]:
    problems = []
    first_with: dict[bytes, Case] = {}
    first_like: dict[str, Case] = {}
    for item in found:
        if item.digest is None:
            continue
        twin = first_with.setdefault(item.digest, item.case)
        like = [first_like.setdefault(one, item.case) for one in item.prints]
        others = [case for case in like if case.owner != item.case.owner]
        if others and twin.name == item.case.name:
            text = (
                f"has nearly the same voxels as case {others[0].name}: if both are scans of one patient, remove one or "
                f"name the patient in {PATIENTS_FILE}"
            )
            problems.append(Problem(item.case.name, item.case.images[0], text, "warning"))
        if twin.name != item.case.name:
            text = f"has the same voxels as case {twin.name}: remove one"
            if twin.owner != item.case.owner:
                text += (
                    f", or one patient may be in both training and validation (or name the patient in {PATIENTS_FILE})"
                )
            problems.append(Problem(item.case.name, item.case.images[0], text, "warning"))
    return problems


def _report(found: _Found, labels: Collection[int], usable: bool) -> CaseReport:
    counts = found.counts
    return CaseReport(
        name=found.case.name,
        shape=found.grid.shape if found.grid else None,
        spacing=found.grid.spacing if found.grid else None,
        orientation=found.orientation,
        intensity=found.intensity,
        label_ml=None if counts is None else {value: float(counts[value]) * found.voxel_ml for value in labels},
        usable=usable,
    )
