"""Applying rules to the series of a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from pydicom.dataset import Dataset

from common.imaging.io.dicom.choice.choice import Traits, rejections
from common.imaging.io.dicom.choice.rules import SeriesRule
from common.imaging.io.dicom.elements import read_elements
from common.imaging.io.dicom.header import refused_as_damaged
from common.imaging.io.dicom.slices import RefusedError, Series, shown
from common.imaging.io.dicom.values import tag_of, text

_WHEN = (
    *(("SeriesDate", "SeriesTime"), ("AcquisitionDate", "AcquisitionTime"), ("ContentDate", "ContentTime")),
    ("StudyDate", "StudyTime"),
)
_AGENTS = ("ContrastBolusAgent", "ContrastBolusAgentSequence")
_KEYWORDS = ("PatientID", "IssuerOfPatientID", "BodyPartExamined", *_AGENTS, *(name for pair in _WHEN for name in pair))
_NO_AGENT = frozenset({"", "no", "none", "n/a", "without"})


def mark_chosen(series: Sequence[Series], rules: Sequence[SeriesRule]) -> list[Series]:
    """Return the series, those refused with the reason that the rules do not choose.

    Parameters
    ----------
    series
        All series of a folder. One more file of each is read.
    rules
        The hospital's rules.

    Raises
    ------
    DataError
        A file cannot be read again.
    """
    if not rules:
        return list(series)
    found = []
    for one, rejection in zip(series, rejections([_traits(each) for each in series], rules), strict=True):
        if rejection is None or one.left_out:
            found.append(one)
        else:
            found.append(replace(one, refusal=rejection.reason, left_out=not rejection.is_error))
    return found


def _traits(series: Series) -> Traits:
    known = Traits(
        name=f"series {shown(series.number) or 'without number'}" + (f" ({series.part})" if series.part else ""),
        patient="",
        study=series.study,
        modality=series.modality,
        description=series.description,
        body_part=None,
        has_contrast=None,
        date="",
        time="",
        slices=len(series.slices),
    )
    if not series.slices:
        return known
    path = series.slices[0].path
    with refused_as_damaged(path), path.open("rb") as file:
        header = read_elements(file, [tag_of(keyword) for keyword in _KEYWORDS])
    date, time = _when(header)
    patient = _value(header, "PatientID")
    return replace(
        known,
        patient=f"{_value(header, 'IssuerOfPatientID')}\\{patient}" if patient else "",
        body_part=_value(header, "BodyPartExamined"),
        has_contrast=_has_contrast(header),
        date=date,
        time=time,
    )


def _has_contrast(header: Dataset) -> bool:
    agent, sequence = _AGENTS
    return _value(header, agent).casefold() not in _NO_AGENT or bool(header.get(sequence))


def _when(header: Dataset) -> tuple[str, str]:
    """Return the first date that is one, and its time, in forms that sort."""
    for of_date, of_time in _WHEN:
        date = _value(header, of_date).replace(".", "")
        if re.fullmatch(r"[0-9]{8}", date):
            time = re.fullmatch(r"([0-9]{2,6})(?:\.([0-9]{1,6}))?", _value(header, of_time).replace(":", ""))
            return date, f"{time[1].ljust(6, '0')}.{(time[2] or '').ljust(6, '0')}" if time else ""
    return "", ""


def _value(header: Dataset, keyword: str) -> str:
    """Return a value as text; empty if it is missing or cannot be read."""
    try:
        return text(header, keyword).strip()
    except RefusedError:
        return ""
