"""Another archive than Orthanc: dcmqrscp of DCMTK."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.client.pacs.site import Site
from tests.client.pacs.studies import study, write
from tests.dicom_series import need_tool
from tests.orthanc import LOCAL_PORT, LOCAL_TITLE, private_network

PORT = 11113
CONFIGURATION = """
NetworkTCPPort = {port}
MaxPDUSize = 16384
MaxAssociations = 8
HostTable BEGIN
us = ({title}, 127.0.0.1, {local_port})
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
DCMTK {folder} RW (9, 1024mb) ANY
AETable END
"""


@contextmanager
def dcmqrscp(folder: Path) -> Iterator[None]:
    """Run it in a network of the test's own."""
    program = need_tool("dcmqrscp")
    (folder / "store").mkdir(parents=True)
    file = folder / "dcmqrscp.cfg"
    values = {"port": PORT, "title": LOCAL_TITLE, "local_port": LOCAL_PORT, "folder": folder / "store"}
    file.write_text(CONFIGURATION.format(**values), encoding="utf-8")
    with private_network(), subprocess.Popen([program, "-c", str(file)], stderr=subprocess.DEVNULL) as process:
        try:
            while socket.socket().connect_ex(("127.0.0.1", PORT)) != 0:
                assert process.poll() is None
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("retrieve", ["get", "move"])
def test_studies_are_imported_by_accession_number_and_by_keys(site: Site, tmp_path: Path, retrieve: str) -> None:
    made = write(tmp_path / "made", study("A 1", 1), study("A12", 2), study("B7", 3, StudyDescription="Head"))
    with dcmqrscp(tmp_path / "dcmtk"):
        storescu = [need_tool("storescu"), "-aet", LOCAL_TITLE, "-aec", "DCMTK", "+sd", "+r", "127.0.0.1", str(PORT)]
        subprocess.run([*storescu, str(made)], check=True)
        store = {"retrieve": "move", "store": {"address": "127.0.0.1", "port": LOCAL_PORT}}
        peer = {"ae_title": "DCMTK", "host": "127.0.0.1", "port": PORT, "idle_seconds": 20}
        site.write_address(**peer, **(store if retrieve == "move" else {}))
        site.write_cohort("A 1", "A1")
        _, results = site.run()
        assert [(one["outcome"], one["received"]) for one in results] == [("imported", 6), ("not found", 0)]
        site.write_cohort(first_date="2024-01-01", study_description="Kn*", modality=["CT", "MR"])
        status, results = site.run()
        assert status == 0
        assert sorted(one["outcome"] for one in results) == ["already there", "imported"]
