"""DICOMweb services that answer what was not asked for, or elsewhere."""

from __future__ import annotations

import contextlib
import gzip
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from client.cli import main
from tests.client.pacs.site import Site
from tests.client.pacs.studies import study
from tests.dicom_series import save

Answer = tuple[int, dict[str, str], bytes]
TOKEN = {"token_file": "token"}
JSON = {"Content-Type": "application/dicom+json"}
BOUNDARY = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=xxx'}


@contextmanager
def service(
    answer: Callable[[str], Answer], asked: list[tuple[str, str]], tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Serve answers on the loopback device; path and token of every request go to ``asked``."""

    drips = getattr(answer, "drips", lambda path: False)
    pace = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization", "")))
            status, headers, content = answer(self.path)
            self.send_response(status)
            length = 10**9 if drips(self.path) else len(content)
            for name, value in {**headers, "Content-Length": str(length)}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content[:-20] if drips(self.path) else content)
                while drips(self.path):
                    self.wfile.write(b" ")
                    pace.wait(0.02)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{'https' if tls else 'http'}://localhost:{server.server_address[1]}/rs"
        server.shutdown()


class Web:
    """A service that has some slices; what it answers can be changed."""

    def __init__(self, slices: list[Dataset], folder: Path) -> None:
        self.slices = slices
        self.parts = [path.read_bytes() for path in sorted(save(folder, slices).iterdir())]
        self.changed: dict[str, Answer] = {}
        self.slow = "never"

    def drips(self, path: str) -> bool:
        """Whether an answer does not end, and comes byte by byte."""
        return self.slow in path + " "

    def __call__(self, path: str) -> Answer:
        level = path.partition("?")[0].rsplit("/", 1)[-1]
        if level in self.changed:
            return self.changed[level]
        keys = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}
        if level in keys:
            seen = {one[keys[level]].value: one for one in self.slices}
            return 200, JSON, json.dumps([self.record(one) for one in seen.values()]).encode()
        body = b"".join(b"\r\n--xxx\r\nContent-Type: application/dicom\r\n\r\n" + part for part in self.parts)
        return 200, BOUNDARY, body + b"\r\n--xxx--\r\n"

    @staticmethod
    def record(one: Dataset) -> dict[str, Any]:
        return {
            "0020000D": {"vr": "UI", "Value": [one.StudyInstanceUID]},
            "0020000E": {"vr": "UI", "Value": [one.SeriesInstanceUID]},
            "00080018": {"vr": "UI", "Value": [one.SOPInstanceUID]},
            "00080050": {"vr": "SH", "Value": [one.AccessionNumber]},
            "00080060": {"vr": "CS", "Value": [one.Modality]},
        }


def import_from(
    site: Site, web: Callable[[str], Answer], *accessions: str, **limits: float
) -> tuple[list[Any], list[tuple[str, str]]]:
    asked: list[tuple[str, str]] = []
    with service(web, asked) as url:
        site.write_address(url=url, **{"attempts": 2, "idle_seconds": 5, **limits})
        site.write_cohort(*accessions)
        return site.run()[1], asked


def test_a_service_that_answers_what_it_is_asked_for_is_imported_from(site: Site, tmp_path: Path) -> None:
    (result,), _ = import_from(site, Web(study("A 1"), tmp_path / "made"), "A 1")
    assert (result["outcome"], result["received"]) == ("imported", 6)


def test_instances_of_another_study_are_refused(site: Site, tmp_path: Path) -> None:
    web = Web(study("A1", 1), tmp_path / "1")
    web.parts = Web(study("A2", 2), tmp_path / "2").parts
    (result,), _ = import_from(site, web, "A1")
    assert result["outcome"] == "refused"
    assert site.files == []


@pytest.mark.parametrize(("level", "key"), [("studies", "0020000D"), ("series", "0020000E"), ("instances", "00080018")])
def test_a_uid_that_is_none_never_becomes_part_of_a_request(site: Site, tmp_path: Path, level: str, key: str) -> None:
    web = Web(study("A1"), tmp_path / "made")
    record = Web.record(web.slices[0]) | {key: {"vr": "UI", "Value": ["../../secret"]}}
    web.changed[level] = (200, JSON, json.dumps([record]).encode())
    (result,), asked = import_from(site, web, "A1")
    assert result["outcome"] == "failed"
    assert "is no UID" in result["reason"]
    assert not any("secret" in path for path, _ in asked)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((503, {}, b""), "HTTP 503"),
        ((404, {}, b""), "HTTP 404"),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), "redirects elsewhere"),
        ((200, JSON, b'{"not": '), "cannot be read|is of another type"),
        ((200, {"Content-Type": "text/html"}, b"<html>"), "cannot be read|is of another type"),
    ],
)
@pytest.mark.parametrize("level", ["series", "1"])
def test_what_a_service_answers_instead_is_told(
    site: Site, tmp_path: Path, level: str, answer: Answer, reason: str
) -> None:
    web = Web(study("A1", SeriesInstanceUID="1.2.3.1"), tmp_path / "made")
    web.changed[level if level == "series" else "1.2.3.1"] = answer
    (result,), _ = import_from(site, web, "A1")
    assert result["outcome"] == "failed"
    assert any(word in result["reason"] for word in reason.split("|"))


def test_an_archive_that_always_gives_the_first_page_is_asked_no_further(site: Site, tmp_path: Path) -> None:
    slices = study("A1")
    web = Web(slices, tmp_path / "made")
    many = [Web.record(slices[0]) | {"0020000D": {"vr": "UI", "Value": [f"1.2.{number}"]}} for number in range(1000)]
    web.changed["studies"] = (200, JSON, json.dumps(many).encode())
    _, asked = import_from(site, web, "B7")
    assert sum("AccessionNumber" in path for path, _ in asked) == 2


@pytest.mark.parametrize("slow", ["AccessionNumber", "/instances?", "/series/1.2.3.1 "])
def test_nobody_waits_for_an_answer_that_comes_byte_by_byte(site: Site, tmp_path: Path, slow: str) -> None:
    web = Web(study("A1", SeriesInstanceUID="1.2.3.1"), tmp_path / "made")
    web.slow = slow
    (result,), _ = import_from(site, web, "A1", study_seconds=3, attempts=1)
    assert result["outcome"] == ("incomplete" if result["received"] else "failed")
    assert "was not done after" in result["reason"]


@pytest.mark.parametrize("level", ["studies", "1.2.3.1"])
def test_an_answer_that_unpacks_to_more_is_refused(site: Site, tmp_path: Path, level: str) -> None:
    web = Web(study("A1", SeriesInstanceUID="1.2.3.1"), tmp_path / "made")
    web.changed[level] = (200, {**JSON, "Content-Encoding": "gzip"}, gzip.compress(b"[]"))
    site.write_cohort("A1")
    with service(web, []) as url:
        site.write_address(url=url)
        assert main(site.arguments()) == 1
    assert site.files == []


def test_a_page_of_answers_has_a_limit(site: Site, tmp_path: Path) -> None:
    web = Web(study("A1"), tmp_path / "made")
    web.changed["series"] = (200, JSON, b"[" + b" " * 2**25 + b"]")
    (result,), _ = import_from(site, web, "A1")
    assert result["outcome"] == "failed"
    assert "more than 33,554,432 bytes" in result["reason"]


def test_files_arrive_byte_for_byte(site: Site, tmp_path: Path) -> None:
    web = Web(study("A1"), tmp_path / "made")
    web.parts[0] = b"odd preamble".ljust(128) + web.parts[0][128:]
    site.write_cohort("A1")
    with service(web, []) as url:
        site.write_address(url=url)
        site.run("--anonymise", "off")
    assert {path.read_bytes() for path in site.files} == {*web.parts}


def test_damaged_objects_do_not_count(site: Site, tmp_path: Path) -> None:
    web = Web(study("A1", 1), tmp_path / "1")
    web.parts[2] = b"no DICOM at all"
    (result,), _ = import_from(site, web, "A1")
    assert result["outcome"] in ("failed", "incomplete", "refused")
    assert site.files == []


def test_no_token_is_sent_in_the_clear(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.write_address(url="http://127.0.0.1:1/rs", **TOKEN)
    site.write_cohort("A1")
    assert main(site.arguments()) == 2
    assert "https alone" in capsys.readouterr().err
