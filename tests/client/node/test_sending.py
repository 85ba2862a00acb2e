"""Sending to a real PACS, by C-STORE and by STOW-RS: what is answered, and what a failure is called."""

import contextlib
import json
import socket
import ssl
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
from common.errors import ConfigError, FedvoxError
from common.system.supervisor import free_port
from server.provisioning.certificate_authority import Authority
from tests.dicom_series import make_series, save
from tests.mutual_tls import server_context, write_server, write_site
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
        ((_, problem),) = WebStore(orthanc.dicomweb, None, "", 20, 20).deliver([tmp_path / "note.dcm"])
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
def answering(
    status: int, content: bytes = b"", seen: list[str] | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """The base of services that answer every POST in the same way, and note who asks."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if seen is not None:
                seen.append(self.headers["Authorization"])
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{'https' if tls else 'http'}://localhost:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("status", [401, 404, 503, 302])
def test_answers_that_say_nothing_about_the_instance_hold_up_all(tmp_path: Path, status: int) -> None:
    (path,) = save(tmp_path / "series", make_series()[:1]).iterdir()
    with answering(status) as url, pytest.raises(PeerError, match=rf"HTTP {status}"):
        list(WebStore(url, None, "", 20, 20).deliver([path]))


UID = "1.2.3"


def failed(reason: int) -> bytes:
    return json.dumps({"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}}]}}).encode()


def stored(uid: str) -> bytes:
    return json.dumps({"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [uid]}}]}}).encode()


def result(folder: Path) -> Path:
    series = make_series()[:1]
    series[0].SOPInstanceUID = UID
    (path,) = save(folder / "series", series).iterdir()
    return path


XML = b'<NativeDicomModel><DicomAttribute tag="00081198" vr="SQ"/></NativeDicomModel>'
UNREADABLE, UNNAMED = "with an answer that cannot be read", "with an answer that does not name the instance"


@pytest.mark.parametrize(
    ("status", "content", "problem"),
    [
        (200, stored(UID), ""),
        (202, stored(UID), ""),
        (200, stored("1.2.4"), f"HTTP 200, {UNNAMED}"),
        (200, failed(0xA700), "status 0xA700"),
        (200, b"{}", f"HTTP 200, {UNNAMED}"),
        (200, b"", f"HTTP 200, {UNREADABLE}"),
        (202, b"", f"HTTP 202, {UNREADABLE}"),
        (202, b"[1]", f"HTTP 202, {UNREADABLE}"),
        (202, b"[" * 100_000, f"HTTP 202, {UNREADABLE}"),
        (202, XML, f"HTTP 202, {UNREADABLE}"),
        (202, failed(0xA700), "status 0xA700"),
        (409, failed(0x0122), "status 0x0122"),
        (409, failed(0x0111), ""),
        (409, stored(UID), f"HTTP 409, {UNNAMED}"),
        (409, b"<html>", f"HTTP 409, {UNREADABLE}"),
        (415, b"", f"HTTP 415, {UNREADABLE}"),
    ],
)
def test_a_result_is_sent_only_if_the_answer_names_it(
    tmp_path: Path, status: int, content: bytes, problem: str
) -> None:
    path = result(tmp_path)
    with answering(status, content) as url:
        assert list(WebStore(url, None, "", 20, 20).deliver([path])) == [(path, problem)]


def test_a_damaged_file_is_its_own_problem(tmp_path: Path) -> None:
    path, damaged = result(tmp_path), tmp_path / "1.2.dcm"
    damaged.write_bytes(path.read_bytes()[:200])
    with answering(200, stored(UID)) as url:
        answers = list(WebStore(url, None, "", 20, 20).deliver([damaged, tmp_path / "missing.dcm", path]))
    assert [bool(problem) for _, problem in answers] == [True, True, False]


def test_an_answer_without_end_ends(tmp_path: Path) -> None:
    path = result(tmp_path)
    with answering(200, b" " * (10**6 + 1)) as url, pytest.raises(PeerError, match="more than 1,000,000 bytes"):
        list(WebStore(url, None, "", 20, 20).deliver([path]))


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_an_answer_that_drips_ends(tmp_path: Path, head: bytes) -> None:
    path, ended = result(tmp_path), threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(head)
            while not ended.wait(0.05):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=[server])
        thread.start()
        store = WebStore(f"http://127.0.0.1:{server.getsockname()[1]}", None, "", 5, 0.5)
        with pytest.raises(PeerError, match="was not done after"):
            list(store.deliver([path]))
        ended.set()
        thread.join()


def test_a_certificate_that_is_not_trusted_is_called_so(tmp_path: Path) -> None:
    path = result(tmp_path)
    tls = server_context(write_server(tmp_path / "archive", Authority.create("unknown")))
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with contextlib.suppress(OSError), tls.wrap_socket(connection, server_side=True):
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        store = WebStore(f"https://127.0.0.1:{server.getsockname()[1]}", None, "", 5, 5)
        with pytest.raises(PeerError, match="certificate that is not trusted here"):
            list(store.deliver([path]))
        thread.join()


def test_a_new_token_is_used_at_once_and_a_missing_one_is_the_destinations_problem(tmp_path: Path) -> None:
    path, seen, token = result(tmp_path), list[str](), tmp_path / "archive.token"
    authority = Authority.create("test")
    tls = server_context(write_server(tmp_path / "archive", authority))
    write_site(tmp_path, authority)
    with answering(200, stored(UID), seen, tls) as url:
        keys = {"ca": "ca.crt", "certificate": "site.crt", "key": "site.key"}
        way = {"url": url, "token_file": token.name, "tls": keys}
        where = node(tmp_path, **way)
        token.touch(mode=0o600)
        token.write_text("first")
        send = delivery(where, where.destinations[0])
        assert list(send([path])) == [(path, "")]
        token.write_text("second")
        assert list(send([path])) == [(path, "")]
        token.unlink()
        with pytest.raises(FedvoxError, match=r"archive\.token"):
            list(send([path]))
    assert seen == ["Bearer first", "Bearer second"]


def test_files_of_a_destination_are_checked(tmp_path: Path) -> None:
    way = {"url": "https://archive.example", "token_file": "missing.token"}
    where = node(tmp_path, **way)
    with pytest.raises(ConfigError, match=r"missing\.token"):
        delivery(where, where.destinations[0])
