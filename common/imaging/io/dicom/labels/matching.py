"""Which series a segmentation object or a structure set is about: by the instances that it refers to, never by name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError
from common.formatting import counted
from common.imaging.io.dicom.header import Instance
from common.imaging.io.dicom.labels.header import read_label_object
from common.imaging.io.dicom.labels.objects import LabelObject, listed
from common.imaging.io.dicom.slices import RefusedError, Series


@dataclass(frozen=True, eq=False)
class Match:
    """What became of a file with labels.

    Attributes
    ----------
    study, uid
        Study and series instance UID of the file itself.
    labels
        Its header; None if it is refused.
    series
        The series that it labels; None if it is refused.
    refusal
        Why it is refused; empty if it is not.
    left_out
        Whether the refusal is no fault: its series is left out.
    """

    path: Path
    study: str
    uid: str
    labels: LabelObject | None = None
    series: Series | None = None
    refusal: str = ""
    left_out: bool = False


def match_labels(instances: Sequence[Instance], series: Collection[Series]) -> tuple[Match, ...]:
    """Read the headers of files with labels, and find the series that each is about.

    Parameters
    ----------
    instances
        Files of ``LABEL_KINDS``.
    series
        All series that are there, refused ones included.
    """
    holders: dict[str, list[Series]] = {}
    for one in series:
        for uid in one.uids:
            holders.setdefault(uid, []).append(one)
    own = {instance.uid for instance in instances}
    studies = {one.study for one in series if not one.uids <= own}
    found = []
    for instance in instances:
        try:
            labels = read_label_object(instance.path)
            match = Match(instance.path, instance.study, instance.series, labels, _series_of(labels, holders, studies))
        except DataError as error:
            match = Match(instance.path, instance.study, instance.series, refusal=error.problem)
        except RefusedError as error:
            match = Match(instance.path, instance.study, instance.series, refusal=error.reason, left_out=error.left_out)
        found.append(match)
    return tuple(found)


def _series_of(labels: LabelObject, holders: dict[str, list[Series]], studies: Collection[str]) -> Series:
    """Return the series that labels are about.

    Raises
    ------
    RefusedError
        There is none, or more than one, or its voxels are not where the labels say.
    """
    if all(segment.is_empty for segment in labels.segments):
        raise RefusedError("has no contours", left_out=True)
    if not labels.references:
        raise RefusedError("refers to no images: nobody knows which series it is about")
    hits = {id(one): one for uid in labels.references for one in holders.get(uid, ())}
    if not hits:
        if labels.study not in studies:
            raise RefusedError("belongs to a study of which no series is here")
        raise RefusedError(f"refers to {counted(len(labels.references), 'instance')}, none of which is here")
    titles = sorted(one.title for one in hits.values())
    if len({(one.study, one.uid) for one in hits.values()}) > 1:
        raise RefusedError(f"refers to several series: {listed(titles)}")
    if len(hits) > 1:
        raise RefusedError(f"refers to several volumes of one series: {listed(titles)}")
    (series,) = hits.values()
    _require_fit(labels, series)
    return series


def _require_fit(labels: LabelObject, series: Series) -> None:
    title = series.title
    if missing := len(labels.references - series.uids):
        raise RefusedError(
            f"refers to {counted(len(labels.references), 'instance')}, of which {missing:,} are not there ({title})"
        )
    if labels.study != series.study:
        raise RefusedError(f"belongs to another study than the series that it refers to ({title})")
    if labels.referenced_series - {series.uid}:
        raise RefusedError(f"states another series for the instances that it refers to ({title})")
    if labels.patient and series.patient and labels.patient != series.patient:
        raise RefusedError(f"has another PatientID than the series that it refers to ({title})")
    if series.refusal:
        raise RefusedError(f"refers to a series that is not read: {title}: {series.refusal}", series.left_out)
    # Where a series states no frame of reference, its own segmentations have made one up: instances and positions tell.
    frame = series.slices[0].frame_of_reference
    if frame and labels.frames_of_reference != {frame}:
        raise RefusedError(f"has another frame of reference than the series that it refers to ({title})")
