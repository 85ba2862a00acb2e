"""Choosing series by rules, from what is known of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from common.imaging.io.dicom.choice.rules import SeriesRule, fits
from common.imaging.io.dicom.slices import shown


@dataclass(frozen=True)
class Traits:
    """What rules ask of a series, or of a volume of it.

    Attributes
    ----------
    name
        The series, for messages.
    patient, study
        Whatever identifies them.
    modality, description
        As stored; may be empty.
    body_part
        As stored; None if it is unknown because the series cannot be read.
    has_contrast
        Whether a contrast agent is stated; None if it is unknown.
    when
        Date and time by each clock, in the same order in all series: ``20260131`` and ``235959.000000``; empty if they
        are not stated.
    slices
        Number of slices; 0 for a series that cannot be read.
    """

    name: str
    patient: str
    study: str
    modality: str
    description: str
    body_part: str | None
    has_contrast: bool | None
    when: tuple[tuple[str, str], ...]
    slices: int


class Rejection(NamedTuple):
    """Why a series is not used.

    Attributes
    ----------
    reason
        Continues "the series ...".
    is_error
        Whether the rules cannot decide, so that a person has to.
    """

    reason: str
    is_error: bool = False


def rejections(series: Sequence[Traits], rules: Sequence[SeriesRule]) -> list[Rejection | None]:
    """Apply rules to series: each is used that any rule chooses, and all if there are no rules.

    Parameters
    ----------
    series
        Those of one or several studies, or patients. Of a series that cannot be read only what is known must fit, and
        nobody chooses between it and others.
    rules
        The hospital's rules.

    Returns
    -------
    list[Rejection | None]
        For each series, why it is not used; None if it is.
    """
    if not rules:
        return [None] * len(series)
    found: list[list[Rejection | None]] = [[] for _ in series]
    for rule in rules:
        for index, rejection in enumerate(_by_one_rule(series, rule)):
            found[index].append(rejection)
    return [_combined(each) for each in found]


def _combined(found: Sequence[Rejection | None]) -> Rejection | None:
    rejected = [one for one in found if one is not None]
    if len(rejected) < len(found):
        return None
    return next((one for one in rejected if one.is_error), rejected[0] if len(rejected) == 1 else None) or Rejection(
        "is not chosen: it fits no rule, or another one that does is chosen"
    )


def _by_one_rule(series: Sequence[Traits], rule: SeriesRule) -> list[Rejection | None]:
    found: list[Rejection | None] = []
    groups: dict[str, list[int]] = {}
    for index, one in enumerate(series):
        misfit = _misfit(one, rule)
        found.append(Rejection(f"is not chosen: {misfit}") if misfit else None)
        if not misfit:
            owner = one.patient if rule.per == "patient" and one.patient else one.study
            groups.setdefault(owner, []).append(index)
    for group in groups.values():
        for index, rejection in zip(group, _chosen([series[index] for index in group], rule), strict=True):
            found[index] = rejection
    return found


def _misfit(one: Traits, rule: SeriesRule) -> str:
    """Say what does not fit; empty if all does."""
    for words, patterns, value in (
        ("modality", rule.modality, one.modality),
        ("description", rule.description, one.description),
        ("body part", rule.body_part, one.body_part),
    ):
        if patterns is not None and value is not None and not fits(patterns, value):
            return f"its {words} is {shown(value)!r}, not {' or '.join(patterns)}" if value else f"it has no {words}"
    if rule.contrast is not None and one.has_contrast is not None and one.has_contrast != rule.contrast:
        return "it states a contrast agent" if one.has_contrast else "it states no contrast agent"
    return ""


def _chosen(group: Sequence[Traits], rule: SeriesRule) -> list[Rejection | None]:
    """Choose among series that all fit."""
    if rule.choose == "all" or len(group) == 1:
        return [None] * len(group)
    if unread := next((one for one in group if not one.slices), None):
        text = f"cannot be chosen: {unread.name} fits as well, and cannot be read"
        return [Rejection(text, is_error=True) if one.slices else None for one in group]
    others = [next(other.name for other in group if other is not one) for one in group]
    if rule.choose == "only":
        text = "cannot be chosen: {} fits as well, and only one may"
        return [Rejection(text.format(other), is_error=True) for other in others]
    if rule.choose == "newest":
        times = _of_one_clock(group)
        newest = max(times)
        best = group[times.index(newest)]
        is_clear = all(one is best or _is_older(when, newest) for one, when in zip(group, times, strict=True))
        words, kind = "is newer", "time"
    else:
        best = max(group, key=lambda one: one.slices)
        is_clear = sum(one.slices == best.slices for one in group) == 1
        words, kind = "has more slices", "number of slices"
    if not is_clear:
        text = f"cannot be chosen: its {kind} does not tell it from {{}}"
        return [Rejection(text.format(other), is_error=True) for other in others]
    return [None if one is best else Rejection(f"is not chosen: {best.name} {words}") for one in group]


def _of_one_clock(group: Sequence[Traits]) -> list[tuple[str, str]]:
    """Return date and time of each series by the first clock that all have; empty if there is none."""
    for times in zip(*(one.when for one in group), strict=True):
        if all(date for date, _ in times):
            return list(times)
    return [("", "")] * len(group)


def _is_older(when: tuple[str, str], other: tuple[str, str]) -> bool:
    if not when[0] or not other[0]:
        return False
    return when[0] < other[0] or (when[0] == other[0] and "" < when[1] < other[1])
