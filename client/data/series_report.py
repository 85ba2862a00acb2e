"""What became of each DICOM series of a folder, study by study."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.imaging.datasets.dataset import Dataset

if TYPE_CHECKING:
    from common.imaging.io.dicom.slices import Series


@dataclass(frozen=True)
class SeriesReport:
    """One series, or the part of it that is one volume.

    Attributes
    ----------
    study
        Number of the study in this report, from 1.
    study_uid, series_uid, number, description, modality, part
        As in ``Series``; shortened if too long, with control characters visible.
    instances
        Number of files.
    case
        Its case; empty if it was refused or left out.
    outcome
        ``read``, ``refused`` or ``left out``.
    reason
        Why it was not read; empty if it was.
    """

    study: int
    study_uid: str
    series_uid: str
    number: str
    description: str
    modality: str
    part: str
    instances: int
    case: str
    outcome: str
    reason: str


def report_series(dataset: Dataset, broken: Collection[str]) -> tuple[SeriesReport, ...]:
    """Say what became of a dataset's series.

    Parameters
    ----------
    dataset
        The dataset; reports are empty if it has no DICOM.
    broken
        Names of cases with an error.
    """
    if not dataset.series:
        return ()
    from common.imaging.io.dicom.slices import shown

    names = {id(case.series): case.name for case in dataset.cases}
    studies: dict[str, int] = {}
    found = []
    for series in dataset.series:
        name = names.get(id(series), "")
        outcome, reason = _outcome(series, name, name in broken)
        found.append(
            SeriesReport(
                study=studies.setdefault(series.study, len(studies) + 1),
                study_uid=shown(series.study),
                series_uid=shown(series.uid),
                number=shown(series.number),
                description=shown(series.description),
                modality=shown(series.modality),
                part=series.part,
                instances=series.instances,
                case=name,
                outcome=outcome,
                reason=reason,
            )
        )
    return tuple(sorted(found, key=lambda one: one.study))


def _outcome(series: Series, name: str, is_broken: bool) -> tuple[str, str]:
    if series.refusal:
        return ("left out" if series.left_out else "refused"), series.refusal
    if not name:
        return "left out", "has no label map"
    return ("refused", "has errors that are listed below") if is_broken else ("read", "")


def series_rows(series: Sequence[SeriesReport]) -> list[tuple[str, ...]]:
    """Return rows of a table, its head first."""
    rows: list[tuple[str, ...]] = [("study", "series", "description", "modality", "part", "files", "case", "outcome")]
    for one in series:
        outcome = f"{one.outcome}: {one.reason}" if one.reason else one.outcome
        words = [cell or "-" for cell in (one.number, one.description, one.modality, one.part)]
        rows.append((str(one.study), *words, str(one.instances), one.case or "-", outcome))
    return rows


def studies_json(series: Sequence[SeriesReport]) -> list[dict[str, Any]]:
    """Return the studies with their series, for a report in JSON."""
    studies: dict[int, dict[str, Any]] = {}
    for one in series:
        study = studies.setdefault(one.study, {"study_uid": one.study_uid, "series": []})
        study["series"].append(
            {
                "series_uid": one.series_uid,
                "number": one.number,
                "description": one.description,
                "modality": one.modality,
                "part": one.part,
                "files": one.instances,
                "case": one.case or None,
                "outcome": one.outcome,
                "reason": one.reason or None,
            }
        )
    return list(studies.values())
