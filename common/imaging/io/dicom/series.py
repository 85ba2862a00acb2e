"""From instances to series: one volume each, several, or refused with the reason."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import median

import numpy as np

from common.formatting import counted
from common.imaging.io.dicom.geometry import (
    arrange,
    lie_on_each_other,
    positions_along,
    require_one_plane,
    same_positions,
)
from common.imaging.io.dicom.header import Instance
from common.imaging.io.dicom.marks import COUNTERS, KINDS, MARKS, NUMBERS, RUNNING, TIMES
from common.imaging.io.dicom.rules import DicomRules
from common.imaging.io.dicom.slices import RefusedError, Series, Slice, shown

NOISE = 1e-3
"""Largest relative difference of numbers that are equal, such as echo times of 98 and 98.01 ms."""

_KEYWORDS = tuple(MARKS)


def group_series(instances: Iterable[Instance], rules: DicomRules) -> list[Series]:
    """Group instances by their series, and judge each.

    Returns
    -------
    list[Series]
        At least one for every series, sorted by folder and number; several where it holds several volumes.
    """
    groups: dict[tuple[str, str], list[Instance]] = {}
    for instance in instances:
        groups.setdefault((instance.study, instance.series), []).append(instance)
    found = [one for group in groups.values() for one in _judge(group, rules)]
    return sorted(found, key=lambda one: (str(one.folder), one.number.zfill(12), one.uid))


def _judge(instances: Sequence[Instance], rules: DicomRules) -> list[Series]:
    """Return the volumes of one series, in order of what tells them apart, or the refused series."""
    scouts = [one for one in instances if "LOCALIZER" in one.image_type.split("\\")]
    others = [one for one in instances if "LOCALIZER" not in one.image_type.split("\\")]
    found = _volumes(others, rules) if others else []
    if scouts:
        part = "localizer" if others else ""
        found.append(replace(_whole(scouts), part=part, refusal="is a localizer", left_out=True))
    return found


def _whole(instances: Sequence[Instance]) -> Series:
    first = instances[0]
    return Series(
        study=first.study,
        uid=first.series,
        number=first.number,
        description=first.description,
        modality=first.modality,
        part="",
        folder=_common_folder([instance.path for instance in instances]),
        instances=len(instances),
        uids=frozenset(instance.uid for instance in instances),
        patient=first.patient,
        issuer=first.issuer,
    )


def _volumes(instances: Sequence[Instance], rules: DicomRules) -> list[Series]:
    whole = _whole(instances)
    try:
        _require_images(instances)
        slices = [one for instance in instances for one in instance.slices]
        require_one_plane(slices)
        parts = _split(slices, rules)
    except RefusedError as error:
        return [replace(whole, refusal=error.reason, left_out=error.left_out)]
    uids = {instance.path: instance.uid for instance in instances}
    return [
        _volume(replace(whole, part=name, uids=frozenset(uids[one.path] for one in part)), part, rules)
        for name, part in parts
    ]


def _require_images(instances: Sequence[Instance]) -> None:
    """Check that all instances are images of a volume, each there once."""
    counts = Counter(instance.uid for instance in instances)
    if copies := len(instances) - len(counts):
        raise RefusedError(f"holds {counted(copies, 'instance')} more than once: remove the copies")
    if (patients := len({instance.patient for instance in instances})) > 1:
        raise RefusedError(f"has instances of {patients:,} patients (PatientID)")
    # One PatientID of one issuer is one patient, however the name is spelt; otherwise nobody knows but by the name.
    is_certain = instances[0].patient and len({instance.issuer for instance in instances}) == 1
    if not is_certain and len({instance.person for instance in instances}) > 1:
        raise RefusedError("has instances with several names or birth dates, and no PatientID of one issuer")
    broken = [(instance, instance.problem) for instance in instances if instance.problem is not None]
    if broken:
        instance, problem = broken[0]
        where = "" if len(instances) == 1 else f" (in {counted(len(broken), 'instance')}, such as {instance.path.name})"
        all_left_out = len(broken) == len(instances) and all(item.left_out for _, item in broken)
        raise RefusedError(problem.reason + where, all_left_out)


def _require_like_scaling(slices: Sequence[Slice]) -> None:
    """Check that slope and intercept are stated for all slices or for none: their usual values are no guess then."""
    lacking = [sum(one.slope is None for one in slices), sum(one.intercept is None for one in slices)]
    if any(0 < count < len(slices) for count in lacking):
        raise RefusedError(f"has {counted(max(lacking), 'slice')} without slope or intercept among others with them")


def _split(slices: list[Slice], rules: DicomRules) -> list[tuple[str, list[Slice]]]:
    """Divide slices of different kinds, and such that lie on each other, by the tags that tell them apart."""
    slices = _without_noise(slices)
    kinds = _varying(slices, KINDS)
    if kinds and len(slices) >= rules.min_slices and _is_stack(slices):
        _require_one_kind(slices, kinds)
        return [("", slices)]
    found = []
    for name, part in _divided(slices, kinds):
        if len(part) < 2 or not lie_on_each_other(part):
            found.append((name, part))
            continue
        counter = next((keyword for keyword in _varying(part, COUNTERS) if _tells_apart(part, keyword, rules)), None)
        # Without a tag that tells them apart, it is one part, which is refused.
        found += [
            (f"{name}, {other}".strip(", "), inner) for other, inner in _divided(part, [counter] if counter else [])
        ]
    return found


def _without_noise(slices: list[Slice]) -> list[Slice]:
    """Give numbers that are equal up to noise one value, the least of them."""
    for keyword in _varying(slices, NUMBERS):
        place, least, known = _KEYWORDS.index(keyword), "", {}
        for value in sorted({_mark(one, keyword) for one in slices}, key=_sortable):
            numbers = _sortable(value)[0], _sortable(least)[0]
            if not all(map(math.isfinite, numbers)) or not math.isclose(*numbers, rel_tol=NOISE):
                least = value
            known[value] = least
        slices = [
            replace(one, marks=(*one.marks[:place], known[one.marks[place]], *one.marks[place + 1 :])) for one in slices
        ]
    return slices


def _is_stack(slices: Sequence[Slice]) -> bool:
    """Return whether all slices together are one regular stack, without two at one position."""
    try:
        arrange(slices, straighten=True)
    except RefusedError:
        return False
    return True


def _require_one_kind(slices: Sequence[Slice], kinds: Sequence[str]) -> None:
    """Check that slices that make one stack may be one volume: a part of them would be a shortened one."""
    ordered = [slices[index] for index in np.argsort(positions_along(slices))]
    for keyword in kinds:
        values = [_mark(one, keyword) for one in ordered]
        pieces = sum(1 for _ in groupby(values))
        if len(set(values) - {""}) > 1 and (keyword not in RUNNING or pieces > len(set(values))):
            raise RefusedError(
                f"makes one stack of slices that differ in {MARKS[keyword]}: nobody knows whether that is one volume"
            )


def _tells_apart(slices: list[Slice], keyword: str, rules: DicomRules) -> bool:
    parts = [part for _, part in _divided(slices, [keyword])]
    if median(len(part) for part in parts) < rules.min_slices:
        return False
    # Several volumes share a second, or a volume takes two: only times that divide the slices into like stacks count.
    if keyword in TIMES and not same_positions(parts):
        return False
    return not any(len(part) > 1 and lie_on_each_other(part) for part in parts)


def _varying(slices: Sequence[Slice], keywords: Iterable[str]) -> list[str]:
    return [keyword for keyword in keywords if len({_mark(one, keyword) for one in slices}) > 1]


def _divided(slices: Iterable[Slice], keywords: Sequence[str]) -> list[tuple[str, list[Slice]]]:
    """Group slices by the values of some tags, sorted by these: the words for a group, and its slices."""
    groups: dict[tuple[str, ...], list[Slice]] = {}
    for one in slices:
        groups.setdefault(tuple(_mark(one, keyword) for keyword in keywords), []).append(one)
    ordered = sorted(groups.items(), key=lambda item: [_sortable(value) for value in item[0]])
    return [
        (
            ", ".join(f"{MARKS[name]} {shown(value) or 'none'}" for name, value in zip(keywords, values, strict=True)),
            group,
        )
        for values, group in ordered
    ]


def _mark(one: Slice, keyword: str) -> str:
    return one.marks[_KEYWORDS.index(keyword)]


def _sortable(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return float("-inf"), value


def _volume(series: Series, slices: list[Slice], rules: DicomRules) -> Series:
    series = replace(series, instances=len({one.path for one in slices}))
    try:
        if len(slices) < rules.min_slices:
            raise RefusedError(f"has {counted(len(slices), 'slice')}, fewer than {rules.min_slices}", left_out=True)
        _require_like_scaling(slices)
        ordered, grid, shift = arrange(slices, straighten=rules.gantry_tilt == "resample")
    except RefusedError as error:
        return replace(series, refusal=error.reason, left_out=error.left_out)
    return replace(series, slices=ordered, grid=grid, shift=shift)


def _common_folder(paths: Sequence[Path]) -> Path:
    folders = {path.parent for path in paths}
    return Path(os.path.commonpath(folders)) if len(folders) > 1 else next(iter(folders))
