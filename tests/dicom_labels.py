"""Labels in DICOM for the series of tests: segmentation objects by highdicom, structure sets by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import contourpy
import highdicom
import numpy as np
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from common.imaging.io.dicom.pixel_form import STRUCTURE_SET

LIVER, SPLEEN, TUMOUR = ("SCT", "10200004", "Liver"), ("SCT", "78961009", "Spleen"), ("SCT", "108369006", "Neoplasm")


def segmentation(
    sources: Sequence[Dataset],
    masks: Mapping[str, NDArray[Any]],
    *,
    codes: Mapping[str, tuple[str, str, str]] | None = None,
    kind: str = "BINARY",
    algorithm: str = "MANUAL",
    **options: Any,
) -> Dataset:
    """A segmentation of a series, its frames on the planes of its sources.

    Parameters
    ----------
    sources
        The images, in any order.
    masks
        Name of a segment -> its mask (slices, rows, columns), in the order of the sources; fractions for FRACTIONAL.
    codes
        Name -> scheme, value, meaning; by default a private code for each.
    """
    described = []
    for number, name in enumerate(masks, start=1):
        scheme, value, meaning = (codes or {}).get(name, ("99TEST", f"T{number}", name))
        made_by = (
            None
            if algorithm == "MANUAL"
            else highdicom.AlgorithmIdentificationSequence(
                "made up", CodedConcept("123110", "DCM", "Artificial Intelligence"), "1"
            )
        )
        described.append(
            highdicom.seg.SegmentDescription(
                segment_number=number,
                segment_label=name,
                segmented_property_category=CodedConcept("123037004", "SCT", "Anatomical Structure"),
                segmented_property_type=CodedConcept(value, scheme, meaning),
                algorithm_type=algorithm,
                algorithm_identification=made_by,
            )
        )
    stacked = np.stack(list(masks.values()), axis=-1)
    if kind != "FRACTIONAL":
        stacked = stacked.astype(np.uint8)
    for one in sources:
        one.setdefault("PatientBirthDate", "")
        one.setdefault("PatientSex", "O")
        for keyword in ("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"):
            one.setdefault(keyword, "")
    return highdicom.seg.Segmentation(
        source_images=list(sources),
        pixel_array=stacked,
        segmentation_type=kind,
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=100,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Nobody",
        manufacturer_model_name="made up",
        software_versions="1",
        device_serial_number="1",
        **options,
    )


def structure_set(
    sources: Sequence[Dataset],
    masks: Mapping[str, NDArray[Any]],
    *,
    codes: Mapping[str, tuple[str, str, str]] | None = None,
    digits: int = 4,
) -> Dataset:
    """A structure set of a series: contours half-way between the pixels within a region and those outside.

    Parameters
    ----------
    sources
        The images, in order of their slices.
    masks
        Name of a region -> its mask (slices, rows, columns).
    codes
        Name -> scheme, value, meaning, of regions that have a code.
    digits
        Decimal places of coordinates in mm.
    """
    found = Dataset()
    found.SOPClassUID, found.SOPInstanceUID = STRUCTURE_SET, generate_uid()
    found.StudyInstanceUID, found.SeriesInstanceUID = sources[0].StudyInstanceUID, generate_uid()
    found.Modality, found.SeriesNumber = "RTSTRUCT", 200
    series = _item(
        SeriesInstanceUID=sources[0].SeriesInstanceUID,
        ContourImageSequence=[
            _item(ReferencedSOPClassUID=one.SOPClassUID, ReferencedSOPInstanceUID=one.SOPInstanceUID) for one in sources
        ],
    )
    study = _item(ReferencedSOPInstanceUID=sources[0].StudyInstanceUID, RTReferencedSeriesSequence=[series])
    frame = sources[0].FrameOfReferenceUID
    found.ReferencedFrameOfReferenceSequence = [_item(FrameOfReferenceUID=frame, RTReferencedStudySequence=[study])]
    found.StructureSetROISequence, found.ROIContourSequence, found.RTROIObservationsSequence = [], [], []
    for number, (name, mask) in enumerate(masks.items(), start=1):
        found.StructureSetROISequence.append(
            _item(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID=frame, ROIGenerationAlgorithm="MANUAL")
        )
        observation = _item(ObservationNumber=number, ReferencedROINumber=number)
        if codes and name in codes:
            scheme, value, meaning = codes[name]
            observation.RTROIIdentificationCodeSequence = [
                _item(CodingSchemeDesignator=scheme, CodeValue=value, CodeMeaning=meaning)
            ]
        found.RTROIObservationsSequence.append(observation)
        contours = [
            contour for one, plane in zip(sources, mask, strict=True) for contour in _contours(one, plane, digits)
        ]
        found.ROIContourSequence.append(_item(ReferencedROINumber=number, ContourSequence=contours))
    return _with_meta(found)


def _contours(one: Dataset, plane: NDArray[Any], digits: int) -> list[Dataset]:
    across, down = np.reshape(np.array(one.ImageOrientationPatient, float), (2, 3))
    steps = np.stack((across * float(one.PixelSpacing[1]), down * float(one.PixelSpacing[0])))
    origin = np.array(one.ImagePositionPatient, float)
    found = []
    for line in map(np.asarray, contourpy.contour_generator(z=np.pad(plane, 1).astype(float)).lines(0.5)):
        points = origin + (line[:-1] - 1) @ steps
        found.append(
            _item(
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(points),
                ContourData=[f"{value:.{digits}f}" for value in points.ravel()],
            )
        )
    return found


def _item(**values: Any) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _with_meta(one: Dataset) -> Dataset:
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    return one


def write(path: Path, dataset: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path
