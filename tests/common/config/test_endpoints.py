"""Addresses on the command line."""

from __future__ import annotations

import pytest

from common.config.network import parse_endpoint, parse_listen
from common.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.2:9094", "10.0.0.2", 9094),
        ("gateway:1", "gateway", 1),
        ("fl.example.org:65535", "fl.example.org", 65535),
        ("[fd00::2]:9094", "fd00::2", 9094),
    ],
)
def test_good_endpoints(text: str, host: str, port: int) -> None:
    assert parse_endpoint("--gateway", text, "10.0.0.2:9094") == (host, port)


@pytest.mark.parametrize(
    "text",
    ["", "9094", "10.0.0.2", "10.0.0.2:", "10.0.0.2:0", "10.0.0.2:65536", "a b:1", "http://a:1", "a:1;b", "a:-1"],
)
def test_bad_endpoints_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--gateway.*for example 10\.0\.0\.2:9094"):
        parse_endpoint("--gateway", text, "10.0.0.2:9094")


def test_one_listens_on_numbers_only() -> None:
    assert parse_listen("--listen", "0.0.0.0:9443", "0.0.0.0:9443") == ("0.0.0.0", 9443)  # noqa: S104 -- parsed, not bound
    assert parse_listen("--listen", "[::]:9443", "0.0.0.0:9443") == ("::", 9443)
    with pytest.raises(ConfigError, match="IP address of this machine"):
        parse_listen("--listen", "localhost:9443", "0.0.0.0:9443")
