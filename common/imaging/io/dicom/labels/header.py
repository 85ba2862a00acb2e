"""The header of a segmentation object or a structure set: what it refers to, and its segments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from common.imaging.io.dicom.header import refused_as_damaged
from common.imaging.io.dicom.labels.objects import Kind, LabelObject, Meaning, Segment
from common.imaging.io.dicom.pixel_form import STRUCTURE_SET
from common.imaging.io.dicom.slices import RefusedError, shown
from common.imaging.io.dicom.values import text, whole

_FRAME_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_SEGMENTATION_TAGS = (
    *("SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SegmentationType"),
    *("ReferencedSeriesSequence", "StudiesContainingOtherReferencedInstancesSequence", "SegmentSequence"),
)
_STRUCTURE_TAGS = (
    *("SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "ReferencedFrameOfReferenceSequence"),
    *("StructureSetROISequence", "RTROIObservationsSequence", "ROIContourSequence"),
)
_BY_PROGRAM = "AUTOMATIC"


def read_label_object(path: Path) -> LabelObject:
    """Read the header of a segmentation object or a structure set.

    Raises
    ------
    DataError
        The file cannot be read, or is not what it claims to be.
    """
    with refused_as_damaged(path):
        dataset = pydicom.dcmread(
            path,
            stop_before_pixels=True,
            force=True,
            specific_tags=[
                "SpecificCharacterSet",
                "PatientID",
                *dict.fromkeys((*_SEGMENTATION_TAGS, *_STRUCTURE_TAGS)),
            ],
        )
        if text(dataset, "SOPClassUID") == STRUCTURE_SET:
            return _structure_set(path, dataset)
        return _segmentation(path, dataset)


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; none if it is missing or empty.

    Raises
    ------
    RefusedError
        It is no sequence.
    """
    found = dataset.get(keyword)
    if found is None:
        return []
    if not isinstance(found, pydicom.Sequence):
        raise RefusedError(f"has a {keyword} that is no sequence")
    return list(found)


def _has_items(dataset: Dataset, keyword: str) -> bool:
    """Return whether a sequence has items; contours that lie in the file unread are not parsed for it."""
    element = dataset.get_item(keyword)
    if isinstance(element, RawDataElement) and element.VR == "SQ":
        return bool(element.value)
    return bool(items(dataset, keyword))


def first_item(dataset: Dataset, keyword: str) -> Dataset:
    """Return the first item of a sequence; an empty one if there is none."""
    found = items(dataset, keyword)
    return found[0] if found else Dataset()


def instances(dataset: Dataset, keyword: str) -> Iterator[str]:
    """Return the SOP instance UIDs of a sequence."""
    for item in items(dataset, keyword):
        if uid := text(item, "ReferencedSOPInstanceUID"):
            yield uid


def sources_of_frames(dataset: Dataset) -> Iterator[str]:
    """Return the SOP instance UIDs that the frames of a segmentation say they were derived from."""
    for keyword in _FRAME_GROUPS:
        for groups in items(dataset, keyword):
            for derivation in items(groups, "DerivationImageSequence"):
                yield from instances(derivation, "SourceImageSequence")


def _segmentation(path: Path, dataset: Dataset) -> LabelObject:
    kind = _kind(dataset)
    references: dict[str, str] = {}
    for holder in (dataset, *items(dataset, "StudiesContainingOtherReferencedInstancesSequence")):
        for series in items(holder, "ReferencedSeriesSequence"):
            references |= _of_series(series, "ReferencedInstanceSequence")
    if not references:
        # Frames by the thousand: read only where nothing else says what they are about.
        frames = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(_FRAME_GROUPS))
        references = dict.fromkeys(sources_of_frames(frames), "")
    segments = [_segment(item) for item in items(dataset, "SegmentSequence")]
    if kind == "LABELMAP":
        segments = [one for one in segments if one.number != 0]
    return _checked(path, kind, dataset, (text(dataset, "FrameOfReferenceUID"),), references, segments)


def _kind(dataset: Dataset) -> Kind:
    kind = text(dataset, "SegmentationType")
    if kind == "BINARY":
        return "BINARY"
    if kind == "FRACTIONAL":
        return "FRACTIONAL"
    if kind == "LABELMAP":
        return "LABELMAP"
    raise RefusedError(f"has the segmentation type {shown(kind) or 'none'}, which is not read")


