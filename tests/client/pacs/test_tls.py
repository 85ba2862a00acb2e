"""TLS to archives, with certificates of both sides, and tokens."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

import pytest

from client.cli import main
from server.provisioning.certificate_authority import Authority
from tests.client.pacs.odd_archive import OddArchive
from tests.client.pacs.site import Site
from tests.client.pacs.studies import study
from tests.client.pacs.test_odd_web import Web, service
from tests.dicom_series import save
from tests.mutual_tls import server_context, write_server, write_site

TOKEN = {"token_file": "token"}
FILES = {"ca": "ca.crt", "certificate": "site.crt", "key": "site.key"}


@pytest.fixture
def tls(tmp_path: Path, site: Site) -> ssl.SSLContext:
    """An archive's TLS, which wants our certificate; what we need lies beside ``pacs.yaml``."""
    authority = Authority.create("hospital")
    for path in write_site(tmp_path / "ours", authority).iterdir():
        shutil.copy(path, site.folder)
    (site.folder / "other.crt").write_bytes(Authority.create("other").pem)
    site.write_cohort("A1")
    return server_context(write_server(tmp_path / "archive", authority))


def test_dicom_over_tls_checks_both_sides(
    site: Site, tls: ssl.SSLContext, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slices = study("A1")
    save(tmp_path / "made", slices)
    with OddArchive(slices, tls=tls).running() as archive:
        peer = {"ae_title": "ODD", "host": "localhost", "port": archive.port, "idle_seconds": 5}
        site.write_address(**peer, tls=FILES)
        status, (result,) = site.run()
        assert (status, result["outcome"]) == (0, "imported")
        for other in (None, {"ca": "ca.crt"}, {**FILES, "ca": "other.crt"}):
            site.write_address(**{**peer, "idle_seconds": 1}, **({"tls": other} if other else {}))
            assert main(site.arguments()) == 1
            assert f"ODD@localhost:{archive.port}" in capsys.readouterr().err


def test_with_an_authority_of_our_own_no_other_vouches_for_a_service(
    site: Site, tls: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(site.folder / "ca.crt"))
    asked: list[tuple[str, str]] = []
    with service(Web(study("A1"), tmp_path / "made"), asked, tls) as url:
        site.write_address(url=url, tls={**FILES, "ca": "other.crt"})
        assert main(site.arguments()) == 1
    assert asked == []


def test_dicomweb_over_tls_checks_both_sides_and_carries_the_token(
    site: Site, tls: ssl.SSLContext, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (site.folder / "token").touch(mode=0o600)
    (site.folder / "token").write_text("abc.DEF\n", encoding="utf-8")
    asked: list[tuple[str, str]] = []
    with service(Web(study("A1"), tmp_path / "made"), asked, tls) as url:
        site.write_address(url=url, **TOKEN, tls=FILES)
        status, (result,) = site.run()
        assert (status, result["outcome"]) == (0, "imported")
        assert {token for _, token in asked} == {"Bearer abc.DEF"}
        before = len(asked)
        for other in (None, {"ca": "ca.crt"}, {**FILES, "ca": "other.crt"}):
            site.write_address(url=url, **TOKEN, **({"tls": other} if other else {}))
            assert main(site.arguments()) == 1
            error = capsys.readouterr().err
            assert url in error
            assert "abc" not in error
        assert len(asked) == before
