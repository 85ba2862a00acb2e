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
_KEYWORDS = ("BodyPartExamined", *_AGENTS, *(name for pair in _WHEN for name in pair))
_NO_AGENT = re.compile(
    r"\W*|n|na|n/a|nil|nativ\w*|unenhanced|0+([.,]0*)?\s*(ml|cc)?"
    r"|(no|non(?!\W*ionic)|none|not|without|w/o|ohne|keine?|sans|sin|senza)\b(?!.*\b(with|mit|avec|con)\b).*"
)
"""What people write where no contrast agent was given; "without and with" is none of these."""


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
    candidates = [one for one in series if not one.left_out]
    rejected = dict(zip(candidates, rejections([_traits(one) for one in candidates], rules), strict=True))
    found = []
    for one in series:
        if (rejection := rejected.get(one)) is None:
            found.append(one)
        else:
            found.append(replace(one, refusal=rejection.reason, left_out=not rejection.is_error))
    return found


def _traits(series: Series) -> Traits:
    known = Traits(
        name=f"series {shown(series.number) or 'without number'}" + (f" ({series.part})" if series.part else ""),
        patient=f"{series.issuer}\\{series.patient}" if series.patient else "",
        study=series.study,
        modality=series.modality,
        description=series.description,
        body_part=None,
        has_contrast=None,
        when=(),
        slices=len(series.slices),
    )
    if not series.slices:
        return known
    path = series.slices[0].path
    with refused_as_damaged(path), path.open("rb") as file:
        header = read_elements(file, [tag_of(keyword) for keyword in _KEYWORDS])
    return replace(
        known,
        body_part=_value(header, "BodyPartExamined"),
        has_contrast=_has_contrast(header),
        when=tuple(_when(header, *pair) for pair in _WHEN),
    )


def _has_contrast(header: Dataset) -> bool:
    agent, sequence = _AGENTS
    agents = [_value(header, agent), *(_value(item, "CodeMeaning") or "coded" for item in header.get(sequence) or ())]
    return any(_NO_AGENT.fullmatch(one.casefold()) is None for one in agents)


def _when(header: Dataset, of_date: str, of_time: str) -> tuple[str, str]:
    """Return a date and its time, in forms that sort; empty without a date."""
    date = _value(header, of_date).replace(".", "")
    if not re.fullmatch(r"[0-9]{8}", date):
        return "", ""
    time = re.fullmatch(r"([0-9]{2,6})(?:\.([0-9]{1,6}))?", _value(header, of_time).replace(":", ""))
    return date, f"{time[1].ljust(6, '0')}.{(time[2] or '').ljust(6, '0')}" if time else ""


def _value(header: Dataset, keyword: str) -> str:
    """Return a value as text; empty if it is missing or cannot be read."""
    try:
        return text(header, keyword).strip()
    except RefusedError:
        return ""
