"""How an archive is named."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from client.pacs.address import Tls, read_address, read_token, tls_context
from common.errors import ConfigError


def test_an_archive_is_named_in_short_or_in_a_file(tmp_path: Path) -> None:
    address, _ = read_address("MY PACS@10.0.0.7:104")
    assert (address.ae_title, address.host, address.port, address.own_ae_title) == (
        "MY PACS",
        "10.0.0.7",
        104,
        "FEDVOX",
    )
    assert read_address("PACS@[fe80::1]:104")[0].host == "fe80::1"
    assert read_address("https://pacs.example/dicom-web/")[0].url == "https://pacs.example/dicom-web"
    path = tmp_path / "pacs.yaml"
    path.write_text("url: https://pacs.example/rs\ntoken_file: token\nattempts: 1\n", encoding="utf-8")
    address, folder = read_address(str(path))
    assert (address.token_file, address.attempts, folder) == ("token", 1, tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("host: pacs.example\n", "needs ae_title, host and port"),
        ("ae_title: A\nhost: h\nport: 104\nurl: https://h/rs\n", "both url and ae_title"),
        ("ae_title: 'A\\B'\nhost: h\nport: 104\n", "ae_title"),
        ("ae_title: ABCDEFGHIJKLMNOPQ\nhost: h\nport: 104\n", "ae_title"),
        ("ae_title: A\nhost: h\nport: 70000\n", "port"),
        ("url: http://h/rs\ntoken_file: token\n", "token_file is for a url with https alone"),
        ("url: https://me:secret@h/rs\n", "must hold no user and no password"),
        ("url: http://h/rs\ntls: {ca: ca.pem}\n", "tls is for DICOM or a url with https"),
        ("ae_title: A\nhost: h\nport: 104\ntls:\n# ca: ca.pem\n", "tls is empty"),
        ("url: https://h/rs?key=1\n", "must be the base URL"),
        ("url: ftp://h/rs\n", "must be the base URL"),
        ("url: https://h/rs\ntls: {certificate: a.pem}\n", "both certificate and key"),
        ("url: https://h/rs\ntoken: abc\n", "token"),
        ("url: https://h/rs\nstudy_seconds: 0\n", "study_seconds"),
        ("ae_title: A\nhost: h\nport: 104\nretrieve: move\n", "retrieve: move and store belong together"),
        ("url: https://h/rs\nstore: {address: 10.0.0.7, port: 104}\n", "retrieve: move and store belong together"),
        ("ae_title: A\nhost: h\nport: 104\nretrieve: move\nstore: {address: here, port: 104}\n", "store.address"),
        ("", "needs ae_title"),
        ("[1]\n", "must be a mapping"),
    ],
)
def test_an_address_that_leaves_something_open_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "pacs.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=problem):
        read_address(str(path))


@pytest.mark.parametrize("url", ["https://me:S3cret@h/rs", "https://h/rs?token=S3cret", "ftp://h/S3cret"])
def test_a_url_with_a_secret_is_not_printed(tmp_path: Path, url: str) -> None:
    path = tmp_path / "pacs.yaml"
    path.write_text(f"url: {url}\n", encoding="utf-8")
    for source in (url, str(path)):
        with pytest.raises(ConfigError, match="url must") as caught:
            read_address(source)
        assert "S3cret" not in str(caught.value)


@pytest.mark.parametrize("text", ["pacs.example", "PACS@host", "PACS@host:70000", "gopher://x", "nothing.yaml"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--from"):
        read_address(text)


def test_a_token_is_one_word_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text("abc.DEF-123\n", encoding="utf-8")
    assert read_token(path) == "abc.DEF-123"
    for content in (b"", b"two words\n", b"line\nline\n", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="token_file") as caught:
            read_token(path)
        assert "line" not in str(caught.value)
    with pytest.raises(ConfigError, match="token_file"):
        read_token(tmp_path / "none")
    path.write_text("abc\n", encoding="utf-8")
    for mode, readable in ((0o640, True), (0o644, False), (0o602, False)):
        path.chmod(mode)
        with nullcontext() if readable else pytest.raises(ConfigError, match="others may read it"):
            assert read_token(path) == "abc"


def test_files_of_tls_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tls: cannot use its files"):
        tls_context(Tls(ca="none.pem"), tmp_path)
