"""Sending to a real PACS, by C-STORE and by STOW-RS: what is answered, and what a failure is called."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from client.node.config import Node, NodeConfig
from client.node.sending import WebStore, delivery
from client.pacs.peer import PeerError
from common.errors import ConfigError
from common.system.supervisor import free_port
from tests.dicom_series import make_series, save
from tests.orthanc import Orthanc, private_network, run_orthanc


def node(folder: Path, **destination: Any) -> Node:
    callers = [{"ae_title": "MODALITY", "addresses": ["127.0.0.1"]}]
    content = {"ae_title": "FEDVOX", "callers": callers, "destinations": [{"name": "pacs", **destination}]}
    return Node(NodeConfig.model_validate(content), folder)


def test_orthanc_has_each_instance_once_by_either_way(tmp_path: Path) -> None:
    series = make_series()
    paths = sorted(save(tmp_path / "series", series).iterdir())
    (tmp_path / "note.dcm").write_bytes(b"no DICOM")
    with private_network(), run_orthanc(tmp_path / "orthanc") as orthanc:
        ways = [
            {"ae_title": Orthanc.title, "host": orthanc.host, "port": orthanc.port},
            {"url": orthanc.dicomweb},
        ]
        for way in ways * 2:
            where = node(tmp_path, **way)
            send = delivery(where, where.destinations[0])
            assert list(send(paths)) == [(path, "") for path in paths]
        found = orthanc.get("/instances?expand")
        assert {one["MainDicomTags"]["SOPInstanceUID"] for one in found} == {one.SOPInstanceUID for one in series}
        assert len(found) == len(series)
        ((_, problem),) = WebStore(orthanc.dicomweb, None, "", 20).deliver([tmp_path / "note.dcm"])
        assert problem


@pytest.mark.parametrize("way", ["dicom", "web"])
def test_a_destination_that_is_down_is_an_error_of_its_own(tmp_path: Path, way: str) -> None:
    port = free_port()
    at = {
        "dicom": {"ae_title": "PACS", "host": "127.0.0.1", "port": port},
        "web": {"url": f"http://127.0.0.1:{port}/dicom-web"},
    }
    where = node(tmp_path, **at[way])
    (path,) = save(tmp_path / "series", make_series()[:1]).iterdir()
    with pytest.raises(PeerError, match="cannot be reached"):
        list(delivery(where, where.destinations[0])([path]))


@contextmanager
def answering(status: int, content: bytes = b"") -> Iterator[str]:
    """The base of services that answer every POST in the same way."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("status", [401, 404, 503, 302])
def test_answers_that_say_nothing_about_the_instance_hold_up_all(tmp_path: Path, status: int) -> None:
    (path,) = save(tmp_path / "series", make_series()[:1]).iterdir()
    with answering(status) as url, pytest.raises(PeerError, match=rf"HTTP {status}"):
        list(WebStore(url, None, "", 20).deliver([path]))


def failed(reason: int) -> bytes:
    return json.dumps({"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}}]}}).encode()


@pytest.mark.parametrize(
    ("status", "content", "problem"),
    [
        (200, b"", ""),
        (202, b"", ""),
        (202, b"[1]", ""),
        (202, failed(0xA700), "status 0xA700"),
        (409, failed(0x0122), "status 0x0122"),
        (409, failed(0x0111), ""),
        (409, b"<html>", "HTTP 409"),
        (415, b"", "HTTP 415"),
    ],
)
def test_answers_about_the_instance_are_its_own(tmp_path: Path, status: int, content: bytes, problem: str) -> None:
    (path,) = save(tmp_path / "series", make_series()[:1]).iterdir()
    with answering(status, content) as url:
        assert list(WebStore(url, None, "", 20).deliver([path])) == [(path, problem)]


def test_files_of_a_destination_are_checked(tmp_path: Path) -> None:
    way = {"url": "https://archive.example", "token_file": "missing.token"}
    where = node(tmp_path, **way)
    with pytest.raises(ConfigError, match=r"missing\.token"):
        delivery(where, where.destinations[0])
