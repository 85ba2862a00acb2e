"""The gateways that most tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.gateway.lab import Lab, lab


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A gateway without a SuperLink, with the usual limits."""
    with lab(tmp_path_factory.mktemp("gateway")) as made:
        yield made


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A gateway whose limits are reached in a test's time."""
    limits = {"pause_seconds": 1, "grace_seconds": 2, "bytes_per_second": 2**22, "connections": 8, "signed_texts": 60}
    with lab(tmp_path_factory.mktemp("strict"), ("north", "south", "east", "west"), limits) as made:
        yield made
