"""Segmentation objects for the series of tests: written by highdicom, and by hand where it would refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

LIVER, SPLEEN, TUMOUR = ("SCT", "10200004", "Liver"), ("SCT", "78961009", "Spleen"), ("SCT", "108369006", "Neoplasm")


def read_slices(folder: Path) -> list[Dataset]:
    """Data sets of a series' files, in order of names."""
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


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


def write(path: Path, dataset: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)
    return path
