"""The PACS that tests start."""

import socket
import subprocess
from pathlib import Path

from tests.dicom_series import make_series, need_tool, save
from tests.orthanc import LOCAL_TITLE, Orthanc, private_network

NETWORK = Path("/proc/thread-self/ns/net")


def test_orthanc_is_alone_in_a_network_and_takes_studies_by_http_and_dicom(orthanc: Orthanc, tmp_path: Path) -> None:
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    orthanc.upload(save(tmp_path / "one", make_series()))
    storescu = [need_tool("storescu"), "-aet", LOCAL_TITLE, "-aec", orthanc.title, "+sd", "+r"]
    two = save(tmp_path / "two", make_series())
    subprocess.run([*storescu, orthanc.host, str(orthanc.port), str(two)], check=True)
    assert len(orthanc.get("/studies")) == 2
    orthanc.delete_everything()
    assert orthanc.get("/studies") == []


def test_the_network_of_a_test_ends_with_its_block() -> None:
    before = NETWORK.readlink()
    with private_network():
        assert NETWORK.readlink() != before
    assert NETWORK.readlink() == before
