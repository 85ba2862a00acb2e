"""A label map, or probabilities, as a DICOM-SEG."""

from __future__ import annotations

from typing import Any

import numpy as np
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, PositronEmissionTomographyImageStorage

from client.inference.applied_model import AppliedModel
from client.inference.dicom.elements import with_elements
from client.inference.dicom.identity import frame_of_reference, result_uid, structure_uid
from client.inference.dicom.source import Source
from client.inference.dicom.wording import (
    MANUFACTURER,
    NOT_CLINICAL,
    category_of,
    coding_schemes,
    colour_of,
    concept_of,
    series_description,
    short,
)
from client.inference.results import SegmentationKind
from common.imaging.io.dicom.tilt import UPRIGHT

_KINDS = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "PT": PositronEmissionTomographyImageStorage,
}
_PLACEHOLDER = "2.25."


def build_segmentation(
    source: Source,
    voxels: NDArray[np.uint8] | NDArray[np.float32],
    model: AppliedModel,
    kind: SegmentationKind,
) -> Segmentation:
    """Build a DICOM-SEG on the grid of a series.

    Every slice of the series has its position and refers to the instance, and frame, that it comes from. Slices of a
    tilted gantry have their places in the upright volume, and the references say that the pixels were moved.

    Parameters
    ----------
    source
        What it refers to, and where the voxels are.
    voxels
        A label map (columns, rows, slices); for ``fractional`` the probabilities (labels, columns, rows, slices).
    model
        What made it.
    kind
        The form of the segmentation.
    """
    concepts = {label: concept_of(model, label) for label in model.plan.labels}
    algorithm = AlgorithmIdentificationSequence(
        name=short(model.name),
        family=codes.DCM.ArtificialIntelligence,
        version=model.version,
        source=MANUFACTURER,
        parameters=model.parameters,
    )
    planes = _planes(source)
    stack = _by_slices(voxels)
    character_set = source.character_set_for(model.texts)
    segmentation = Segmentation(
        source_images=planes,
        pixel_array=stack if stack.ndim == 3 else np.moveaxis(stack, 0, -1),
        segmentation_type=kind.upper(),
        segment_descriptions=[
            SegmentDescription(
                segment_number=label,
                segment_label=short(name),
                segmented_property_category=category_of(concepts[label]),
                segmented_property_type=concepts[label],
                algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
                tracking_uid=structure_uid(source, model, label),
                tracking_id=name,
                display_color=colour_of(label),
            )
            for label, name in model.plan.labels.items()
        ],
        series_instance_uid=result_uid(source, model, "series", kind),
        series_number=source.result_number(1),
        sop_instance_uid=result_uid(source, model, "segmentation", kind),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=short(model.name),
        software_versions=model.version,
        device_serial_number=model.sha256,
        content_label="FEDVOX",
        content_description=short(f"{NOT_CLINICAL}: {model.name}"),
        series_description=series_description("segmentation", model),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        coding_schemes=coding_schemes(model) or None,
        specific_character_set=None,
    )
    if character_set:
        with_elements(segmentation, SpecificCharacterSet=list(character_set))
    dimensions = result_uid(source, model, "dimensions", kind)
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        with_elements(item, DimensionOrganizationUID=dimensions)
    _refer(segmentation, source, moved=source.series.shift != UPRIGHT)
    return segmentation


def _by_slices(voxels: NDArray[Any]) -> NDArray[Any]:
    """Copy (..., columns, rows, slices) to (..., slices, rows, columns): highdicom reads each slice several times."""
    swapped = np.swapaxes(voxels, -1, -3)
    found = np.empty(swapped.shape, dtype=voxels.dtype)
    for row in range(found.shape[-2]):  # what is between two such arrays fits the processor's cache
        found[..., row, :] = swapped[..., row, :]
    return found


def _planes(source: Source) -> list[Dataset]:
    """Describe each slice of the result as if it were an image of its own.

    So highdicom takes positions and references from what they are here, whatever form the source has; it is not shown
    the source itself. The number of the slice stands for its UID.
    """
    series, grid = source.series, source.grid
    affine = np.diag((-1.0, -1.0, 1.0, 1.0)) @ grid.affine
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    orientation = [float(value) for value in np.concatenate((affine[:3, 0] / steps[0], affine[:3, 1] / steps[1]))]
    planes = []
    for index, one in enumerate(series.slices):
        position = one.position if series.shift == UPRIGHT else affine[:3] @ (0, 0, index, 1)
        plane = with_elements(
            source.patient_and_study(),
            SOPClassUID=_KINDS.get(series.modality, MRImageStorage),
            SOPInstanceUID=f"{_PLACEHOLDER}{index}",
            SeriesInstanceUID=series.uid,
            Modality=series.modality,
            FrameOfReferenceUID=frame_of_reference(source),
            Columns=grid.shape[0],
            Rows=grid.shape[1],
            ImagePositionPatient=[float(value) for value in position],
            ImageOrientationPatient=orientation,
            PixelSpacing=list(one.spacing),
            SliceThickness=float(steps[2]),
            SpacingBetweenSlices=float(steps[2]),
            **source.compression,
        )
        planes.append(plane)
    return planes


def _refer(segmentation: Segmentation, source: Source, moved: bool) -> None:
    """Replace the references to planes by those to instances and frames."""
    references = [_reference(kind, instance) for instance, kind in source.instances.items()]
    with_elements(segmentation, SourceImageSequence=references)
    with_elements(segmentation.ReferencedSeriesSequence[0], ReferencedInstanceSequence=references)
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        (derivation,) = groups.DerivationImageSequence
        (plane,) = derivation.SourceImageSequence
        frame = source.frames[int(plane.ReferencedSOPInstanceUID.removeprefix(_PLACEHOLDER))]
        reference = with_elements(
            _reference(frame.kind, frame.instance),
            PurposeOfReferenceCodeSequence=plane.PurposeOfReferenceCodeSequence,
            SpatialLocationsPreserved="NO" if moved else "YES",
        )
        if frame.number is not None:
            with_elements(reference, ReferencedFrameNumber=frame.number)
        with_elements(derivation, SourceImageSequence=[reference])


def _reference(kind: str, instance: str) -> Dataset:
    return with_elements(Dataset(), ReferencedSOPClassUID=kind, ReferencedSOPInstanceUID=instance)
