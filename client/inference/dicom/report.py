"""Sizes of structures as a structured report (TID 1500)."""

from __future__ import annotations

from collections.abc import Mapping

from highdicom.sr.coding import CodedConcept
from highdicom.sr.content import ReferencedSegment, SourceSeriesForSegmentation
from highdicom.sr.enum import RelationshipTypeValues
from highdicom.sr.sop import ComprehensiveSR
from highdicom.sr.templates import (
    AlgorithmIdentification,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from highdicom.sr.value_types import TextContentItem
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from client.inference.applied_model import AppliedModel
from client.inference.dicom.elements import with_elements
from client.inference.dicom.identity import result_uid, structure_uid
from client.inference.dicom.measurements import Size
from client.inference.dicom.source import Source
from client.inference.dicom.wording import (
    MANUFACTURER,
    NOT_CLINICAL,
    category_of,
    coding_schemes,
    concept_of,
    series_description,
    short,
)

_MILLILITRE = CodedConcept("mL", "UCUM", "milliliter")
_MILLIMETRE = CodedConcept("mm", "UCUM", "millimeter")
_COMMENT = (
    f"{NOT_CLINICAL}. Made by an algorithm and checked by nobody. Volume: voxels times the volume of one. Diameter: "
    "distance of the two corners of voxels that are furthest apart, in three dimensions."
)


def build_report(
    source: Source, segmentation: Dataset, sizes: Mapping[int, Size], model: AppliedModel, kind: str
) -> ComprehensiveSR:
    """Build a structured report of the sizes of all structures.

    Parameters
    ----------
    source
        The series that was segmented.
    segmentation
        The DICOM-SEG that the report refers to.
    sizes
        Size of each label.
    model
        What made the segmentation.
    kind
        Kind of the segmentation.
    """
    uid = result_uid(source, model, "report", kind)
    content = MeasurementReport(
        observation_context=ObservationContext(
            observer_device_context=ObserverContext(
                observer_type=codes.DCM.Device,
                observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
                    uid=result_uid(source, model, "device"),
                    name=model.name,
                    manufacturer_name=MANUFACTURER,
                    model_name=model.name,
                    serial_number=model.sha256,
                ),
            )
        ),
        procedure_reported=codes.cid100.ImagingProcedure,
        imaging_measurements=[
            _group(source, segmentation, label, size, model) for label, size in sorted(sizes.items())
        ],
    )
    content[0].ContentSequence.append(
        TextContentItem(codes.DCM.Comment, _COMMENT, relationship_type=RelationshipTypeValues.CONTAINS)
    )
    report = ComprehensiveSR(
        evidence=_evidence(source, segmentation),
        content=content,
        series_instance_uid=result_uid(source, model, "series of report", kind),
        series_number=source.result_number(2),
        sop_instance_uid=uid,
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=short(model.name),
        software_versions=model.version,
        device_serial_number=model.sha256,
        is_complete=True,
        series_description=series_description("sizes", model),
        coding_schemes=coding_schemes(model) or None,
        specific_character_set=None,
    )
    if character_set := source.character_set_for(model.texts):
        with_elements(report, SpecificCharacterSet=list(character_set))
    return report


def _group(
    source: Source, segmentation: Dataset, label: int, size: Size, model: AppliedModel
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    concept = concept_of(model, label)
    measurements = [Measurement(codes.SCT.Volume, _rounded(size.volume_ml), _MILLILITRE)]
    if size.diameter_mm is not None:
        measurements.append(
            Measurement(codes.SCT.Diameter, _rounded(size.diameter_mm), _MILLIMETRE, derivation=codes.SCT.Maximum)
        )
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=structure_uid(source, model, label), identifier=model.plan.labels[label]
        ),
        referenced_segment=ReferencedSegment(
            segmentation.SOPClassUID,
            segmentation.SOPInstanceUID,
            label,
            source_series=SourceSeriesForSegmentation(source.series.uid),
        ),
        finding_category=category_of(concept),
        finding_type=concept,
        algorithm_id=AlgorithmIdentification(
            model.name,
            model.version,
            [f"{name}={value}" for name, value in model.parameters.items()],
            manufacturer=MANUFACTURER,
        ),
        measurements=measurements,
    )


def _evidence(source: Source, segmentation: Dataset) -> list[Dataset]:
    """Describe what the report refers to: the instances of the source, and the segmentation."""
    found = [
        with_elements(
            source.patient_and_study(), SeriesInstanceUID=source.series.uid, SOPClassUID=kind, SOPInstanceUID=instance
        )
        for instance, kind in source.instances.items()
    ]
    return [*found, segmentation]


def _rounded(value: float) -> float:
    """Six digits: more than any structure is known to."""
    return float(f"{value:.6g}")
