"""What became of each DICOM series of a folder, study by study."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.imaging.datasets.case import Case
from common.imaging.datasets.dataset import Dataset

if TYPE_CHECKING:
    from common.imaging.io.dicom.labels.matching import Match
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
        ``read``, ``refused``, ``left out``, or ``labels`` for a series of segmentations or structure sets.
    reason
        Why it was not read; empty if it was.
    labels
        What labels it: each DICOM file with the names of the labels that it carries, or of what it labels itself.
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
    labels: tuple[str, ...] = ()


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

    cases = {id(case.series): case for case in dataset.cases}
    studies: dict[str, int] = {}
    found = []
    for series in dataset.series:
        case = cases.get(id(series))
        name = case.name if case else ""
        own = [match for match in dataset.label_files if (match.study, match.uid) == (series.study, series.uid)]
        outcome, reason = _outcome_of_labels(own, cases) if own else _outcome(series, name, name in broken)
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
                labels=_labels(case) if case and case.objects else (),
            )
        )
    return tuple(sorted(found, key=lambda one: one.study))


def _labels(case: Case) -> tuple[str, ...]:
    """Say which labels each file gives a series, and by what its segments are these."""
    from common.imaging.io.dicom.labels.meaning import assign
    from common.imaging.io.dicom.labels.objects import listed
    from common.imaging.io.dicom.slices import RefusedError, shown

    names = {one.value: one.name for one in case.reading.structures}
    try:
        assigned = assign(case.objects, case.reading.structures)
    except RefusedError:
        return tuple(shown(one.path.name) for one in case.objects)
    texts = {value: shown(names[value]) for value in assigned.carriers}
    # Without a federation, labels are the segments themselves.
    if case.reading.overlap != "tell":
        for value, carriers in assigned.carriers.items():
            texts[value] += ": " + listed(f"'{shown(one.segment.full_name)}' by {one.by}" for one in carriers)
    return tuple(
        f"{shown(one.path.name)} ({'; '.join(texts[value] for value in sorted(set(values.values()))) or 'none'})"
        for one, values in zip(case.objects, assigned.values, strict=True)
    )


def _outcome_of_labels(own: Sequence[Match], cases: Mapping[int, Case]) -> tuple[str, str]:
    from common.imaging.io.dicom.slices import shown

    refused = sorted((match for match in own if match.refusal), key=lambda match: match.left_out)
    if refused:
        first = refused[0]
        return ("left out" if first.left_out else "refused"), f"{shown(first.path.name)}: {first.refusal}"
    about = sorted({cases[id(match.series)].name for match in own if id(match.series) in cases})
    return ("labels", ", ".join(about)) if about else ("left out", "no segment is a label that is wanted")


def _outcome(series: Series, name: str, is_broken: bool) -> tuple[str, str]:
    if series.refusal:
        return ("left out" if series.left_out else "refused"), series.refusal
    if not name:
        return "left out", "has no labels"
    return ("refused", "has errors that are listed below") if is_broken else ("read", "")


def series_rows(series: Sequence[SeriesReport]) -> list[tuple[str, ...]]:
    """Return rows of a table, its head first."""
    rows: list[tuple[str, ...]] = [("study", "series", "description", "modality", "part", "files", "case", "outcome")]
    for one in series:
        outcome = f"{one.outcome}: {one.reason}" if one.reason else one.outcome
        if one.labels:
            outcome += f", labelled by {', '.join(one.labels)}"
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
                "labels": list(one.labels),
            }
        )
    return list(studies.values())