def _structure_set(path: Path, dataset: Dataset) -> LabelObject:
    references: dict[str, str] = {}
    for frame in items(dataset, "ReferencedFrameOfReferenceSequence"):
        for study in items(frame, "RTReferencedStudySequence"):
            for series in items(study, "RTReferencedSeriesSequence"):
                references |= _of_series(series, "ContourImageSequence")
    codes: dict[int | None, tuple[Meaning, tuple[Meaning, ...]]] = {}
    for observation in items(dataset, "RTROIObservationsSequence"):
        code = _meaning(first_item(observation, "RTROIIdentificationCodeSequence"))
        number = whole(observation, "ReferencedROINumber")
        if code is not None:
            found = (code, _details(observation))
            if codes.setdefault(number, found) != found:
                raise RefusedError(f"describes region {number} with several codes")
    drawn = {
        whole(item, "ReferencedROINumber")
        for item in items(dataset, "ROIContourSequence")
        if _has_items(item, "ContourSequence")
    }
    regions = items(dataset, "StructureSetROISequence")
    segments = []
    for region in regions:
        number = _number(region, "ROINumber")
        by_program = text(region, "ROIGenerationAlgorithm") == _BY_PROGRAM
        code, details = codes.get(number, (None, ()))
        name = text(region, "ROIName")
        segments.append(Segment(number, name, code, by_program, details, is_empty=number not in drawn))
    frames = tuple(text(region, "ReferencedFrameOfReferenceUID") for region in regions)
    return _checked(path, "RTSTRUCT", dataset, frames, references, segments)


def _checked(
    path: Path,
    kind: Kind,
    dataset: Dataset,
    frames: tuple[str, ...],
    references: Mapping[str, str],
    segments: list[Segment],
) -> LabelObject:
    if not segments:
        raise RefusedError("describes no segments")
    doubled = [number for number, count in Counter(one.number for one in segments).items() if count > 1]
    if doubled:
        raise RefusedError(f"describes segment {doubled[0]} more than once")
    return LabelObject(
        path=path,
        kind=kind,
        study=text(dataset, "StudyInstanceUID"),
        series=text(dataset, "SeriesInstanceUID"),
        frames_of_reference=frozenset(frames),
        references=frozenset(references),
        segments=tuple(segments),
        referenced_series=frozenset(filter(None, references.values())),
        patient=text(dataset, "PatientID").strip(),
    )


def _of_series(series: Dataset, keyword: str) -> dict[str, str]:
    """Return SOP instance UIDs, each with the series instance UID that is stated for it."""
    return dict.fromkeys(instances(series, keyword), text(series, "SeriesInstanceUID"))


def _segment(item: Dataset) -> Segment:
    return Segment(
        number=_number(item, "SegmentNumber"),
        name=text(item, "SegmentLabel"),
        code=_meaning(first_item(item, "SegmentedPropertyTypeCodeSequence")),
        by_program=text(item, "SegmentAlgorithmType") == _BY_PROGRAM,
        details=_details(item),
    )


def _details(item: Dataset) -> tuple[Meaning, ...]:
    """Return what narrows the type of a segment or region down: side, body region, and the side of that."""
    kinds = items(item, "SegmentedPropertyTypeCodeSequence") + items(item, "RTROIIdentificationCodeSequence")
    regions = items(item, "AnatomicRegionSequence")
    found = [code for kind in kinds for code in items(kind, "SegmentedPropertyTypeModifierCodeSequence")]
    found += regions + [code for region in regions for code in items(region, "AnatomicRegionModifierSequence")]
    return tuple(detail for detail in map(_meaning, found) if detail is not None)


def _number(dataset: Dataset, keyword: str) -> int:
    number = whole(dataset, keyword)
    if number is None or number < 0:
        raise RefusedError(f"has a segment without a {keyword}")
    return number


def _meaning(item: Dataset) -> Meaning | None:
    value = text(item, "CodeValue") or text(item, "LongCodeValue")
    scheme = text(item, "CodingSchemeDesignator")
    return Meaning(scheme, value, text(item, "CodeMeaning")) if value and scheme else None
