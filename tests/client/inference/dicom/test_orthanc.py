"""Results in a real PACS: accepted, in the study of their source, and given back as they were."""

from __future__ import annotations

from pathlib import Path

import httpx

from client.inference.results import SegmentationKind
from common.imaging.io.dicom.volume import read_series
from tests.client.inference.dicom.by_hand import made_up, write
from tests.dicom_series import make_series, only_series_in, save
from tests.orthanc import private_network, run_orthanc

KINDS: tuple[SegmentationKind, ...] = ("binary", "labelmap", "fractional")


def test_orthanc_takes_every_kind_and_gives_it_back(tmp_path: Path) -> None:
    name = "Müller^Jörg"
    folder = save(tmp_path / "series", make_series(SpecificCharacterSet="ISO_IR 100", PatientName=name))
    series = only_series_in(folder)
    prediction = made_up(read_series(series).grid)
    with private_network(), run_orthanc(tmp_path / "orthanc") as orthanc:
        orthanc.upload(folder)
        for kind in KINDS:
            objects = write(tmp_path / kind, series, prediction, kind)
            orthanc.upload(tmp_path / kind / "seg.dcm", tmp_path / kind / "sr.dcm")
            for one, file in zip(objects, ("seg.dcm", "sr.dcm"), strict=True):
                assert instance_of(orthanc.url, one.SOPInstanceUID) == (tmp_path / kind / file).read_bytes()
        (study,) = orthanc.get("/studies?expand")
        modalities = [one["MainDicomTags"]["Modality"] for one in orthanc.get(f"/studies/{study['ID']}/series")]
    assert sorted(modalities) == ["MR", "SEG", "SEG", "SEG", "SR", "SR", "SR"]
    assert study["PatientMainDicomTags"]["PatientName"] == name


def instance_of(url: str, uid: str) -> bytes:
    with httpx.Client(trust_env=False, timeout=60) as client:
        (found,) = client.post(f"{url}/tools/lookup", content=uid).raise_for_status().json()
        return client.get(f"{url}/instances/{found['ID']}/file").raise_for_status().content
