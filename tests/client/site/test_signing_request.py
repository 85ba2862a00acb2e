"""The key that a site makes for itself."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest

from client.site.signing_request import make_request
from common.certificates import load_key
from common.errors import ConfigError, OutputError
from server.provisioning.certificate_authority import AuthorityError, read_request


def test_the_coordinator_can_read_the_request_and_its_key_is_the_sites(tmp_path: Path) -> None:
    files = make_request("north", tmp_path / "key")
    name, key = read_request(files.request)
    assert files.key.name == "site.key"
    assert name == "north"
    assert key == load_key(files.key).public_key()


def test_the_private_key_is_for_its_owner_alone_and_not_in_the_request(tmp_path: Path) -> None:
    files = make_request("north", tmp_path)
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    assert b"PRIVATE" not in files.request.read_bytes()


def test_a_request_for_another_name_with_the_same_signature_is_refused(tmp_path: Path) -> None:
    files = make_request("north", tmp_path)
    lines = files.request.read_text().splitlines()
    der = base64.b64decode("".join(lines[1:-1])).replace(b"north", b"south")
    body = base64.encodebytes(der).decode()
    files.request.write_text(f"{lines[0]}\n{body}{lines[-1]}\n")
    with pytest.raises(AuthorityError, match="signature is wrong"):
        read_request(files.request)


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    files = make_request("north", tmp_path)
    before = files.key.read_bytes()
    with pytest.raises(OutputError, match=rf"a key already exists \(fingerprint {files.fingerprint}\)"):
        make_request("north", tmp_path)
    assert files.key.read_bytes() == before


@pytest.mark.parametrize("name", ["", "North", "a b", "../x", "-a", "a" * 64])
def test_refuses_names_that_no_site_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        make_request(name, tmp_path)
    assert list(tmp_path.iterdir()) == []
