"""Voxels of segmentation objects, frame by frame, each where its position says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from common.formatting import counted
from common.imaging.io.dicom.header import refused_as_damaged
from common.imaging.io.dicom.labels.header import first_item, items, sources_of_frames
from common.imaging.io.dicom.labels.objects import LabelObject
from common.imaging.io.dicom.labels.painting import Lattice, Painter, Place
from common.imaging.io.dicom.pixel_form import stored_form
from common.imaging.io.dicom.pixels import stored_frames
from common.imaging.io.dicom.slices import PixelForm, RefusedError, Series, Slice
from common.imaging.io.dicom.values import numbers, text, whole

FRACTION = 0.5
"""A voxel of a FRACTIONAL segment belongs to it from this share of MaximumFractionalValue on."""
_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_LABELMAP_NUMBERS = 2**16


@dataclass(frozen=True)
class _Frame:
    """One frame: its segment (None in a label map, whose pixels say it) and its place."""

    index: int
    segment: int | None
    place: Place


def paint_segmentation(
    one: LabelObject, values: Mapping[int, int], series: Series, lattice: Lattice, painter: Painter
) -> None:
    """Paint the labels of a segmentation object.

    Parameters
    ----------
    one
        Its header.
    values
        Segment number -> value of the label; other segments are not read.
    series
        The series that it is about.
    lattice
        Its voxels.
    painter
        Gets the labels.

    Raises
    ------
    DataError
        The file cannot be read, or its frames are not voxels of the series.
    """
    with refused_as_damaged(one.path, "segmentation"):
        with one.path.open("rb") as file:
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            _require_moderate_size(dataset, one, lattice.shape)
            form = stored_form(dataset, file)
        if missing := len(set(sources_of_frames(dataset)) - series.uids):
            raise RefusedError(f"has frames that refer to {counted(missing, 'instance')} outside of its series")
        frames = _frames(dataset, form, lattice)
        _require_each_once(frames)
        if one.kind == "LABELMAP":
            _paint_label_map(one, frames, form, values, painter)
            return
        described = {segment.number for segment in one.segments}
        if strangers := [frame.segment for frame in frames if frame.segment not in described]:
            raise RefusedError(f"holds the segment {strangers[0]}, which it does not describe")
        wanted = [frame for frame in frames if frame.segment in values]
        if one.kind == "BINARY":
            masks = _bits(one.path, form, [frame.index for frame in wanted])
        else:
            masks = _fractions(one.path, form, wanted, dataset)
        for frame, mask in zip(wanted, masks, strict=True):
            plane = frame.place.view(painter.label)
            painter.paint(plane, mask, values[frame.segment or 0], frame.place.level[1])


def _require_moderate_size(dataset: Dataset, one: LabelObject, shape: tuple[int, int, int]) -> None:
    """Refuse sizes that no segmentation of this series has, before anything of that size is made."""
    rows, columns, frames = (whole(dataset, name) or 0 for name in ("Rows", "Columns", "NumberOfFrames"))
    if max(rows, columns) > max(shape):
        raise RefusedError(f"has frames of {columns:,} x {rows:,} pixels, and its series {_times(shape)} voxels")
    most = max(shape) * (1 if one.kind == "LABELMAP" else len(one.segments))
    if not 1 <= frames <= most:
        what = counted(len(one.segments), "segment")
        raise RefusedError(f"has {counted(frames, 'frame')} of {what}, and its series {_times(shape)} voxels")


def _times(shape: tuple[int, int, int]) -> str:
    return " x ".join(map(str, shape))


def _frames(dataset: Dataset, form: PixelForm, lattice: Lattice) -> list[_Frame]:
    groups = items(dataset, _PER_FRAME)
    if len(groups) != form.frames:
        raise RefusedError(f"has {counted(form.frames, 'frame')} and describes {len(groups):,}")
    shared = first_item(dataset, _SHARED)
    found = []
    for index, own in enumerate(groups):
        segment = whole(_group(shared, own, "SegmentIdentificationSequence"), "ReferencedSegmentNumber")
        if segment is None and text(dataset, "SegmentationType") != "LABELMAP":
            raise RefusedError(f"has no segment number for frame {index + 1}")
        found.append(_Frame(index, segment, _place(shared, own, form, lattice)))
    return found


def _place(shared: Dataset, own: Dataset, form: PixelForm, lattice: Lattice) -> Place:
    position = numbers(_group(shared, own, "PlanePositionSequence"), "ImagePositionPatient", 3)
    orientation = numbers(_group(shared, own, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    spacing = numbers(_group(shared, own, "PixelMeasuresSequence"), "PixelSpacing", 2)
    if position is None or orientation is None or spacing is None:
        raise RefusedError("has frames without position, orientation or pixel spacing")
    across, down = np.array(orientation[:3]) * spacing[1], np.array(orientation[3:]) * spacing[0]
    return lattice.place(np.array(position), across, down, (form.rows, form.columns))


def _group(shared: Dataset, own: Dataset, keyword: str) -> Dataset:
    return first_item(own, keyword) or first_item(shared, keyword)


def _require_each_once(frames: list[_Frame]) -> None:
    seen: set[tuple[int | None, tuple[int, int]]] = set()
    for frame in frames:
        key = (frame.segment, frame.place.level)
        if key in seen:
            of = "" if frame.segment is None else f" of segment {frame.segment}"
            raise RefusedError(f"has two frames{of} at one position")
        seen.add(key)


def _bits(path: Path, form: PixelForm, frames: list[int]) -> Iterator[NDArray[np.bool_]]:
    """Read frames of one bit for each pixel, which follow each other without padding."""
    if form.bits_allocated != 1:
        raise RefusedError(f"is BINARY and has {form.bits_allocated} bits for each pixel instead of 1")
    size = form.rows * form.columns
    if form.offset is None and form.syntax != DeflatedExplicitVRLittleEndian:
        raise RefusedError("is BINARY and compressed frame by frame, which is not read: export it uncompressed")
    data = b"" if form.offset is not None else pydicom.dcmread(path, specific_tags=["PixelData"]).PixelData
    with path.open("rb") as file:
        for index in frames:
            begin, end = index * size, (index + 1) * size
            first, last = begin // 8, -(-end // 8)
            if form.offset is not None:
                file.seek(form.offset + first)
                packed = file.read(last - first)
            else:
                packed = data[first:last]
            if len(packed) < last - first:
                raise RefusedError("has truncated pixel data. Copy it again")
            bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), bitorder="little")
            yield bits[begin - 8 * first : end - 8 * first].reshape(form.rows, form.columns).astype(bool)


def _fractions(path: Path, form: PixelForm, frames: list[_Frame], dataset: Dataset) -> Iterator[NDArray[np.bool_]]:
    if form.bits_allocated != 8:
        raise RefusedError(f"is FRACTIONAL and has {form.bits_allocated} bits for each pixel instead of 8")
    full = whole(dataset, "MaximumFractionalValue") or 0
    if not 1 <= full <= 255:
        raise RefusedError("is FRACTIONAL and has no MaximumFractionalValue from 1 to 255")
    for values in _stored(path, form, frames):
        if values.max() > full:
            raise RefusedError(f"is FRACTIONAL and has values above its MaximumFractionalValue, {full}")
        yield values >= FRACTION * full


def _paint_label_map(
    one: LabelObject, frames: list[_Frame], form: PixelForm, values: Mapping[int, int], painter: Painter
) -> None:
    if form.bits_allocated not in (8, 16) or form.is_signed:
        raise RefusedError(f"is a LABELMAP and has {form.bits_allocated} bits for each pixel instead of 8 or 16")
    described = np.zeros(_LABELMAP_NUMBERS, dtype=bool)
    described[[0, *(segment.number for segment in one.segments if segment.number < _LABELMAP_NUMBERS)]] = True
    for frame, stored in zip(frames, _stored(one.path, form, frames), strict=True):
        present = np.unique(stored)
        if strangers := present[~described[present]].tolist():
            raise RefusedError(f"holds the segment {strangers[0]}, which it does not describe")
        plane = frame.place.view(painter.label)
        for number in present.tolist():
            if number in values:
                painter.paint(plane, stored == number, values[number], frame.place.level[1])


def _stored(path: Path, form: PixelForm, frames: list[_Frame]) -> Iterator[NDArray[Any]]:
    origin, unit = (0.0, 0.0, 0.0), (1.0, 0.0, 0.0)
    return stored_frames(
        [Slice(path, frame.index, form, origin, unit, unit, (1.0, 1.0), "", None, None, ()) for frame in frames]
    )
