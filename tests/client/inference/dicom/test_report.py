"""Structured reports: the sizes of structures, and what they refer to."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from client.inference.dicom.measurements import measure
from common.imaging.io.dicom.volume import read_series
from tests.client.inference.dicom.by_hand import NAMES, errors_of_dciodvfy, made_up, model, write
from tests.dicom_series import make_series, only_series_in, save


def items(parent: Dataset, meaning: str) -> list[Dataset]:
    """Content items below one, with a name."""
    return [one for one in parent.ContentSequence if one.ConceptNameCodeSequence[0].CodeMeaning == meaning]


def number(item: Dataset) -> tuple[float, str]:
    (value,) = item.MeasuredValueSequence
    return float(value.NumericValue), value.MeasurementUnitsCodeSequence[0].CodeValue


@pytest.fixture
def objects(tmp_path: Path) -> tuple[Path, Dataset, Dataset]:
    series = only_series_in(save(tmp_path / "series", make_series()))
    prediction = made_up(read_series(series).grid)
    prediction.label[prediction.label == 2] = 0
    return tmp_path, *write(tmp_path, series, prediction)


def test_volume_and_diameter_of_each_structure_are_told(objects: tuple[Path, Dataset, Dataset]) -> None:
    folder, _, report = objects
    volume = read_series(only_series_in(folder / "series"))
    label = made_up(volume.grid).label
    expected = measure(label, volume.grid, [1])[1]
    (container,) = items(report, "Imaging Measurements")
    head, tail = items(container, "Measurement Group")
    assert [items(one, "Tracking Identifier")[0].TextValue for one in (head, tail)] == list(NAMES.values())
    (size,), (diameter,) = items(head, "Volume"), items(head, "Diameter")
    assert number(size) == (pytest.approx(expected.volume_ml, rel=1e-5), "mL")
    assert number(diameter) == (pytest.approx(expected.diameter_mm, rel=1e-5), "mm")
    assert items(diameter, "Derivation")[0].ConceptCodeSequence[0].CodeMeaning == "Maximum"
    assert number(items(tail, "Volume")[0]) == (0.0, "mL")
    assert not items(tail, "Diameter")


def test_it_refers_to_segments_and_to_every_instance_of_the_source(objects: tuple[Path, Dataset, Dataset]) -> None:
    folder, segmentation, report = objects
    groups = items(items(report, "Imaging Measurements")[0], "Measurement Group")
    for label, group in enumerate(groups, start=1):
        (reference,) = items(group, "Referenced Segment")[0].ReferencedSOPSequence
        assert reference.ReferencedSOPInstanceUID == segmentation.SOPInstanceUID
        assert reference.ReferencedSegmentNumber == label
        tracking = items(group, "Tracking Unique Identifier")[0].UID
        assert tracking == segmentation.SegmentSequence[label - 1].TrackingUID
        source = items(group, "Source Series for Segmentation")[0].UID
        assert source == pydicom.dcmread(folder / "series" / "000.dcm").SeriesInstanceUID
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    instances = {
        one.ReferencedSOPInstanceUID for each in study.ReferencedSeriesSequence for one in each.ReferencedSOPSequence
    }
    sources = {pydicom.dcmread(path).SOPInstanceUID for path in (folder / "series").iterdir()}
    assert instances == sources | {segmentation.SOPInstanceUID}


def test_it_says_what_made_it_and_that_it_is_not_for_clinical_use(objects: tuple[Path, Dataset, Dataset]) -> None:
    folder, _, report = objects
    assert report.SeriesDescription == "NOT FOR CLINICAL USE: sizes by Fedvox hippocampus"
    assert items(report, "Comment")[0].TextValue.startswith("NOT FOR CLINICAL USE.")
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    group = items(items(report, "Imaging Measurements")[0], "Measurement Group")[0]
    assert items(group, "Algorithm Name")[0].TextValue == "Fedvox hippocampus"
    told = {one.TextValue for one in items(group, "Algorithm Parameters")}
    assert told == {"federation=hippocampus", f"model_sha256={model().sha256}", "overlap=0.5"}
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert not errors_of_dciodvfy(folder / "sr.dcm")
