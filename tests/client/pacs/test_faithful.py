"""What arrives is what the archive has: voxels, places, compression, and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from common.imaging.datasets.dataset import find_dataset
from common.imaging.io.dicom.volume import read_series
from tests.client.pacs.site import Site
from tests.client.pacs.studies import study, write
from tests.dicom_labels import LIVER, segmentation
from tests.dicom_labels import write as write_object
from tests.dicom_series import only_series_in
from tests.orthanc import Orthanc

ONE_OF_EACH = [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless]


def same_volume(one: Path, other: Path) -> None:
    first, second = (read_series(only_series_in(folder)) for folder in (one, other))
    np.testing.assert_array_equal(first.array, second.array)
    np.testing.assert_array_equal(first.source.grid.affine, second.source.grid.affine)


@pytest.mark.parametrize("way", ["dicom", "move", "web"])
def test_compressed_images_stay_as_they_are(orthanc: Orthanc, site: Site, tmp_path: Path, way: str) -> None:
    made = write(tmp_path / "made", study("A1", 1, (8, 64, 64)))
    for number, path in enumerate(sorted(made.rglob("*.dcm"))):
        syntax = ONE_OF_EACH[number % len(ONE_OF_EACH)]
        dataset = pydicom.dcmread(path)
        if syntax != ExplicitVRLittleEndian:
            dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)
    orthanc.upload(made)
    site.write_address(**site.peer(orthanc, way))
    site.write_cohort("A1")
    assert site.run()[0] == 0
    same_volume(made, site.out)
    assert {pydicom.dcmread(path).file_meta.TransferSyntaxUID for path in site.files} == {*ONE_OF_EACH}


def test_a_real_series_keeps_its_voxels_and_places(orthanc: Orthanc, site: Site, real_dicom: Path) -> None:
    series = real_dicom / "brain-ge" / "T1post"
    orthanc.upload(series)
    site.write_address(**site.peer(orthanc))
    site.write_cohort(modality="MR", series_description="T1*")
    status, (result,) = site.run()
    assert (status, result["received"]) == (0, 22)
    same_volume(series, site.out)


def test_a_study_with_a_segmentation_becomes_a_dataset_for_training(
    orthanc: Orthanc, site: Site, tmp_path: Path
) -> None:
    slices = study("A1", 1)
    mask = np.zeros((6, 8, 8), dtype=bool)
    mask[2:4, 1:5, 3:7] = True
    made = write(tmp_path / "made", slices)
    write_object(made / "seg.dcm", segmentation(slices, {"Liver": mask}, codes={"Liver": LIVER}))
    orthanc.upload(made)
    site.write_address(**site.peer(orthanc))
    site.write_cohort("A1")
    status, (result,) = site.run()
    assert (status, result["received"], result["reason"]) == (0, 7, "")
    dataset = find_dataset(site.out)
    assert (dataset.layout, dataset.labels, len(dataset.cases)) == ("dicom_labels", {1: "Liver"}, 1)
