"""Results as labels for training: the reader of segmentation objects finds what was predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.inference.results import SegmentationKind
from common.imaging.datasets.case import load_case
from common.imaging.datasets.dataset import scan_dataset
from common.imaging.io.dicom.volume import read_series
from tests.client.inference.dicom.by_hand import NAMES, made_up, write
from tests.common.imaging.io.dicom.test_geometry import write_shuffled
from tests.dicom_series import only_series_in


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_a_result_can_be_read_as_labels(tmp_path: Path, kind: SegmentationKind) -> None:
    write_shuffled(tmp_path / "data" / "images" / "knee", 8)
    series = only_series_in(tmp_path / "data" / "images" / "knee")
    prediction = made_up(read_series(series).grid)
    write(tmp_path / "data" / "labels", series, prediction, kind)
    (tmp_path / "data" / "labels" / "sr.dcm").unlink()
    dataset, problems = scan_dataset(tmp_path / "data")
    assert not [problem for problem in problems if problem.severity == "error"]
    (case,) = dataset.cases
    _, label = load_case(case, None)
    assert {one.value: one.name for one in case.reading.structures} == NAMES
    np.testing.assert_array_equal(label, prediction.label)
