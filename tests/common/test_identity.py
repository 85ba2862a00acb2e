"""What a site signs: with anything of it changed, the signature is nobody's."""

from __future__ import annotations

import base64
import time
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from common.identity import (
    BODY_HEADER,
    SIGNATURE_HEADER,
    SIGNED_HEADERS,
    SITE_HEADER,
    TIME_HEADER,
    Claim,
    claim_of,
    is_signed_by,
    sign,
    signed_text,
)

KEY = ec.generate_private_key(ec.SECP384R1())
OTHER = ec.generate_private_key(ec.SECP384R1())
BODY = "ab" * 32
METHOD, PATH = "PATCH", f"/updates/{'12' * 16}/{BODY}"
HEADERS = {"upload-offset": "100", "upload-length": "400", "range": "bytes=0-9", "user-agent": "any"}


def signed(site: str = "north", headers: dict[str, str] = HEADERS) -> dict[str, str]:
    return headers | sign(KEY, site, METHOD, PATH, BODY, headers)


def is_genuine(headers: dict[str, str], method: str = METHOD, path: str = PATH, key: Any = KEY) -> bool:
    claim = claim_of(headers)
    return claim is not None and is_signed_by(key.public_key(), claim, method, path, headers)


def test_a_request_is_its_signers() -> None:
    before = time.time_ns()
    headers = signed()
    assert is_genuine(headers)
    claim = claim_of(headers)
    assert claim is not None
    assert (claim.site, claim.body) == ("north", BODY)
    assert before <= claim.time_ns <= time.time_ns()
    assert is_genuine(signed(headers={}))


@pytest.mark.parametrize("name", [*SIGNED_HEADERS, SITE_HEADER, TIME_HEADER, BODY_HEADER, SIGNATURE_HEADER])
def test_with_a_header_changed_or_gone_it_is_nobodys(name: str) -> None:
    headers = signed()
    for value in ("", "1", headers[name] + "0", headers[name][:-1], " " + headers[name]):
        assert not is_genuine(headers | {name: value}), value
    del headers[name]
    assert not is_genuine(headers)


@pytest.mark.parametrize("name", SIGNED_HEADERS)
def test_with_a_header_added_it_is_nobodys(name: str) -> None:
    assert not is_genuine(signed(headers={}) | {name: "0"})


def test_a_header_that_changes_nothing_may_come_on_the_way() -> None:
    assert is_genuine(signed() | {"user-agent": "a proxy", "via": "1.1 proxy"})


@pytest.mark.parametrize("method", ["HEAD", "patch", "PATCH ", ""])
def test_another_method_is_not_signed(method: str) -> None:
    assert not is_genuine(signed(), method=method)


@pytest.mark.parametrize("path", ["/", PATH + "/", PATH + "?", "/" + PATH, PATH.upper(), PATH.replace("12", "13", 1)])
def test_another_path_is_not_signed(path: str) -> None:
    assert not is_genuine(signed(), path=path)


def test_another_key_has_not_signed() -> None:
    assert not is_genuine(signed(), key=OTHER)


def test_a_signature_of_another_request_is_not_this_ones() -> None:
    first, second = signed(), signed()
    assert first[SIGNATURE_HEADER] != second[SIGNATURE_HEADER]
    assert not is_genuine(first | {SIGNATURE_HEADER: second[SIGNATURE_HEADER]})


def test_a_signature_over_another_hash_is_refused() -> None:
    claim = claim_of(signed())
    assert claim is not None
    text = signed_text(claim.site, METHOD, PATH, claim.time_ns, claim.body, HEADERS)
    other = replace(claim, signature=KEY.sign(text, ec.ECDSA(hashes.SHA512())))
    assert not is_signed_by(KEY.public_key(), other, METHOD, PATH, HEADERS)


@pytest.mark.parametrize(
    "signature", ["", "%%%", "AAAA", "A" * 10_000, "é", base64.b64encode(bytes(96)).decode(), "\n", "AA==\n"]
)
def test_what_is_no_signature_is_refused(signature: str) -> None:
    assert not is_genuine(signed() | {SIGNATURE_HEADER: signature})


@pytest.mark.parametrize("stamp", ["", "-1", "1.5", "1e9", "now", "9" * 21, "٣", " 1", "+1", "0x1", "1_000"])
def test_what_is_no_time_is_no_claim(stamp: str) -> None:
    assert claim_of(signed() | {TIME_HEADER: stamp}) is None


def test_no_two_requests_have_one_text() -> None:
    """So the gateway can take each text once: a request that is sent again is known by it."""
    changes: list[dict[str, Any]] = [
        {"site": "south"},
        {"method": "GET"},
        {"path": "/heartbeat"},
        {"time_ns": 2},
        {"body": "cd" * 32},
        *({"headers": {name: "1"}} for name in SIGNED_HEADERS),
    ]
    plain: dict[str, Any] = {
        "site": "north",
        "method": "POST",
        "path": "/",
        "time_ns": 1,
        "body": BODY,
        "headers": {},
    }
    texts = {signed_text(**(plain | change)) for change in ({}, *changes)}
    assert len(texts) == len(changes) + 1
    assert len({claim.time_ns for claim in filter(None, (claim_of(signed()) for _ in range(100)))}) == 100


def test_a_claim_of_nothing_is_none() -> None:
    assert claim_of({}) is None
    assert not is_signed_by(KEY.public_key(), Claim("north", 1, BODY, b""), METHOD, PATH, {})
