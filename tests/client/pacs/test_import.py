"""``fedvox-client import`` from a real PACS."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from client.cli import main
from tests.client.pacs.site import Site
from tests.client.pacs.studies import BROKEN, study, write
from tests.orthanc import Orthanc


@pytest.mark.parametrize("way", ["dicom", "web"])
def test_studies_become_a_dataset_and_a_second_call_does_nothing_new(
    orthanc: Orthanc, site: Site, tmp_path: Path, way: str
) -> None:
    orthanc.upload(write(tmp_path / "made", study("A1", 1), study("A2", 2), study("B3", 3)))
    site.write_address(**site.peer(orthanc, way))
    site.write_cohort("A1", "A2 ", " A1")
    status, results = site.run()
    assert status == 0
    assert [(one["accession"], one["outcome"], one["received"]) for one in results] == [
        ("A1", "imported", 6),
        ("A2", "imported", 6),
    ]
    files = {path: path.stat().st_ino for path in site.files}
    assert len(files) == 12
    assert not any(b"Muster" in path.read_bytes() for path in files)
    assert main(["check", "--data", str(site.out)]) == 0
    status, results = site.run()
    assert (status, {one["outcome"] for one in results}) == (0, {"already there"})
    assert {path: path.stat().st_ino for path in site.files} == files


def test_what_is_broken_is_named_with_the_reason_and_the_others_are_imported(
    orthanc: Orthanc, site: Site, tmp_path: Path
) -> None:
    made = [break_it(study(name, seed)) for seed, (name, (break_it, _)) in enumerate(BROKEN.items())]
    orthanc.upload(write(tmp_path / "made", *made, study("good", 99)))
    site.write_address(**site.peer(orthanc))
    site.write_cohort(*BROKEN, "good")
    status, results = site.run()
    assert status == 1
    found = {one["accession"]: one for one in results}
    assert found["good"]["outcome"] == "imported"
    for name, (_, reason) in BROKEN.items():
        assert found[name]["outcome"] == "refused"
        assert re.search(reason, found[name]["reason"])
